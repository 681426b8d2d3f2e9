"""The drivers of PostgreSQL on libpq: psycopg2 and psycopg."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sqlalchemy import URL
from sqlalchemy.util import greenlet_spawn

from sqlspec.adapters.copying import copy_text
from sqlspec.adapters.driver import Driver, Language, TransactionOptions, whole_seconds
from sqlspec.adapters.loading import Position, Target, is_of_a_row
from sqlspec.exceptions import ConfigError

if TYPE_CHECKING:
    from sqlspec.adapters.postgresql import PostgreSQLConfig

__all__ = [
    "ALL_BUT_STATEMENTS",
    "PREPARED_BY_HAND",
    "PostgreSQLDriver",
    "Psycopg",
    "Psycopg2",
    "PsycopgAsync",
    "awaiting",
    "deallocate",
]

# As DISCARD ALL, which would take along what asyncpg and psycopg have prepared by themselves: no state of the session.
ALL_BUT_STATEMENTS = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all(); "
    "DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)
# those of a borrower, who wrote PREPARE
PREPARED_BY_HAND = "SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql"

# The settings that are named at the start of a connection; what stands within a value, where a space has a backslash,
# names none.
_SETTING = re.compile(r"(?<!\S)(?<!\\\s)(?:-c\s*|--)([\w.-]+)=")
# Those that do not come from there, nor from whom it is said for this role or database. What the catalogue does not
# list, such as custom ones, is not there at all.
_DROPPED = """
    SELECT given FROM unnest(string_to_array('{names}', ',')) AS given LEFT JOIN pg_catalog.pg_settings
    ON lower(name) = lower(given) WHERE CASE WHEN source IS NULL THEN current_setting(given, true) IS NULL
    ELSE source NOT IN ('client', 'session', 'user', 'database', 'database user') END
"""
_READ_ONLY_BY_DEFAULT = "default_transaction_read_only"
# libpq's PQTRANS_INERROR
_IN_ERROR = 3
# where COPY met a bad row
_LINE = re.compile(r"\bCOPY .*?, line (\d+)")


def _line_of(error: BaseException) -> int | None:
    """Return which row COPY met, from 1, as the server says it."""
    for found in (error, error.__cause__):
        context = getattr(getattr(found, "diag", None), "context", None) or getattr(found, "context", None)
        if context and (line := _LINE.search(context)):
            return int(line[1])
    return None


# An INSERT of one row, and nothing in it that could hide a parenthesis. Of several rows at once, ON CONFLICT DO UPDATE
# could not touch one twice.
_ONE_ROW = re.compile(
    r"""(\s*INSERT\s+INTO\s[^'"$();-]*(?:\([^'"$();-]*\))?\s*VALUES\s*)(\([^'"$();-]*\))\s*\Z""", re.IGNORECASE
)
_ROWS_A_PAGE = 1000


def deallocate(name: str) -> str:
    """Return the statement that forgets a prepared one."""
    quoted = name.replace('"', '""')
    return f'DEALLOCATE "{quoted}"'


class _Chunks:
    """Be a file that COPY reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        # not sliced again for each part: that would be a copy of the rest, and the time would grow by the square
        self._chunk = io.BytesIO()
        # what was raised while it was read: psycopg2 makes an error of its own of everything
        self.failure: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Return up to so many bytes; none at the end."""
        try:
            part = self._chunk.read(size)
            if not part:
                self._chunk = io.BytesIO(next(self._chunks, b""))
                part = self._chunk.read(size)
            return part
        except BaseException as error:
            self.failure = error
            raise


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


async def awaiting(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Return chunks of rows that may come asynchronously, which takes a greenlet of SQLAlchemy's."""
    while chunk := await greenlet_spawn(next, chunks, b""):
        yield chunk


