"""PostgreSQL: PostgreSQLConfig, and the drivers psycopg2, psycopg and asyncpg."""

from __future__ import annotations

import math
import re
import ssl
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from sqlalchemy import URL
from sqlalchemy.util import greenlet_spawn

from sqlspec.adapters.driver import Driver, Language, TLSMode, TransactionOptions, check_tls_ca, whole_seconds
from sqlspec.adapters.loading import Position, Target, copy_text
from sqlspec.config.base import PoolConfig, SyncDatabaseConfig
from sqlspec.exceptions import ConfigError, SQLSpecWarning

__all__ = ["PostgreSQLConfig", "PostgreSQLPoolConfig"]


class PostgreSQLPoolConfig(PoolConfig):
    """Say what PostgreSQL has beyond the common pool options.

    Attributes:
        application_name: the name in ``pg_stat_activity``.
        client_encoding: the encoding of text on the wire.
        prepare_threshold: psycopg prepares a statement after this many uses, ``None``: never (for
            transaction-pooling proxies). psycopg2 prepares nothing, and a warning says so.
        jit: ``False`` switches just-in-time compilation off; ``True``, given, on; left out, the server decides.
    """

    application_name: str = Field(
        default="sqlspec", pattern=r"^[\x20-\x7e]{0,63}$", description="up to 63 printable ASCII characters"
    )
    client_encoding: str = Field(
        default="utf8", pattern=r"^[A-Za-z0-9_-]+$", description="the name of an encoding, such as utf8"
    )
    prepare_threshold: int | None = Field(default=5, ge=0)
    jit: bool = True


class PostgreSQLConfig(PostgreSQLPoolConfig, SyncDatabaseConfig):
    """Describe a PostgreSQL database and how its connections are pooled.

    Without a URL or parts, libpq's own ``PG*`` variables and defaults apply.

    Attributes:
        tls: ``disable``, ``require`` (encrypted, nobody's identity checked), ``verify-ca``, ``verify-full``.
            Left out, libpq decides (``PGSSLMODE``, else ``prefer``).
        tls_ca: file of the trusted certificates, or ``system``.
    """

    adapter: ClassVar[str] = "postgresql"
    schemes: ClassVar[frozenset[str]] = frozenset({"postgresql", "postgres"})

    tls: TLSMode | None = None
    tls_ca: str | None = None

    @model_validator(mode="after")
    def _agree_with_the_driver(self) -> PostgreSQLConfig:
        named = self.parsed_url.drivername.partition("+")[2]
        if named and named not in {"psycopg2", "psycopg", "asyncpg"}:
            raise ConfigError(f"url names the driver {named}: there are psycopg2, psycopg and asyncpg")
        if self.tls is not None and "sslmode" in self.parsed_url.query:
            raise ConfigError("tls and the url's sslmode are both given: keep one")
        mode = self.tls or self.parsed_url.query.get("sslmode")
        if "ssl" in self.parsed_url.query:
            raise ConfigError("url carries ssl: use tls='verify-full', which every driver understands")
        check_tls_ca(self.tls_ca, mode)
        host = self.parsed_url.host or str(self.parsed_url.query.get("host", ""))
        if host.startswith("/") and self.tls not in {None, "disable"}:
            raise ConfigError(f"tls={self.tls!r} on a Unix socket: libpq does not encrypt those, leave it out")
        if named in {"", "psycopg2"} and "prepare_threshold" in self.model_fields_set and self.prepare_threshold:
            warnings.warn(
                "prepare_threshold has no effect: psycopg2 prepares no statements. A url that begins with "
                "postgresql+psycopg:// uses psycopg, which does.",
                SQLSpecWarning,
                stacklevel=4,
            )
        return self

    def driver(self) -> Driver:
        """Return the driver that the URL names, psycopg2 where it names none."""
        named = self.parsed_url.drivername.partition("+")[2]
        if named == "asyncpg":
            raise ConfigError(
                "asyncpg is asynchronous only: leave the driver out of the url, or write postgresql+psycopg2://"
            )
        return Psycopg(self) if named == "psycopg" else Psycopg2(self)

    def async_driver(self) -> Driver:
        """Return the asynchronous driver that the URL names, asyncpg where it names none."""
        named = self.parsed_url.drivername.partition("+")[2]
        if named == "psycopg2":
            raise ConfigError(
                "psycopg2 is synchronous only: leave the driver out of the url, or write postgresql+psycopg://"
            )
        return PsycopgAsync(self) if named == "psycopg" else Asyncpg(self)


