"""PooledConnectionManager: the engine of one config, built when it is first needed."""

from __future__ import annotations

import threading
import time

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection

from sqlspec.adapters import TransactionOptions, driver_for
from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig
from sqlspec.engine import build_engine
from sqlspec.exceptions import ConfigError, ConnectionTimeout, PoolClosed, PoolTimeout
from sqlspec.pool import FairQueuePool, Holder, PoolStats, checkout_deadline
from sqlspec.session import Connection, Session

__all__ = ["PooledConnectionManager"]


def left_of(timeout: float | None, begin: float) -> float | None:
    """Return what is left of a timeout that runs since ``begin``; a moment at least, since 0 is no timeout."""
    return None if timeout is None else max(0.001, timeout - (time.monotonic() - begin))


class PooledConnectionManager:
    """Hold the engine and the pool of one config. Thread-safe; nothing connects before it is asked to."""

    def __init__(self, config: NoPoolSyncConfig, name: str = "default") -> None:
        self.config = config
        self.name = name
        self.driver = driver_for(config)
        # what has taken the name of this one over: whoever comes late goes there
        self.successor: PooledConnectionManager | None = None
        # Guards _engine and _closed. Building an engine imports the driver and connects to nothing.
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not used yet" if self._engine is None else repr(self._engine.pool)
        return f"<PooledConnectionManager {self.name!r}, {state}>"

    @property
    def engine(self) -> Engine:
        """Return the engine, built by the first caller.

        Raises:
            PoolClosed: after `close`.
            ConfigError: the driver is not installed.
        """
        engine = self._engine
        if engine is None or self._closed:
            with self._lock:
                if self._closed:
                    raise PoolClosed(f"{self.name!r} is closed: register its config again, or open a new registry")
                engine = self._engine = self._engine or build_engine(self.config, self.name)
        return engine

    @property
    def pool(self) -> Pool:
        """Return the live pool."""
        return self.engine.pool

    def get_connection(self, timeout: float | None = None) -> Connection:
        """Check a DB-API connection out, within ``timeout`` seconds for waiting and connecting.

        Raises:
            ConnectionTimeout: none became available in time; ``phase`` tells where the time went.
            Exception: the driver's error, where it cannot connect.
        """
        begin = 0.0 if timeout is None else time.monotonic()
        try:
            engine = self.engine
            proxy = engine.pool.connect() if timeout is None else self._connect_within(timeout, engine)
        except PoolTimeout as error:
            raise self._named(error) from error.__cause__
        except PoolClosed:
            if self.successor is None:
                raise
            return self.successor.get_connection(left_of(timeout, begin))
        return Connection(proxy, self.driver, engine.dialect)

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
        usual = self.config.autocommit
        wanted = usual if autocommit is None else autocommit
        options = None
        if isolation_level or read_only:
            if wanted:
                raise ConfigError("read_only and isolation_level belong to transactions: autocommit=True has none")
            options = TransactionOptions(isolation_level, read_only)
            self.driver.check(options)
        try:
            return Session(self, timeout, wanted, wanted is not usual, options)
        except PoolClosed:
            if self.successor is None:
                raise
            return self.successor.get_session(timeout, autocommit, read_only, isolation_level)

    def check_out(self, timeout: float | None) -> PoolProxiedConnection:
        """Check a connection out for a session: errors of the driver become SQLAlchemy's.

        Raises:
            ConnectionTimeout: none became available in time.
            sqlalchemy.exc.DBAPIError: the database refused the connection.
        """
        engine = self.engine
        try:
            return engine.pool.connect() if timeout is None else self._connect_within(timeout, engine)
        except PoolTimeout as error:
            raise self._named(error) from error.__cause__
        except engine.dialect.loaded_dbapi.Error as error:
            sqlalchemy.Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)

    def _connect_within(self, timeout: float, engine: Engine) -> PoolProxiedConnection:
        if not (isinstance(timeout, (int, float)) and 0 < timeout < threading.TIMEOUT_MAX):
            raise ConfigError(f"timeout={timeout!r}: give seconds above 0")
        deadline = time.monotonic() + timeout
        token = checkout_deadline.set(deadline)
        try:
            return engine.pool.connect()
        except engine.dialect.loaded_dbapi.Error as error:
            # libpq gives up a little early
            if time.monotonic() < deadline - 0.05:
                raise
            raise ConnectionTimeout(f"connecting took longer than {timeout:.3g} s", "connect") from error
        finally:
            checkout_deadline.reset(token)

    def _named(self, error: PoolTimeout) -> ConnectionTimeout:
        """Turn the pool's error into one that names the config."""
        phase = error.phase if isinstance(error, ConnectionTimeout) else "wait"
        return ConnectionTimeout(f"{self.name}: {error}", phase)

    def get_pool_stats(self) -> PoolStats:
        """Return the figures of the pool. Opens no connection."""
        pool = self.pool
        if isinstance(pool, FairQueuePool):
            return pool.stats()
        return PoolStats(size=0, checked_in=0, checked_out=0, overflow=0, total=0)

    def get_holders(self) -> list[Holder]:
        """Return who has connections checked out, the longest first."""
        pool = self.pool
        return pool.get_holders() if isinstance(pool, FairQueuePool) else []

    def resize_pool(self, pool_size: int, max_overflow: int | None = None) -> None:
        """Change the limits of the pool while it is in use.

        Raises:
            ConfigError: the config has no pool, or the limits are out of range.
        """
        pool = self.pool
        if not isinstance(pool, FairQueuePool):
            raise ConfigError(f"{type(self.config).__name__} has no pool to resize")
        if isinstance(self.config, SQLiteConnectionConfig) and self.config.in_memory:
            raise ConfigError("a database in memory is its one connection: it cannot be resized")
        try:
            pool.resize(pool_size, max_overflow)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def close(self, timeout: float | None = None) -> int:
        """Close the pool: idle connections now, the others as they come back, for which it waits ``timeout`` seconds.

        Returns how many are still checked out. Harmless when repeated.
        """
        with self._lock:
            self._closed = True
            engine = self._engine
        if engine is None or not isinstance(engine.pool, FairQueuePool):
            return 0
        return engine.pool.close(timeout)