class PostgreSQLDriver(Driver):
    """Do what all drivers of PostgreSQL do alike."""

    extra = "postgresql"
    syntax = "postgresql"
    language: ClassVar[Language] = "postgresql"
    number_query = "SELECT CAST(pg_current_xact_id_if_assigned() AS text)"
    # Numbers that were not on disk yet are given again after a crash, and by a standby that is promoted. Statistics
    # begin anew after a crash, go on after a shutdown, and are each server's own.
    server_query = "SELECT CAST(extract(epoch FROM stats_reset) AS text) FROM pg_stat_bgwriter"
    outcome_query = (
        "SELECT pg_xact_status(CAST(CAST(? AS text) AS xid8)), CAST(extract(epoch FROM stats_reset) AS text) "
        "FROM pg_stat_bgwriter"
    )

    _config: PostgreSQLConfig

    def url(self) -> URL:
        url = self._config.parsed_url.set(drivername=f"postgresql+{self.name}")
        return url.difference_update_query(["options"])

    def connect_args(self) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {
            "connect_timeout": whole_seconds(config.connect_timeout),
            "application_name": config.application_name,
            "client_encoding": config.client_encoding,
        }
        if options := self._options():
            arguments["options"] = options
        if config.tls is not None:
            arguments["sslmode"] = config.tls
        if config.tls_ca is not None:
            arguments["sslrootcert"] = config.tls_ca
        return arguments

    def _options(self) -> str:
        # given at the start of the connection, they survive ROLLBACK and DISCARD ALL, as SET would not
        given = self._config.parsed_url.query.get("options", "")
        options = [given] if isinstance(given, str) else list(given)
        if self._config.command_timeout is not None:
            options.append(f"-c statement_timeout={math.ceil(self._config.command_timeout * 1000)}")
        if "jit" in self._config.model_fields_set:
            options.append(f"-c jit={'on' if self._config.jit else 'off'}")
        return " ".join(option for option in options if option)

    def check_settings(self, connection: Any) -> None:
        names = [name.replace("-", "_") for name in _SETTING.findall(self._options())]
        if not names:
            return
        with closing(connection.cursor()) as cursor:
            cursor.execute(_DROPPED.format(names=",".join(names)))
            dropped = [name for (name,) in cursor.fetchall()]
        connection.rollback()
        if dropped:
            raise ConfigError(
                f"{', '.join(dropped)} did not arrive at the server: a proxy drops the options of the start, as "
                "PgBouncer with ignore_startup_parameters. Say it of the role: ALTER ROLE ... SET ..."
            )

    def begin(self, connection: Any, options: TransactionOptions | None) -> None:
        # Client-side: the driver's next BEGIN carries them, no round trip of their own.
        if options is not None:
            if options.isolation_level is not None:
                self._set_isolation_level(connection, options.isolation_level)
            if options.read_only:
                self._set_read_only(connection, True)

    def restore(self, connection: Any, options: TransactionOptions) -> None:
        self._set_isolation_level(connection, None)
        self._set_read_only(connection, None)

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        raise NotImplementedError

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        raise NotImplementedError

    def _is_read_only(self, connection: Any) -> bool:
        raise NotImplementedError

    def refuses_writes(self, connection: Any, error: Exception) -> bool:
        if self._is_read_only(connection) or _READ_ONLY_BY_DEFAULT in self._options():
            return False
        # The server tells of each change, since PostgreSQL 14. Before, a transaction that was made read only by a
        # statement looks the same.
        told = [self._parameter(connection, name) for name in ("in_hot_standby", _READ_ONLY_BY_DEFAULT)]
        return None in told or "on" in told

    def _parameter(self, connection: Any, name: str) -> str | None:
        """Return a setting that the server reports by itself; None: this one does not."""
        value: str | None = connection.info.parameter_status(name)
        return value

    def _end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        if how == "commit" and self._is_aborted(connection):
            # PostgreSQL would answer ROLLBACK, which the drivers take for success. To anything else it says why not.
            # The transaction ends all the same.
            try:
                with closing(connection.cursor()) as cursor:
                    self.within(connection, cursor.execute, "SELECT 1")
            finally:
                super()._end(connection, "rollback")
        super()._end(connection, how)

    def _is_aborted(self, connection: Any) -> bool:
        """Tell whether an error has aborted the transaction, without asking the server."""
        return False

    def check_preparing(self) -> None:
        if self._config.prepare_threshold is None:
            raise ConfigError("prepare_threshold=None says that a proxy is in between: nothing can be prepared there")

    def load(self, connection: Any, target: Target, rows: Position) -> None:
        with closing(connection.cursor()) as cursor:
            self.within(connection, cursor.execute, target.select_types())
            types = dict(cursor.fetchall())
        chunks = copy_text(rows, [types.get(name) for name in target.columns or types])

        def copy(taken: Iterable[bytes]) -> None:
            self._copy(connection, target, iter(taken))

        try:
            self.within_each(connection, copy, chunks)
        except Exception as error:
            if rows.bad is None and is_of_a_row(error):
                rows.bad = _line_of(error)
            raise

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        raise NotImplementedError

    def server_version(self, connection: Any) -> str:
        return f"PostgreSQL {connection.info.parameter_status('server_version')}"

    def host(self, connection: Any) -> str | None:
        # libpq's: the config may have left it to PGHOST
        host = connection.info.host
        return None if not host or host.startswith("/") else str(host)

    def is_autocommit(self, connection: Any) -> bool:
        return bool(connection.autocommit)

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        if connection.autocommit != enabled:
            connection.autocommit = enabled

    def discard(self, connection: Any) -> bool:
        connection.rollback()
        self.restore(connection, TransactionOptions())
        self.set_autocommit(connection, True)
        with closing(connection.cursor()) as cursor:
            self._discard_all(cursor)
        self.set_autocommit(connection, self.autocommit)
        return True

    def _discard_all(self, cursor: Any) -> None:
        cursor.execute(f"{PREPARED_BY_HAND}; {ALL_BUT_STATEMENTS}")
        for (name,) in cursor.fetchall():
            cursor.execute(deallocate(name))