# As DISCARD ALL, which would take along what asyncpg and psycopg have prepared by themselves: no state of the session.
_ALL_BUT_STATEMENTS = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    "DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)

# the types json and jsonb
_JSON = frozenset({114, 3802})
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


class _Chunks:
    """Be a file that COPY reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to so many bytes; none at the end."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


async def _awaiting(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Return chunks of rows that may come asynchronously, which takes a greenlet of SQLAlchemy's."""
    while chunk := await greenlet_spawn(next, chunks, b""):
        yield chunk


class _PostgreSQLDriver(Driver):
    extra = "postgresql"
    syntax = "postgresql"
    language: ClassVar[Language] = "postgresql"

    _discard_all = _ALL_BUT_STATEMENTS

    _config: PostgreSQLConfig

    def __init__(self, config: PostgreSQLConfig) -> None:
        self._config = config

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

    def check_preparing(self) -> None:
        if self._config.prepare_threshold is None:
            raise ConfigError("prepare_threshold=None says that a proxy is in between: nothing can be prepared there")

    def load(self, connection: Any, target: Target, rows: Position) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(target.select_nothing())
            found = enumerate(cursor.description or ())
            json_columns = frozenset(position for position, column in found if column[1] in _JSON)
        try:
            self._copy(connection, target, copy_text(rows, json_columns))
        except Exception as error:
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

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        if connection.autocommit != enabled:
            connection.autocommit = enabled

    def discard(self, connection: Any) -> bool:
        connection.rollback()
        before = connection.autocommit
        connection.autocommit = True
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(self._discard_all)
        finally:
            connection.autocommit = before
        return True


class Psycopg2(_PostgreSQLDriver):
    """Do it on psycopg2."""

    name = "psycopg2"
    _discard_all = "DISCARD ALL"

    def uses_tls(self, connection: Any) -> bool:
        return bool(connection.info.ssl_in_use)

    def end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        super().end(connection, how)
        # under autocommit psycopg2's own methods do nothing; 0 is libpq's PQTRANS_IDLE
        if connection.autocommit and connection.info.transaction_status != 0:
            with closing(connection.cursor()) as cursor:
                cursor.execute(how.upper())

    def execute_many(self, cursor: Any, statement: str, rows: list[Any]) -> int | None:
        # psycopg2's own executemany() is a round trip a row
        from psycopg2.extras import execute_values

        insert = _ONE_ROW.match(statement)
        if insert is None:
            return super().execute_many(cursor, statement, rows)
        changed = 0
        for start in range(0, len(rows), _ROWS_A_PAGE):
            execute_values(cursor, f"{insert[1]}%s", rows[start : start + _ROWS_A_PAGE], insert[2], _ROWS_A_PAGE)
            changed += cursor.rowcount
        return changed

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.copy_expert(target.copy(), _Chunks(chunks))

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        connection.isolation_level = level

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.readonly = read_only


class Psycopg(_PostgreSQLDriver):
    """Do it on psycopg (version 3)."""

    name = "psycopg"
    extra = "psycopg"

    def describe(self, cursor: Any) -> Any:
        # psycopg makes its description anew for each use, in Python
        result = cursor.pgresult
        return None if result is None else [result.fname(position) for position in range(result.nfields)]

    def connect_args(self) -> dict[str, Any]:
        return {**super().connect_args(), "prepare_threshold": self._config.prepare_threshold}

    def uses_tls(self, connection: Any) -> bool:
        return bool(connection.pgconn.ssl_in_use)

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


class PsycopgAsync(Psycopg):
    """Do it on psycopg's asynchronous connections, as SQLAlchemy adapts them."""

    is_async = True

    def describe(self, cursor: Any) -> Any:
        return cursor.description

    def uses_tls(self, connection: Any) -> bool:
        return super().uses_tls(connection.driver_connection)

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        async def copy_in(driver_connection: Any) -> None:
            async with driver_connection.cursor() as cursor, cursor.copy(target.copy()) as copy:
                async for chunk in _awaiting(chunks):
                    await copy.write(chunk)

        connection.run_async(copy_in)

    def recover(self, connection: Any, cursor: Any) -> bool:
        # psycopg has cancelled the statement, and read what the server said to that
        connection.rollback()
        return not connection.closed

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        import psycopg

        connection.set_isolation_level(None if level is None else psycopg.IsolationLevel[level.replace(" ", "_")])

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.set_read_only(read_only)


_HOSTS = ("host", "port")


