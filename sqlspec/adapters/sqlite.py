"""SQLite: SQLiteConnectionConfig (not pooled), SQLiteConfig (pooled), and the drivers sqlite3 and aiosqlite."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, model_validator
from sqlalchemy import URL
from sqlalchemy.engine import Dialect

from sqlspec.adapters.driver import Driver, ReadCursor, TransactionOptions
from sqlspec.adapters.loading import Converters, Target, value_of
from sqlspec.config.base import NoPoolSyncConfig, SyncDatabaseConfig
from sqlspec.exceptions import ConfigError

__all__ = ["SQLiteConfig", "SQLiteConnectionConfig"]

# seconds
_PAUSE = 0.01
# Seconds that the thread of a connection may take to end, when its loop does.
_LAST_MOMENT = 1.0
# How many values a statement may have, in any build of SQLite.
_VARIABLES = 999

BeginMode = Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"]


class SQLiteConnectionConfig(NoPoolSyncConfig):
    """Describe a SQLite file; each connection is opened for its borrower and closed after.

    Attributes:
        isolation_level: how transactions begin: ``DEFERRED`` (also ``None``), ``IMMEDIATE`` (take the write
            lock at once), ``EXCLUSIVE``.
        check_same_thread: let a connection be used by the thread that opened it only.
        journal_mode: the pragma of this name; ``WAL`` lets readers go on while somebody writes.
        synchronous: the pragma of this name; with ``WAL``, ``NORMAL`` is safe against corruption.
        cache_size: the pragma of this name: pages, or KiB where it is negative.
    """

    adapter: ClassVar[str] = "sqlite"
    schemes: ClassVar[frozenset[str]] = frozenset({"sqlite"})
    _example: ClassVar[str] = "database='app.db'"
    _url_example: ClassVar[str] = "sqlite:///app.db, or database='app.db'"

    check_same_thread: bool = False
    isolation_level: BeginMode | None = None
    journal_mode: Literal["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] = "WAL"
    synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "NORMAL"
    cache_size: int = Field(default=-64000, ge=-(2**31), le=2**31 - 1)

    @model_validator(mode="after")
    def _agree_with_the_driver(self) -> SQLiteConnectionConfig:
        named = self.parsed_url.drivername.partition("+")[2]
        if named and named not in {"pysqlite", "aiosqlite"}:
            raise ConfigError(f"url names the driver {named}: there are pysqlite (sqlite3) and aiosqlite")
        if self.url is not None and self.parsed_url.host is not None and self.host is None:
            raise ConfigError(
                "url has a host: a relative file has three slashes, sqlite:///app.db, an absolute one four"
            )
        given = (self.host, self.port, self.username, self.password)
        if any(value is not None for value in given):
            raise ConfigError("SQLite is a file: it has a database, and no host, port, username or password")
        query = self.parsed_url.query
        if "mode" in query and query.get("uri") != "true":
            raise ConfigError("url has a mode without uri=true: write sqlite:///file:app.db?mode=ro&uri=true")
        if "timeout" in query:
            raise ConfigError("url carries timeout: it is an option of its own, connect_timeout")
        return self

    @property
    def in_memory(self) -> bool:
        """Tell whether the database lives in its one connection."""
        name, query = self.parsed_url.database, self.parsed_url.query
        named = (self.url is not None or self.database is not None) and name in {None, "", ":memory:"}
        return named or str(name).startswith("file::memory:") or query.get("mode") == "memory"

    def driver(self) -> Driver:
        """Return the driver sqlite3."""
        if self.parsed_url.drivername.endswith("+aiosqlite"):
            raise ConfigError("aiosqlite is asynchronous only: leave the driver out of the url")
        return SQLite3(self)

    def async_driver(self) -> Driver:
        """Return the driver aiosqlite."""
        if self.parsed_url.drivername.endswith("+pysqlite"):
            raise ConfigError("pysqlite (sqlite3) is synchronous only: leave the driver out of the url")
        if self.in_memory:
            raise ConfigError("a database in memory is its one connection: asynchronously it would be another database")
        return Aiosqlite(self)


class SQLiteConfig(SQLiteConnectionConfig, SyncDatabaseConfig):
    """Describe a SQLite file and how its connections are pooled.

    ``:memory:`` is one connection, whatever the pool options say: who wants it waits for it.
    """

    @model_validator(mode="after")
    def _pooled_connections_change_threads(self) -> SQLiteConfig:
        if self.check_same_thread:
            raise ConfigError("check_same_thread=True does not go with a pool: use SQLiteConnectionConfig")
        return self

    @model_validator(mode="after")
    def _in_memory_is_one_connection(self) -> SQLiteConfig:
        for name in ("min_pool_size", "max_pool_size"):
            if self.in_memory and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} does not go with a database in memory, which is one connection: leave it out"
                )
        return self


class SQLite3(Driver):
    """Do it on the standard library's sqlite3."""

    name = "sqlite3"
    scheme = "sqlite+pysqlite"
    syntax = "sqlite"
    language = "sqlite"
    isolation_levels = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE", "SERIALIZABLE")
    sends_begin = True
    streams_queries_only = True

    mark = "?"
    converters: ClassVar[Converters] = {
        Enum: value_of,
        bool: int,
        dict: json.dumps,
        list: json.dumps,
        Decimal: str,
        UUID: str,
        datetime: str,
        date: str,
        time: str,
        timedelta: str,
        memoryview: bytes,
    }

    _config: SQLiteConnectionConfig

    def missing(self) -> str | None:
        config = self._config
        if config.url is None and config.database is None:
            return f"{type(config).__name__} names no file: give database='app.db', or ':memory:'"
        if config.in_memory and not isinstance(config, SQLiteConfig):
            return "each connection to :memory: would be another, empty database: use SQLiteConfig"
        return None

    def url(self) -> URL:
        return self._config.parsed_url.set(drivername=self.scheme)

    def connect_args(self) -> dict[str, Any]:
        config = self._config
        return {
            "timeout": config.connect_timeout,
            "check_same_thread": config.check_same_thread,
            "isolation_level": None if config.autocommit else config.isolation_level or "DEFERRED",
        }

    def limit_connect(self, arguments: dict[str, Any], seconds: float) -> None:
        # bounds the wait for the locks that prepare() may need; prepare() sets what holds afterwards
        arguments["timeout"] = min(arguments["timeout"], seconds)

    def connect_error(self, dbapi: Any, error: BaseException) -> BaseException:
        # SQLite names no file, and a relative one is looked for where the process was started
        if str(error) == "unable to open database file" and "uri" not in self._config.parsed_url.query:
            file = Path(self._config.parsed_url.database or "").absolute()
            what = f"{file}" if file.parent.is_dir() else f"there is no folder {file.parent}"
            error.args = (f"{error}: {what}",)
        return error

    def prepare(self, connection: Any) -> None:
        config = self._config
        if config.parsed_url.query.get("mode") != "ro":
            # the mode is kept in the file: only a change needs the lock
            (mode,) = self._execute(connection, "PRAGMA journal_mode").fetchone()
            if mode.upper() != config.journal_mode and not config.in_memory:
                self._set_journal_mode(connection)
        seconds = min(config.connect_timeout, config.command_timeout or config.connect_timeout)
        self._execute(connection, f"PRAGMA busy_timeout = {math.ceil(seconds * 1000)}")
        self._execute(connection, f"PRAGMA synchronous = {config.synchronous}")
        self._execute(connection, f"PRAGMA cache_size = {config.cache_size}")
        if config.command_timeout is not None:
            self._stop_statements_after(connection, config.command_timeout)

    def _set_journal_mode(self, connection: Any) -> None:
        # Where several first connections want this lock at the same moment, SQLite refuses it at once. What is left of
        # the time to connect is the busy timeout.
        (milliseconds,) = self._execute(connection, "PRAGMA busy_timeout").fetchone()
        until = monotonic() + milliseconds / 1000
        while True:
            try:
                self._execute(connection, f"PRAGMA journal_mode = {self._config.journal_mode}")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or monotonic() > until:
                    raise
            self._sleep(connection, _PAUSE)

    def _sleep(self, connection: Any, seconds: float) -> None:
        sleep(seconds)

    def begin(self, connection: Any, options: TransactionOptions | None) -> None:
        level = connection.isolation_level
        if options is not None:
            if options.read_only:
                self._execute(connection, "PRAGMA query_only = ON")
            if options.isolation_level not in {None, "SERIALIZABLE"}:
                level = options.isolation_level
        if level is not None and not self._in_transaction(connection):
            self._execute(connection, f"BEGIN {level}")

    def _execute(self, connection: Any, statement: str) -> Any:
        return connection.execute(statement)

    def _in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction)

    def restore(self, connection: Any, options: TransactionOptions) -> None:
        self._execute(connection, "PRAGMA query_only = OFF")

    def _load_batch(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        width = len(batch[0])
        if set(map(len, batch)) != {width}:
            # a value too many in one row must not become one of the next
            super()._load_batch(cursor, target, insert, batch)
            return
        # executemany() runs a statement for each row, which takes twice as long
        row, step = f"({', '.join('?' * width)})", max(1, _VARIABLES // max(1, width))
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            statement = f"{target.insert_into()} VALUES {', '.join([row] * len(part))}"
            cursor.execute(statement, list(chain.from_iterable(part)))

    def read_to_end(self, cursor: Any) -> Any:
        # a change whose rows are not read yet cannot be committed
        return ReadCursor(cursor)

    def server_version(self, connection: Any) -> str:
        return f"SQLite {self._execute(connection, 'SELECT sqlite_version()').fetchone()[0]}"

    def is_autocommit(self, connection: Any) -> bool:
        return connection.isolation_level is None

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        level = None if enabled else self._config.isolation_level or "DEFERRED"
        if connection.isolation_level != level:
            connection.isolation_level = level

    def discard(self, connection: Any) -> bool:
        # pragmas, attached files, temporary views: only a new connection is without them
        if not self._config.in_memory:
            return False
        connection.rollback()
        objects = self._execute(
            connection, "SELECT type, name FROM sqlite_temp_master WHERE type IN ('table', 'view')"
        ).fetchall()
        for kind, name in objects:
            quoted = name.replace('"', '""')
            self._execute(connection, f'DROP {kind} temp."{quoted}"')
        self.prepare(connection)
        return True

    def _stop_statements_after(self, connection: Any, seconds: float) -> None:
        connection.set_trace_callback((stop := _Stop(seconds)).begun)
        connection.set_progress_handler(stop.is_late, 1000)


class Aiosqlite(SQLite3):
    """Do it on aiosqlite, as SQLAlchemy adapts its connections."""

    name = "aiosqlite"
    extra = "aiosqlite"
    scheme = "sqlite+aiosqlite"
    is_async = True

    def connect_args(self) -> dict[str, Any]:
        # its connections have a thread of their own, which alone touches them
        return {**super().connect_args(), "check_same_thread": False, "async_creator_fn": _connect}

    def errors(self, dbapi: Any) -> Any:
        return dbapi.sqlite

    def _execute(self, connection: Any, statement: str) -> Any:
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor

    def recover(self, connection: Any, cursor: Any) -> bool:
        connection.run_async(_end_statement)
        if cursor is not None:
            # the interrupt is in force as long as a statement is active
            cursor.close()
        connection.rollback()
        return True

    def terminate(self, dialect: Dialect) -> Callable[[Any], None]:
        usual = dialect.do_terminate

        def close_in_a_task(connection: Any) -> None:
            # SQLAlchemy's own waits for the statement, and where it is cancelled in that, leaves a task that never ends
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                # a finaliser in another thread
                usual(connection)
                return
            # a loop that was closed before its time has left them behind, and with them threads
            _closing.difference_update([ended for ended in _closing if ended.get_loop().is_closed()])
            task = loop.create_task(_close(connection.driver_connection))
            # the loop itself keeps tasks weakly
            _closing.add(task)
            task.add_done_callback(_closing.discard)

        return close_in_a_task

    async def finish_closing(self) -> None:
        loop = asyncio.get_running_loop()
        if tasks := [task for task in _closing if task.get_loop() is loop]:
            await asyncio.wait(tasks)

    def _in_transaction(self, connection: Any) -> bool:
        return bool(connection.driver_connection.in_transaction)

    def _sleep(self, connection: Any, seconds: float) -> None:
        connection.run_async(lambda _: asyncio.sleep(seconds))

    def _stop_statements_after(self, connection: Any, seconds: float) -> None:
        stop = _Stop(seconds)
        connection.run_async(lambda driver_connection: driver_connection.set_trace_callback(stop.begun))
        connection.run_async(lambda driver_connection: driver_connection.set_progress_handler(stop.is_late, 1000))


async def _connect(*arguments: Any, **options: Any) -> Any:
    import aiosqlite

    connection = aiosqlite.connect(*arguments, **options)
    # as SQLAlchemy has it: the thread must not keep the process alive
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        # The thread has been told to stop, and answers to this loop, which may end at once. It has nothing else to do.
        connection._thread.join(_LAST_MOMENT)
        raise


_closing: set[asyncio.Task[None]] = set()


async def _close(connection: Any) -> None:
    try:
        await _interrupt(connection)
        # With a cursor that somebody still holds, SQLite closes later, and would keep the lock of a write until then.
        with contextlib.suppress(sqlite3.Error, ValueError):
            await connection.rollback()
        await connection.close()
    except BaseException:
        # The loop ends. The thread must not outlive it, nor keep the process alive; interrupted, it is done soon.
        connection.stop()
        until = monotonic() + _LAST_MOMENT
        while connection._thread.is_alive() and monotonic() < until:
            with contextlib.suppress(ValueError):
                await connection.interrupt()
            connection._thread.join(_PAUSE)
        raise


async def _end_statement(connection: Any) -> None:
    # in a task of its own: whoever waits for it may be cancelled again, and the statement must end all the same
    await asyncio.shield(asyncio.ensure_future(_interrupt(connection)))


async def _interrupt(connection: Any) -> None:
    """Interrupt what the thread of a connection is at, also where it has not begun with it yet."""
    # what is asked of the thread now, comes after the statement
    after = asyncio.ensure_future(connection.cursor())
    # ValueError: it has been closed meanwhile
    with contextlib.suppress(ValueError):
        while not after.done():
            await connection.interrupt()
            await asyncio.wait([after], timeout=0.01)
        await after


class _Stop:
    """Interrupt a statement that still computes so many seconds after it began."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0

    def begun(self, _: str) -> None:
        self._deadline = monotonic() + self._seconds

    def is_late(self) -> bool:
        return monotonic() > self._deadline
