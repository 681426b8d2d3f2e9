"""SQLSpec: names for databases, and everything that is had by name."""

from __future__ import annotations

import difflib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from sqlalchemy import Engine

from sqlspec.adapters import driver_for
from sqlspec.config import NoPoolSyncConfig
from sqlspec.config.url import is_url
from sqlspec.environment import EnvironmentConfig, read_toml
from sqlspec.exceptions import ConfigError, PoolClosed
from sqlspec.manager import PooledConnectionManager
from sqlspec.pool import Holder, PoolStats, tell_of_forks
from sqlspec.resilience import RetryOptions
from sqlspec.session import AsyncConnection, AsyncSession, Connection, Session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SQLSpec"]

T = TypeVar("T")

_logger = logging.getLogger("sqlspec")


class SQLSpec:
    """Hold named configs, and give connections, sessions and engines by name. Thread-safe."""

    def __init__(self) -> None:
        # Guards _managers and _closed: dictionary work only; managers are closed outside.
        self._lock = threading.Lock()
        self._managers: dict[str, PooledConnectionManager] = {}
        self._closed = False
        tell_of_forks(self)

    @classmethod
    def from_env(cls, prefix: str | Mapping[str, str] = "DB_") -> Self:
        """Return a registry with the config that the environment describes, as "default".

        A mapping registers several: name to prefix, as in ``{"primary": "DB_", "replica": "REPLICA_"}``. The
        variables are those of `EnvironmentConfig`.

        Raises:
            ConfigError: a variable cannot be used; the message names it.
        """
        registry = cls()
        for name, own in ({"default": prefix} if isinstance(prefix, str) else prefix).items():
            registry.register_config(EnvironmentConfig.from_env(own), name)
        return registry

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str] = "sqlspec.toml") -> Self:
        """Return a registry with the configs of a TOML file: one table a name.

        In ``pyproject.toml`` the tables stand under ``[tool.sqlspec]``.

        Raises:
            ConfigError: the file cannot be used; the message names the line.
        """
        if is_url(path):
            raise ConfigError("from_toml() takes the name of a file, and this is a URL: give it to a config, as url")
        registry = cls()
        for name, config in read_toml(Path(path)).items():
            registry.register_config(config, name)
        return registry

    def __repr__(self) -> str:
        return f"<SQLSpec {', '.join(self.list_configs()) or 'without configs'}{', closed' if self._closed else ''}>"

    def start_over(self) -> None:
        """Have a lock of its own, in a forked child."""
        self._lock = threading.Lock()

    def register_config(self, config: NoPoolSyncConfig, name: str = "default", *, replace: bool = False) -> str:
        """Give a config a name. Nothing connects yet.

        With ``replace``, the pool behind a taken name is retired: it serves what is checked out, and nobody new.

        Returns the name.

        Raises:
            ConfigError: the name is taken or empty, or the config names no database.
        """
        if not isinstance(config, NoPoolSyncConfig):
            given = f"the class {config.__name__}" if isinstance(config, type) else type(config).__name__
            raise ConfigError(f"register_config() takes a config such as PostgreSQLConfig(…), not {given}")
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigError("name must be a string of printable characters that is not empty")
        missing = driver_for(config, is_async=config.is_async_only).missing()
        if missing is not None:
            raise ConfigError(missing)
        manager = PooledConnectionManager(config, name)
        with self._lock:
            if self._closed:
                raise PoolClosed("this registry is closed: make a new SQLSpec()")
            old = self._managers.get(name)
            if old is not None and not replace:
                raise ConfigError(f"{name!r} is registered already: pass replace=True, or another name")
            self._managers[name] = manager
        if old is not None:
            old.successor = manager
            old.close()
        return name

    def list_configs(self) -> list[str]:
        """Return the names, in the order of their registration."""
        with self._lock:
            return list(self._managers)

    def get_config(self, name: str = "default") -> NoPoolSyncConfig:
        """Return the config of a name."""
        return self._manager(name).config

    def create_connection(self, name: str = "default", *, timeout: float | None = None) -> Connection:
        """Check a DB-API connection out; you must `close` it. Without a pool, it is opened for you alone.

        Raises:
            ConnectionTimeout: none became available in time.
            ConfigError: there is no such name.
            PoolClosed: after `close`.
        """
        return self._manager(name).get_connection(timeout)

    def get_connection(self, name: str = "default", *, timeout: float | None = None) -> Connection:
        """Check a DB-API connection out for a ``with`` block, which rolls back what was not committed.

        Raises:
            ConnectionTimeout: none became available in time.
            ConfigError: there is no such name.
            PoolClosed: after `close`.
        """
        return self._manager(name).get_connection(timeout)

    def get_session(
        self,
        name: str = "default",
        *,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> Session:
        """Return a unit of work for a ``with`` block: it commits at the end, and rolls back on an error.

        Its first statement checks a connection out, within ``timeout`` seconds.

        Raises:
            ConfigError: there is no such name or isolation level.
            PoolClosed: after `close`.
        """
        return self._manager(name).get_session(timeout, autocommit, read_only, isolation_level)

    def get_async_connection(self, name: str = "default", *, timeout: float | None = None) -> AsyncConnection:
        """Return a DB-API connection for an ``async with`` block, which rolls back what was not committed.

        Raises:
            ConfigError: there is no such name, it has no asynchronous driver, or no event loop runs.
            PoolClosed: after `close`.
        """
        return self._manager(name).get_async_connection(timeout)

    def get_async_session(
        self,
        name: str = "default",
        *,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> AsyncSession:
        """Return a unit of work for an ``async with`` block, as `get_session`.

        Each event loop has a pool of its own, which closes when the loop ends.

        Raises:
            ConfigError: there is no such name or isolation level, no asynchronous driver, or no event loop runs.
            PoolClosed: after `close`.
        """
        return self._manager(name).get_async_session(timeout, autocommit, read_only, isolation_level)

    def run_transaction(
        self,
        name: str,
        fn: Callable[[Session], T],
        *,
        read_only: bool = False,
        isolation_level: str | None = None,
        **retry: Unpack[RetryOptions],
    ) -> T:
        """Run a function in a transaction, commit, and return what it returns; all of it again where that helps.

        The function gets a session, and nothing else of it may stay when it is called again: not before its transaction
        is rolled back, after a deadlock, transactions that cannot be put in an order, or the loss of the connection. It
        is not called again once something has been committed in it. What it raises otherwise goes on untouched.

        A COMMIT without an answer is followed up on PostgreSQL, by the number of the transaction: for that it is asked
        before each COMMIT of what is not ``read_only``, which is a round trip. The server is asked on another
        connection, as long as it says that it is still at it and ``timeout`` allows; without a timeout for 30 seconds.

        Args:
            name: of the config.
            fn: what to run.
            read_only: that it reads only.
            isolation_level: that of the transaction.
            retry: ``max_attempts``, ``backoff_factor``, ``max_delay``, ``initial_delay``, ``timeout`` and ``retry_on``,
                as of `with_retry`. The timeout bounds the checkouts as well.

        Raises:
            ConnectionLost: the connection was lost in COMMIT. With ``ambiguous``, nobody knows whether it took place:
                the database cannot be asked, or has crashed, or does not answer in time.
            ConfigError: there is no such name, or an argument is out of range.
            TypeError: the function is asynchronous.
            Exception: what the function raises, or the database, at the last attempt.
        """
        return self._manager(name).run_transaction(fn, read_only, isolation_level, **retry)

    async def arun_transaction(
        self,
        name: str,
        fn: Callable[[AsyncSession], Awaitable[T]],
        *,
        read_only: bool = False,
        isolation_level: str | None = None,
        **retry: Unpack[RetryOptions],
    ) -> T:
        """Run an asynchronous function in a transaction, as `run_transaction`, in the running event loop."""
        return await self._manager(name).arun_transaction(fn, read_only, isolation_level, **retry)

    def get_async_engine(self, name: str = "default") -> AsyncEngine:
        """Return the SQLAlchemy engine behind a name for the running event loop.

        Raises:
            ConfigError: there is no such name, it has no asynchronous driver, or no event loop runs.
        """
        from sqlalchemy.ext.asyncio import AsyncEngine

        return AsyncEngine(self._manager(name).source(is_async=True).engine)

    def get_engine(self, name: str = "default") -> Engine:
        """Return the SQLAlchemy engine behind a name: for ORM, Alembic, pandas."""
        return self._manager(name).engine

    def get_pool_stats(self, name: str = "default") -> PoolStats:
        """Return the figures of the pool behind a name. Opens no connection."""
        return self._manager(name).get_pool_stats()

    def get_holders(self, name: str = "default") -> list[Holder]:
        """Return who has connections of this name checked out, the longest first: owner, place, seconds, statement."""
        return self._manager(name).get_holders()

    def resize_pool(self, name: str = "default", *, pool_size: int, max_overflow: int | None = None) -> None:
        """Change how many connections of a name are kept, and how many may be open beyond that, while in use.

        More serve those who wait at once. Fewer close idle connections, and the others when they come back. The
        config stays as it is. A pool that adapts itself to the load does not change the new size for ten seconds, and
        goes on from it.

        Raises:
            ConfigError: there is no such name, it has no pool, or the limits are out of range, or beyond those of a
                pool that adapts itself.
        """
        self._manager(name).resize_pool(pool_size, max_overflow)

    def _get_pool(self, name: str = "default") -> Any:
        return self._manager(name).pool

    def _manager(self, name: str) -> PooledConnectionManager:
        # without the lock: reading one entry is atomic, and a manager that is closed meanwhile says so itself
        manager = self._managers.get(name)
        if manager is not None and not self._closed:
            return manager
        if self._closed:
            raise PoolClosed("this registry is closed: make a new SQLSpec()")
        if is_url(name):
            raise ConfigError("there is no config of this name, which is a URL: register_config() gives one a name")
        names = self.list_configs()
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5) or names
        known = f"did you mean {' or '.join(map(repr, near))}?" if near else "register_config() has not been called"
        raise ConfigError(f"there is no config {name!r}: {known}")

    def close(self, timeout: float | None = None) -> None:
        """Close every pool, the last registered first; nothing can be had by name afterwards.

        Idle connections close at once, the others when they come back; with a timeout, up to so many seconds
        are spent waiting for those. Pools of event loops close in their loops. Harmless when repeated.
        """
        deadline = time.monotonic() + (timeout or 0.0)
        for manager in self._retire():
            _tell_of(manager, manager.close(max(0.0, deadline - time.monotonic())))

    async def aclose(self, timeout: float | None = None) -> None:
        """Close every pool, as `close`; wait for the connections of the running event loop."""
        deadline = time.monotonic() + (timeout or 0.0)
        for manager in self._retire():
            _tell_of(manager, await manager.aclose(max(0.0, deadline - time.monotonic())))

    def _retire(self) -> list[PooledConnectionManager]:
        with self._lock:
            self._closed = True
            return list(reversed(self._managers.values()))

    def __enter__(self) -> Self:
        if self._closed:
            raise PoolClosed("this registry is closed: make a new SQLSpec()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _tell_of(manager: PooledConnectionManager, left: int) -> None:
    if left:
        _logger.warning("%s: %d connections are still checked out; they close when they come back", manager.name, left)