class Asyncpg(_PostgreSQLDriver):
    """Do it on asyncpg, as SQLAlchemy adapts its connections."""

    name = "asyncpg"
    extra = "asyncpg"
    language = "postgresql $1"
    is_async = True

    def url(self) -> URL:
        # its query is libpq's, which asyncpg understands in a DSN only; SQLAlchemy finds several hosts there
        url = super().url()
        return url.set(query={key: value for key, value in url.query.items() if key in _HOSTS})

    def connect_args(self) -> dict[str, Any]:
        config = self._config
        settings = {"application_name": config.application_name, "client_encoding": config.client_encoding}
        if options := self._options():
            settings["options"] = options
        query = {key: value for key, value in config.parsed_url.query.items() if key not in {"options", *_HOSTS}}
        if config.tls is not None:
            query["sslmode"] = config.tls
        if config.tls_ca is not None:
            query["sslrootcert"] = config.tls_ca
        arguments: dict[str, Any] = {"timeout": config.connect_timeout, "server_settings": settings}
        if config.prepare_threshold is None:
            # a proxy hands each transaction to another server connection, which knows no statement prepared before
            arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        if config.tls_ca == "system":
            # libpq's word, which asyncpg would take for a file
            del query["sslrootcert"]
            arguments["ssl"] = ssl.create_default_context()
            arguments["ssl"].check_hostname = query["sslmode"] == "verify-full"
        return {**arguments, "dsn": URL.create("postgresql", query=query).render_as_string()}

    def limit_connect(self, arguments: dict[str, Any], seconds: float) -> None:
        arguments["timeout"] = min(arguments["timeout"], seconds)

    def end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        super().end(connection, how)
        # what was begun in a string, SQLAlchemy's adapter does not know of
        if connection.driver_connection.is_in_transaction():
            connection.run_async(lambda driver_connection: driver_connection.execute(how.upper()))

    def uses_tls(self, connection: Any) -> bool:
        return bool(self._value(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))

    def host(self, connection: Any) -> str | None:
        host = self._value(connection, "SELECT host(inet_server_addr())")
        return None if host is None else str(host)

    def server_version(self, connection: Any) -> str:
        return f"PostgreSQL {self._value(connection, 'SHOW server_version')}"

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        async def copy_in(driver_connection: Any) -> None:
            await driver_connection.copy_to_table(
                target.table,
                schema_name=target.schema,
                columns=target.columns or None,
                source=_awaiting(chunks),
                format="text",
            )

        try:
            connection.run_async(copy_in)
        except connection.dbapi.asyncpg.PostgresError as error:
            # into PEP 249's, as the adapter does with those of its own calls
            connection._handle_exception(error)

    def recover(self, connection: Any, cursor: Any) -> bool:
        # Asyncpg has asked the server to cancel, and waits for the answer before anything else. Without a transaction
        # it was BEGIN or COMMIT that was cancelled: nobody knows what the next transaction would be in.
        # (SQLAlchemy 2.0 knows by _started, 2.1 by _transaction)
        if not getattr(connection, "_started", connection._transaction is not None):
            if not connection.autocommit:
                return False
            # under autocommit, a transaction may have been begun in a string
            connection.run_async(lambda driver_connection: driver_connection.execute("ROLLBACK"))
        connection.rollback()
        return True

    def follow_schema(self, cursor: Any, dialect: Any) -> None:
        # as SQLAlchemy's own execution does it
        cursor._invalidate_schema_cache_asof = dialect._invalidate_schema_cache_asof

    def note(self, error: BaseException, dialect: Any) -> None:
        if isinstance(error, (dialect.dbapi.InvalidCachedStatementError, dialect.dbapi.InternalServerError)):
            dialect._invalidate_schema_cache()

    def discard(self, connection: Any) -> bool:
        connection.rollback()
        connection.run_async(lambda driver_connection: driver_connection.execute(self._discard_all))
        return True

    def _value(self, connection: Any, statement: str) -> Any:
        # past the adapter, which would begin a transaction
        return connection.run_async(lambda driver_connection: driver_connection.fetchval(statement))

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        # the level of an autocommit connection is that it has no transactions
        if connection.isolation_level != "autocommit":
            connection.isolation_level = None if level is None else level.lower().replace(" ", "_")

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.readonly = bool(read_only)

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        # the adapter's own autocommit=False goes back to what the engine began with, which may be autocommit
        if connection.autocommit != enabled:
            connection.isolation_level = "autocommit" if enabled else None
