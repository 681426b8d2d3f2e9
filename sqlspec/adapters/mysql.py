"""MySQL and MariaDB: MySQLConfig, and the drivers mysqlclient and asyncmy."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from typing import Any, ClassVar, cast
from uuid import UUID

from pydantic import Field, model_validator
from sqlalchemy import URL

from sqlspec.adapters.driver import (
    Driver,
    ReadCursor,
    TLSMode,
    TransactionOptions,
    check_tls_ca,
    connection_of,
    whole_seconds,
)
from sqlspec.adapters.loading import Converters, Target, value_of
from sqlspec.config.base import PoolConfig, SyncDatabaseConfig
from sqlspec.exceptions import ConfigError

__all__ = ["MySQLConfig", "MySQLPoolConfig"]

# What would undo a protection, or be lost with a reset.
_SHUT = {
    "client_flag": "undo multi_statements=False: leave it out",
    "multi_statements": "let one string run many statements: leave it out",
    "local_infile": "let the server read files of this machine: leave it out",
    "init_command": "not run again after a reset: use sql_mode, or SET in the session",
}
_NO_BACKSLASHES = "under NO_BACKSLASH_ESCAPES placeholders cannot be told from text: leave it out"
_MODES = {
    "disable": "DISABLED",
    "require": "REQUIRED",
    "verify-ca": "VERIFY_CA",
    "verify-full": "VERIFY_IDENTITY",
}


class MySQLPoolConfig(PoolConfig):
    """Say what MySQL and MariaDB have beyond the common pool options.

    Attributes:
        charset: the character set of the connection.
        sql_mode: the session's ``sql_mode``; empty: the server's.
        ping_on_checkout: the same switch as ``pool_pre_ping``; off in either is off.
        pool_recycle: must stay below the server's ``wait_timeout``.
    """

    charset: str = Field(
        default="utf8mb4", pattern=r"^[A-Za-z0-9_]+$", description="the name of a character set, such as utf8mb4"
    )
    sql_mode: str = Field(
        default="TRADITIONAL",
        pattern=r"^[A-Z0-9_]*(,[A-Z0-9_]+)*$",
        description="names of modes in capitals, with commas between, such as TRADITIONAL,ANSI_QUOTES",
    )
    ping_on_checkout: bool = True
    pool_recycle: int = Field(default=3600, ge=-1)


class MySQLConfig(MySQLPoolConfig, SyncDatabaseConfig):
    """Describe a MySQL or MariaDB database and how its connections are pooled.

    The host ``localhost`` means the Unix socket to the client library; write ``127.0.0.1`` for TCP.

    Attributes:
        tls: ``disable``, ``require`` (encrypted, nobody's identity checked), ``verify-ca``, ``verify-full``
            (to the MariaDB client library the same: both check the name). Checked after connecting: the client
            library alone would go on in plain text.
        tls_ca: file of the trusted certificates.
    """

    adapter: ClassVar[str] = "mysql"
    schemes: ClassVar[frozenset[str]] = frozenset({"mysql", "mariadb"})

    tls: TLSMode | None = None
    tls_ca: str | None = None

    @model_validator(mode="after")
    def _agree_with_the_driver(self) -> MySQLConfig:
        named = self.parsed_url.drivername.partition("+")[2]
        if named and named not in {"mysqldb", "asyncmy"}:
            raise ConfigError(f"url names the driver {named}: there are mysqldb (mysqlclient) and asyncmy")
        for key in self.parsed_url.query:
            if key.startswith("ssl"):
                raise ConfigError(f"url carries {key}: use tls='verify-full' and tls_ca='…', which are enforced")
            if key in _SHUT:
                raise ConfigError(f"url carries {key}, which would {_SHUT[key]}")
        check_tls_ca(self.tls_ca, self.tls)
        if "NO_BACKSLASH_ESCAPES" in self.sql_mode.split(","):
            raise ConfigError(f"sql_mode: {_NO_BACKSLASHES}")
        if {"pool_pre_ping", "ping_on_checkout"} <= self.model_fields_set and (
            self.pool_pre_ping != self.ping_on_checkout
        ):
            raise ConfigError("ping_on_checkout and pool_pre_ping are one switch and contradict each other: keep one")
        return self

    def driver(self) -> Driver:
        """Return the driver mysqlclient."""
        if self.parsed_url.drivername.endswith("+asyncmy"):
            raise ConfigError("asyncmy is asynchronous only: leave the driver out of the url")
        return MySQLClient(self)

    def async_driver(self) -> Driver:
        """Return the driver asyncmy."""
        if self.parsed_url.drivername.endswith("+mysqldb"):
            raise ConfigError("mysqldb (mysqlclient) is synchronous only: leave the driver out of the url")
        return Asyncmy(self)


_READ_ONLY_TRANSACTION = 1792


def _without_zone(value: datetime) -> datetime:
    """Return the time in UTC: MySQL's DATETIME has no zone, and its drivers would drop it."""
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


class _MySQLDriver(Driver):
    syntax = "mysql"
    language = "mysql"
    autocommit_stays = True
    scheme: ClassVar[str]
    converters: ClassVar[Converters] = {
        Enum: value_of,
        dict: json.dumps,
        list: json.dumps,
        UUID: str,
        memoryview: bytes,
        bytearray: bytes,
        datetime: _without_zone,
    }

    _config: MySQLConfig

    def missing(self) -> str | None:
        url = self.url()
        if url.host or "unix_socket" in url.query:
            return None
        return "MySQLConfig names no server: give url='mysql://…', host='…', or unix_socket in the url"

    def url(self) -> URL:
        url = self._config.parsed_url.set(drivername=self.scheme)
        if url.host is not None and url.host.startswith("/"):
            return url._replace(host=None).update_query_dict({"unix_socket": url.host})
        return url

    def connect_args(self) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {
            "connect_timeout": whole_seconds(config.connect_timeout),
            # no files of this machine for a server that asks for them
            "local_infile": 0,
            "charset": config.charset,
        }
        return arguments

    def timeout_error(self, dbapi: Any, problem: str) -> Exception:
        # the client library's number for a server that cannot be reached
        return cast("Exception", dbapi.OperationalError(2003, problem))

    def prepare(self, connection: Any) -> None:
        self._prepare(connection, [])

    def _prepare(self, connection: Any, assignments: list[str]) -> None:
        values: list[str | float] = []
        if self._config.sql_mode:
            assignments.append("sql_mode = %s")
            values.append(self._config.sql_mode)
        seconds = self._config.command_timeout
        if seconds is not None:
            if "MariaDB" in self._server_info(connection):
                assignments.append("max_statement_time = %s")
                # its unit is a microsecond, and 0 would mean for ever
                values.append(max(seconds, 0.001))
            else:
                assignments.append("max_execution_time = %s")
                values.append(math.ceil(seconds * 1000))
        with closing(connection.cursor()) as cursor:
            if assignments:
                cursor.execute("SET " + ", ".join(assignments), values)
            if not self._config.sql_mode:
                cursor.execute("SELECT @@sql_mode")
                if "NO_BACKSLASH_ESCAPES" in cursor.fetchone()[0].split(","):
                    raise self._errors(connection).ProgrammingError(
                        f"the server's sql_mode: {_NO_BACKSLASHES}, with sql_mode='…'"
                    )
        # The MariaDB client library goes on in plain text where the server offers no TLS.
        if self._config.tls not in {None, "disable"} and not self.uses_tls(connection):
            raise self._errors(connection).OperationalError(
                2026, f"tls={self._config.tls!r}, but the server offers no TLS"
            )

    def uses_tls(self, connection: Any) -> bool:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            row = cursor.fetchone()
        return row is not None and bool(row[1])

    def host(self, connection: Any) -> str | None:
        raise NotImplementedError

    def _server_info(self, connection: Any) -> str:
        raise NotImplementedError

    def _errors(self, connection: Any) -> Any:
        """Return what has the driver's exceptions."""
        raise NotImplementedError

    def _run(self, connection: Any, statement: str) -> None:
        raise NotImplementedError

    def server_version(self, connection: Any) -> str:
        version = self._server_info(connection)
        # MariaDB puts 5.5.5- before its version for old replicas
        return version.removeprefix("5.5.5-") if "MariaDB" in version else f"MySQL {version}"

    def begin(self, connection: Any, options: TransactionOptions | None) -> None:
        if options is None:
            return
        if options.isolation_level is not None:
            # for the next transaction only: nothing to undo
            self._run(connection, f"SET TRANSACTION ISOLATION LEVEL {options.isolation_level}")
        if options.read_only:
            # for the session: for the next transaction only, it would let DDL through, which commits first
            self._run(connection, "SET SESSION TRANSACTION READ ONLY")

    def restore(self, connection: Any, options: TransactionOptions) -> None:
        if options.read_only:
            self._run(connection, "SET SESSION TRANSACTION READ WRITE")

    def refuses_writes(self, connection: Any, error: Exception) -> bool:
        if error.args[0] != _READ_ONLY_TRANSACTION:
            return True
        # a statement may have asked for it; the server does not say so by itself
        try:
            with closing(connection.cursor()) as cursor:
                self.within(connection, cursor.execute, "SELECT @@read_only")
                return cursor.fetchone()[0] not in {0, "0", "OFF"}
        except self._errors(connection).Error:
            # it does not live any more
            return True

    def _load_batch(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        for kind in set(map(type, chain.from_iterable(batch))):
            if not issubclass(kind, _KNOWN):
                # the drivers would take what str() makes of it
                raise TypeError(f"MySQL has nothing for values of type {kind.__name__}: convert them")
        self._insert(cursor, target, insert, batch)

    def _insert(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        raise NotImplementedError

    def is_autocommit(self, connection: Any) -> bool:
        return bool(connection.get_autocommit())

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        if connection.get_autocommit() != enabled:
            self.within(connection, connection.autocommit, enabled)


class MySQLClient(_MySQLDriver):
    """Do it on mysqlclient."""

    name = "MySQLdb"
    extra = "mysql"
    scheme = "mysql+mysqldb"
    closes_once = True

    def connect_args(self) -> dict[str, Any]:
        config = self._config
        # one statement a call
        arguments = {**super().connect_args(), "multi_statements": False}
        if config.tls is not None:
            arguments["ssl_mode"] = _MODES[config.tls]
            if config.tls_ca is not None:
                arguments["ssl"] = {"ca": config.tls_ca}
        return arguments

    def check_preparing(self) -> None:
        raise ConfigError("mysqlclient has no prepared statements: execute the statement itself")

    def _insert(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        # The driver's own executemany() spends most of the time on looking for the encoder of each value. What is no
        # plain number or text is left to it.
        connection = cursor.connection
        encode, literal, encoding = connection.string_literal, connection.literal, connection.encoding
        encoders: dict[type, Callable[[Any], bytes]] = {
            int: lambda value: b"%d" % value,
            str: lambda value: encode(value.encode(encoding)),
            type(None): lambda _: b"NULL",
        }
        into = f"{target.insert_into()} VALUES ".encode(encoding)
        rows: list[bytes] = []
        size = 0
        for row in batch:
            rows.append(b"(" + b",".join([encoders.get(type(v), literal)(v) for v in row]) + b")")
            size += len(rows[-1])
            if size > _BYTES_A_STATEMENT:
                self.within(connection, connection.query, into + b",".join(rows))
                rows, size = [], 0
        if rows:
            self.within(connection, connection.query, into + b",".join(rows))

    def read_to_end(self, cursor: Any) -> Any:
        self.skip_further(cursor)
        return cursor

    def skip_further(self, cursor: Any) -> None:
        # The cursor has read its rows. The connection's own methods leave them there, as nextset() does not; and an
        # error is raised here, which SQLAlchemy would only log when it closes the cursor.
        while cursor.connection.next_result() == 0:
            cursor.connection.discard_result()

    def host(self, connection: Any) -> str | None:
        host, _, way = connection.get_host_info().partition(" via ")
        return str(host) if way.startswith("TCP") else None

    def _server_info(self, connection: Any) -> str:
        return str(connection.get_server_info())

    def _errors(self, connection: Any) -> Any:
        return connection

    def _run(self, connection: Any, statement: str) -> None:
        self.within(connection, connection.query, statement)

    def is_autocommit(self, connection: Any) -> bool:
        # of a connection that is closed it cannot be asked
        return bool(connection.open) and super().is_autocommit(connection)

    def discard(self, connection: Any) -> bool:
        url, charset = self._config.parsed_url, self._config.charset
        # the client library's is as at the beginning afterwards, the driver's is not
        is_other_charset = connection.character_set_name() != charset
        # COM_CHANGE_USER rolls back and clears the session; the driver has no COM_RESET_CONNECTION
        connection.change_user(url.username or "", self._config.reveal_password() or "", url.database or "")
        if is_other_charset:
            connection.set_character_set(charset)
        self._prepare(connection, [f"NAMES {charset}", f"autocommit = {int(self.autocommit)}"])
        return True


_KNOWN = (int, float, Decimal, str, bytes, bytearray, date, time, timedelta, set, frozenset, type(None))
# Far below any max_allowed_packet, which ends the connection.
_BYTES_A_STATEMENT = 500_000
# With rows of up to 4 kB asyncmy makes one statement of them.
_ROWS_A_STATEMENT = 250
# COM_SET_OPTION, and its number for one statement a call
_SET_OPTION, _ONE_STATEMENT = 0x1B, b"\x01\x00"


class Asyncmy(_MySQLDriver):
    """Do it on asyncmy, as SQLAlchemy adapts its connections."""

    name = "asyncmy"
    extra = "asyncmy"
    scheme = "mysql+asyncmy"
    is_async = True
    sends_ahead = True

    def connect_args(self) -> dict[str, Any]:
        arguments = super().connect_args()
        if self._config.tls not in {None, "disable"}:
            arguments["ssl"] = self._tls_context()
        return arguments

    def password(self, secret: str) -> bytes:
        # of text it would send Latin-1, where the server and all other clients have UTF-8
        return secret.encode()

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._config.tls_ca)
        context.check_hostname = self._config.tls == "verify-full"
        if self._config.tls == "require":
            context.verify_mode = ssl.CERT_NONE
        return context

    def prepare(self, connection: Any) -> None:
        connection.run_async(_allow_one_statement_a_call)
        super().prepare(connection)

    def host(self, connection: Any) -> str | None:
        return None if self.url().host is None else self._config.parsed_url.host

    def _server_info(self, connection: Any) -> str:
        return str(connection.driver_connection.get_server_info())

    def _errors(self, connection: Any) -> Any:
        return connection.dbapi

    def _run(self, connection: Any, statement: str) -> None:
        with closing(connection.cursor()) as cursor:
            self.within(connection, cursor.execute, statement)

    def read_to_end(self, cursor: Any) -> Any:
        if not _has_further(cursor):
            return cursor
        # what SQLAlchemy says of the first result set it asks asyncmy for, which would tell of the last one
        first = ReadCursor(cursor)
        self.skip_further(cursor)
        return first

    def skip_further(self, cursor: Any) -> None:
        if not _has_further(cursor):
            return
        # SQLAlchemy has read the first result set, and closes cursors without a look at the others
        further = cursor._cursor

        async def read(_connection: Any) -> None:
            while await further.nextset():
                pass

        cursor._adapt_connection.run_async(read)

    def _insert(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        connection = connection_of(cursor)
        for start in range(0, len(batch), _ROWS_A_STATEMENT):
            self.within(connection, cursor.executemany, insert, batch[start : start + _ROWS_A_STATEMENT])

    def discard(self, connection: Any) -> bool:
        # asyncmy has neither COM_CHANGE_USER nor COM_RESET_CONNECTION
        return False


def _has_further(cursor: Any) -> bool:
    """Tell whether the server has said that there is more behind the rows that have been read."""
    result = cursor._cursor._result
    return result is not None and bool(result.has_next)


async def _allow_one_statement_a_call(connection: Any) -> None:
    """Undo what asyncmy asks for at each connect, and has no option against."""
    await connection._execute_command(_SET_OPTION, _ONE_STATEMENT)
    await connection.read_packet()
