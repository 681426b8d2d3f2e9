"""PooledConnectionManager: the engines of one config, built when they are first needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar, Unpack

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver, TransactionOptions, driver_for
from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig, PoolConfig
from sqlspec.engine import build_engine
from sqlspec.exceptions import ConfigError, ConnectionTimeout, PoolClosed, PoolTimeout
from sqlspec.pool import (
    AsyncFairQueuePool,
    FairQueuePool,
    Holder,
    PoolStats,
    apart_from_forks,
    checkout_deadline,
    sleep_in_task,
    tell_of_forks,
)
from sqlspec.resilience import RetryOptions
from sqlspec.session import AsyncConnection, AsyncSession, Connection, Session
from sqlspec.session.transaction import Sessions, run_transaction

__all__ = ["PooledConnectionManager"]

T = TypeVar("T")

_logger = logging.getLogger("sqlspec")


def left_of(timeout: float | None, begin: float) -> float | None:
    """Return what is left of a timeout that runs since ``begin``; a moment at least, since 0 is no timeout."""
    return None if timeout is None else max(0.001, timeout - (time.monotonic() - begin))


class EngineSource:
    """Check connections out of one engine: that of the threads, or that of the tasks of one event loop."""

    def __init__(self, manager: PooledConnectionManager, is_async: bool) -> None:
        self._manager = manager
        self.driver: Driver = driver_for(manager.config, is_async=is_async)
        # a loop cannot wait for a fork: the fork may wait for its tasks
        self.engine: Engine = apart_from_forks(
            None if is_async else time.sleep, build_engine, manager.config, manager.name, is_async=is_async
        )
        if isinstance(self.engine.pool, FairQueuePool) and manager.limits is not None:
            self.engine.pool.resize(*manager.limits)
        if is_async:
            self._watch = _close_with_the_loop(self.engine.pool, self.driver)
            # as far as its yield, where it waits for the end of the running loop
            with contextlib.suppress(StopIteration):
                anext(self._watch).__await__().send(None)

    @property
    def successor(self) -> EngineSource | None:
        """Return what serves instead, where the config has been replaced."""
        manager = self._manager.successor
        return None if manager is None else manager.source(is_async=self.driver.is_async)

    def get_connection(self, timeout: float | None) -> Connection:
        """Check a DB-API connection out; errors are the driver's.

        Raises:
            ConnectionTimeout: none became available in time; ``phase`` tells where the time went.
        """
        begin = 0.0 if timeout is None else time.monotonic()
        try:
            proxy = self.engine.pool.connect() if timeout is None else self._connect_within(timeout)
        except PoolTimeout as error:
            raise self._named(error) from error.__cause__
        except PoolClosed:
            successor = self.successor
            if successor is None:
                raise
            return successor.get_connection(left_of(timeout, begin))
        return Connection(proxy, self.driver, self.engine.dialect)

    def get_read_only_connection(self, timeout: float) -> Connection:
        """Check a DB-API connection out whose writes the server refuses, until it comes back.

        Raises:
            ConnectionTimeout: none became available in time.
        """
        begin = time.monotonic()
        connection = self.get_connection(timeout)
        connection._become_read_only(left_of(timeout, begin) or timeout)
        return connection

    def check_out(self, timeout: float | None) -> PoolProxiedConnection:
        """Check a connection out for a session: errors of the driver become SQLAlchemy's.

        Raises:
            ConnectionTimeout: none became available in time.
            sqlalchemy.exc.DBAPIError: the database refused the connection.
        """
        try:
            return self.engine.pool.connect() if timeout is None else self._connect_within(timeout)
        except PoolTimeout as error:
            raise self._named(error) from error.__cause__
        except self.engine.dialect.loaded_dbapi.Error as error:
            sqlalchemy.Connection._handle_dbapi_exception_noconnection(error, self.engine.dialect, self.engine)

    def _named(self, error: PoolTimeout) -> ConnectionTimeout:
        """Turn the pool's error into one that names the config."""
        phase = error.phase if isinstance(error, ConnectionTimeout) else "wait"
        return ConnectionTimeout(f"{self._manager.name}: {error}", phase)

    def _connect_within(self, timeout: float) -> PoolProxiedConnection:
        if not (isinstance(timeout, (int, float)) and 0 < timeout < threading.TIMEOUT_MAX):
            raise ConfigError(f"timeout={timeout!r}: give seconds above 0")
        deadline = time.monotonic() + timeout
        token = checkout_deadline.set(deadline)
        try:
            return self.engine.pool.connect()
        except (self.engine.dialect.loaded_dbapi.Error, TimeoutError) as error:
            # libpq gives up a little early
            if time.monotonic() < deadline - 0.05:
                raise
            raise ConnectionTimeout(f"connecting took longer than {timeout:.3g} s", "connect") from error
        finally:
            checkout_deadline.reset(token)