class Psycopg2(PostgreSQLDriver):
    """Do it on psycopg2."""

    name = "psycopg2"
    streams_queries_only = True

    def prepare(self, connection: Any) -> None:
        # before SQLAlchemy asks for types, in a transaction otherwise, which a proxy that pools statements refuses
        connection.autocommit = self.autocommit

    def uses_tls(self, connection: Any) -> bool:
        return bool(connection.info.ssl_in_use)

    def _end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        super()._end(connection, how)
        # under autocommit psycopg2's own methods do nothing; 0 is libpq's PQTRANS_IDLE
        if connection.autocommit and connection.info.transaction_status != 0:
            with closing(connection.cursor()) as cursor:
                self.within(connection, cursor.execute, how.upper())

    def _discard_all(self, cursor: Any) -> None:
        cursor.execute("DISCARD ALL")
        # what came for who listened
        cursor.connection.notifies.clear()

    def _is_aborted(self, connection: Any) -> bool:
        return bool(connection.get_transaction_status() == _IN_ERROR)

    def parse_json(self, connection: Any, enabled: bool) -> None:
        from psycopg2 import extras

        loads = None if enabled else str
        extras.register_default_json(connection, loads=loads)
        extras.register_default_jsonb(connection, loads=loads)

    def execute_many(self, cursor: Any, statement: str, rows: list[Any]) -> int | None:
        # psycopg2's own executemany() is a round trip a row
        from psycopg2.extras import execute_values

        insert = _ONE_ROW.match(statement)
        if insert is None:
            return super().execute_many(cursor, statement, rows)
        changed = 0
        for start in range(0, len(rows), _ROWS_A_PAGE):
            page = rows[start : start + _ROWS_A_PAGE]
            self.within(cursor.connection, execute_values, cursor, f"{insert[1]}%s", page, insert[2], _ROWS_A_PAGE)
            changed += cursor.rowcount
        return changed

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        source = _Chunks(chunks)
        try:
            with closing(connection.cursor()) as cursor:
                cursor.copy_expert(target.copy(), source)
        except Exception as error:
            if source.failure is not None:
                raise source.failure from None
            if "error in .read() call" in str(error):
                # a signal came between psycopg2 and the first line of read()
                raise KeyboardInterrupt from error
            raise

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        connection.isolation_level = level

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.readonly = read_only

    def _is_read_only(self, connection: Any) -> bool:
        return bool(connection.readonly)


class Psycopg(PostgreSQLDriver):
    """Do it on psycopg (version 3)."""

    name = "psycopg"
    streams_queries_only = True
    sends_ahead = True
    extra = "psycopg"

    def describe(self, cursor: Any) -> Any:
        # psycopg makes its description anew for each use, in Python
        result = cursor.pgresult
        return None if result is None else [result.fname(position) for position in range(result.nfields)]

    def connect_args(self) -> dict[str, Any]:
        return {**super().connect_args(), "prepare_threshold": self._config.prepare_threshold}

    def uses_tls(self, connection: Any) -> bool:
        return bool(connection.pgconn.ssl_in_use)

    def _is_aborted(self, connection: Any) -> bool:
        return bool(connection.pgconn.transaction_status == _IN_ERROR)

    def parse_json(self, connection: Any, enabled: bool) -> None:
        from psycopg.types.json import set_json_loads

        set_json_loads(json.loads if enabled else _text, connection)

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        with connection.cursor() as cursor, cursor.copy(target.copy()) as copy:
            for chunk in chunks:
                copy.write(chunk)

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        import psycopg

        wanted = None if level is None else psycopg.IsolationLevel[level.replace(" ", "_")]
        connection.isolation_level = wanted

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.read_only = read_only

    def _is_read_only(self, connection: Any) -> bool:
        return bool(connection.read_only)


class PsycopgAsync(Psycopg):
    """Do it on psycopg's asynchronous connections, as SQLAlchemy adapts them."""

    is_async = True

    def connect_args(self) -> dict[str, Any]:
        from sqlspec.adapters.psycopg_async import ShieldedConnection

        return {**super().connect_args(), "async_creator_fn": ShieldedConnection.connect}

    def prepare(self, connection: Any) -> None:
        import psycopg

        from sqlspec.adapters.psycopg_async import PipelineCursor

        # not in the place of somebody's own
        if connection.driver_connection.cursor_factory is psycopg.AsyncCursor:
            connection.driver_connection.cursor_factory = PipelineCursor

    def describe(self, cursor: Any) -> Any:
        return cursor.description

    def uses_tls(self, connection: Any) -> bool:
        return super().uses_tls(connection.driver_connection)

    def _is_aborted(self, connection: Any) -> bool:
        return super()._is_aborted(connection.driver_connection)

    def parse_json(self, connection: Any, enabled: bool) -> None:
        super().parse_json(connection.driver_connection, enabled)

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        async def copy_in(driver_connection: Any) -> None:
            async with driver_connection.cursor() as cursor, cursor.copy(target.copy()) as copy:
                async for chunk in awaiting(chunks):
                    await copy.write(chunk)

        connection.run_async(copy_in)

    def recover(self, connection: Any, cursor: Any) -> bool:
        # psycopg has cancelled the statement, and read what the server said to that
        connection.rollback()
        pgconn = connection.driver_connection.pgconn
        # by their numbers: libpq's PQ_PIPELINE_OFF and PQTRANS_IDLE
        return not connection.closed and pgconn.pipeline_status == 0 and pgconn.transaction_status == 0

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        import psycopg

        connection.set_isolation_level(None if level is None else psycopg.IsolationLevel[level.replace(" ", "_")])

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.set_read_only(read_only)

    def _is_read_only(self, connection: Any) -> bool:
        return super()._is_read_only(connection.driver_connection)

    def _parameter(self, connection: Any, name: str) -> str | None:
        return super()._parameter(connection.driver_connection, name)