async def _close_with_the_loop(pool: Pool, driver: Driver) -> AsyncGenerator[None]:
    """Close the pool of an event loop when that ends: a loop that is shut down closes the generators begun in it."""
    try:
        yield
    finally:
        if isinstance(pool, AsyncFairQueuePool):
            await greenlet_spawn(pool.close)
        await _finish(pool, driver)


async def _finish(pool: Pool, driver: Driver) -> None:
    """Wait until what goes on in the running loop is done: it would be left behind by a loop that ends."""
    if isinstance(pool, AsyncFairQueuePool):
        await pool.finish()
    await driver.finish_closing()


class PooledConnectionManager:
    """Hold the engines and the pools of one config: one for all threads, and one for each event loop.

    Thread-safe; nothing connects before it is asked to.
    """

    def __init__(self, config: NoPoolSyncConfig, name: str = "default") -> None:
        self.config = config
        self.name = name
        # what has taken the name of this one over: whoever comes late goes there
        self.successor: PooledConnectionManager | None = None
        # limits other than the config's
        self.limits: tuple[int, int | None] | None = None
        # Guards _sources and _closed. Building an engine imports the driver and connects to nothing.
        self._lock = threading.Lock()
        # None stands for the threads
        self._sources: dict[asyncio.AbstractEventLoop | None, EngineSource] = {}
        self._closed = False
        tell_of_forks(self)

    def __repr__(self) -> str:
        pools = ", ".join(repr(pool) for pool in self.pools())
        guard = "" if self.config.breaker is None else f", {self.config.breaker!r}"
        return (
            f"<PooledConnectionManager {self.name!r}, {'closed' if self._closed else pools or 'not used yet'}{guard}>"
        )

    def start_over(self) -> None:
        """Know of no event loop and no lock: those are the parent process's own."""
        self._lock = threading.Lock()
        self._sources = {loop: source for loop, source in self._sources.items() if loop is None}

    def source(self, *, is_async: bool = False) -> EngineSource:
        """Return where connections for threads come from, or those for the running event loop.

        The first caller has it built; the successor has it where there is one.

        Raises:
            PoolClosed: after `close`.
            ConfigError: the driver is not installed, or the URL names one of the other kind.
        """
        loop = _running_loop() if is_async else None
        source = self._sources.get(loop)
        if source is not None and not self._closed:
            return source
        with self._lock:
            if not self._closed:
                # whose loop has ended, nobody can use
                for ended in [known for known in self._sources if known is not None and known.is_closed()]:
                    del self._sources[ended]
                source = self._sources.get(loop) or self._sources.setdefault(loop, EngineSource(self, is_async))
                count = len(self._sources)
        if source is not None and not self._closed:
            if count > 1:
                _logger.info("%s: there are %d pools now, each with its own capacity", self.name, count)
            return source
        if self.successor is None:
            raise PoolClosed(f"{self.name!r} is closed: register its config again, or open a new registry")
        return self.successor.source(is_async=is_async)

    @property
    def engine(self) -> Engine:
        """Return the engine of the threads."""
        return self.source().engine

    @property
    def pool(self) -> Pool:
        """Return the live pool of the threads."""
        return self.engine.pool

    def known_source(self, *, is_async: bool = False) -> EngineSource | None:
        """Return where connections come from, as `source` does, if somebody has asked for it before."""
        return self._sources.get(_running_loop() if is_async else None)

    def pools(self) -> list[FairQueuePool]:
        """Return the pools there are, also after `close`."""
        with self._lock:
            pools = [
                source.engine.pool for loop, source in self._sources.items() if loop is None or not loop.is_closed()
            ]
        return [pool for pool in pools if isinstance(pool, FairQueuePool)]

    def get_connection(self, timeout: float | None = None) -> Connection:
        """Check a DB-API connection out, within ``timeout`` seconds for waiting and connecting.

        Raises:
            ConnectionTimeout: none became available in time; ``phase`` tells where the time went.
            Exception: the driver's error, where it cannot connect.
        """
        return self.source().get_connection(timeout)

    def get_async_connection(self, timeout: float | None = None) -> AsyncConnection:
        """Return a DB-API connection for an ``async with`` block, which checks it out.

        Raises:
            ConfigError: no event loop runs, or the config has no asynchronous driver.
        """
        return AsyncConnection(self.source(is_async=True), timeout)

    def get_session(
        self,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> Session:
        """Return a session; its first statement checks a connection out.

        Raises:
            ConfigError: the database does not know the isolation level.
        """
        return self._session(self.source(), timeout, autocommit, read_only, isolation_level)

    def get_async_session(
        self,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> AsyncSession:
        """Return an asynchronous session, as `get_session`.

        Raises:
            ConfigError: no event loop runs, or the config has no asynchronous driver.
        """
        return AsyncSession(self._session(self.source(is_async=True), timeout, autocommit, read_only, isolation_level))

    def run_transaction(
        self,
        fn: Callable[[Session], T],
        read_only: bool = False,
        isolation_level: str | None = None,
        **retry: Unpack[RetryOptions],
    ) -> T:
        """Run a function in a transaction, as a whole, as `SQLSpec.run_transaction`."""
        return run_transaction(self._sessions(False, read_only, isolation_level), fn, **retry)

    async def arun_transaction(
        self,
        fn: Callable[[AsyncSession], Awaitable[T]],
        read_only: bool = False,
        isolation_level: str | None = None,
        **retry: Unpack[RetryOptions],
    ) -> T:
        """Run an asynchronous function in a transaction, as a whole, as `SQLSpec.arun_transaction`."""
        sessions = self._sessions(True, read_only, isolation_level)

        def call(session: Session) -> T:
            return await_only(fn(AsyncSession(session)))

        return await greenlet_spawn(run_transaction, sessions, call, sleep_in_task, **retry)

    def _sessions(self, is_async: bool, read_only: bool, isolation_level: str | None) -> Sessions:
        def opened(timeout: float | None, read_only: bool, isolation_level: str | None) -> Session:
            return self._session(self.source(is_async=is_async), timeout, False, read_only, isolation_level)

        return Sessions(
            lambda timeout: opened(timeout, read_only, isolation_level), lambda timeout: opened(timeout, True, None)
        )

    def _session(
        self,
        source: EngineSource,
        timeout: float | None,
        autocommit: bool | None,
        read_only: bool,
        isolation_level: str | None,
    ) -> Session:
        usual = self.config.autocommit
        wanted = usual if autocommit is None else autocommit
        options = None
        if isolation_level or read_only:
            if wanted:
                raise ConfigError("read_only and isolation_level belong to transactions: autocommit=True has none")
            options = TransactionOptions(isolation_level, read_only)
            source.driver.check(options)
        return Session(source, timeout, wanted, wanted is not usual, options)

    def get_pool_stats(self) -> PoolStats:
        """Return the figures of the pools together. Opens no connection."""
        pools = self.pools() or self._first_pool()
        return PoolStats.of([pool.stats() for pool in pools])

    def get_holders(self) -> list[Holder]:
        """Return who has connections checked out, the longest first."""
        found = [holder for pool in self.pools() for holder in pool.get_holders()]
        return sorted(found, key=lambda holder: holder.seconds, reverse=True)

    def resize_pool(self, pool_size: int, max_overflow: int | None = None) -> None:
        """Change the limits of the pools, also of those to come.

        Raises:
            ConfigError: the config has no pool, or the limits are out of range.
        """
        if not isinstance(self.config, PoolConfig):
            raise ConfigError(f"{type(self.config).__name__} has no pool to resize")
        if isinstance(self.config, SQLiteConnectionConfig) and self.config.in_memory:
            raise ConfigError("a database in memory is its one connection: it cannot be resized")
        try:
            for pool in self.pools() or self._first_pool():
                pool.resize(pool_size, max_overflow)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.limits = pool_size, max_overflow

    def _first_pool(self) -> list[FairQueuePool]:
        """Return a pool where there is none yet: of the kind that the config has."""
        pool = None if self.config.is_async_only else self.pool
        return [pool] if isinstance(pool, FairQueuePool) else []

    def close(self, timeout: float | None = None) -> int:
        """Close the pools: idle connections now, the others as they come back, for which it waits ``timeout`` seconds.

        It does not wait for those of event loops, which close in their loops. Harmless when repeated.

        Returns how many are still checked out.
        """
        own, others = self._retire(None)
        return others + (0 if own is None else own.close(timeout))

    async def aclose(self, timeout: float | None = None) -> int:
        """Close the pools, as `close`; for those of the running loop it waits, and not for those of threads."""
        loop = asyncio.get_running_loop()
        own, others = self._retire(loop)
        left = 0 if own is None else await greenlet_spawn(own.close, timeout)
        if (source := self._sources.get(loop)) is not None:
            await _finish(source.engine.pool, source.driver)
        return others + left

    def _retire(self, waiting: asyncio.AbstractEventLoop | None) -> tuple[FairQueuePool | None, int]:
        """Close all pools but that of who can wait for it; return that, and how many of the others are checked out."""
        with self._lock:
            self._closed = True
            sources = dict(self._sources)
        own, left = None, 0
        for loop, source in sources.items():
            pool = source.engine.pool
            if not isinstance(pool, FairQueuePool) or (loop is not None and loop.is_closed()):
                continue
            if loop is waiting:
                own = pool
            elif loop is None:
                left += pool.close()
            else:
                left += pool.checkedout()
                # the loop may end in between, and closes the pool by itself then
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(pool.close)
        return own, left


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError("no event loop runs here: call this in a coroutine, or use get_session()") from None
