"""What is done to the databases of a registry: warming their pools, and having a replica serve for a primary."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy.util import greenlet_spawn

from sqlspec.exceptions import ConfigError, FallbackError, SQLSpecError
from sqlspec.manager import EngineSource
from sqlspec.pool import FairQueuePool, checkout_deadline, start_thread
from sqlspec.registry import SQLSpec
from sqlspec.resilience import ErrorKind, classify
from sqlspec.session import AsyncConnection, Connection

__all__ = ["WarmUp", "awarm_pool", "awith_connection_fallback", "warm_pool", "with_connection_fallback"]

_logger = logging.getLogger("sqlspec")

# Connections that are opened at the same time: a server that has just come up is not to be run over.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Say what became of warming a pool.

    Attributes:
        opened: connections that were opened.
        already_open: connections that there were before.
        beyond_capacity: how many of those asked for are more than the pool may have.
        failed: of each that could not be opened in time, why. Errors of drivers are told in their words, in which there
            are no passwords; of others only the class.
    """

    opened: int
    already_open: int
    beyond_capacity: int = 0
    failed: tuple[str, ...] = ()


def warm_pool(spec: SQLSpec, name: str = "default", connections: int = 5, *, timeout: float = 30.0) -> WarmUp:
    """Open connections, up to so many in all, so that the first callers need not; return what became of it.

    They are opened as for callers, four at a time, and are idle from the beginning: nothing is checked out, and no
    transaction is open. Those beyond ``pool_size`` are closed again when they were not needed for some seconds. Where
    connecting fails, or takes longer than ``timeout`` seconds in all, that is reported and not raised. Thread-safe.

    Raises:
        ConfigError: there is no such name, it has no pool, or ``connections`` or ``timeout`` is not above 0.
        PoolClosed: after `SQLSpec.close`.
    """
    _check(connections, timeout)
    warming = _Warming(_pool(name, spec.get_engine(name)), connections, timeout)
    try:
        contexts = [contextvars.copy_context() for _ in range(warming.openers)]
        begun = [start_thread("sqlspec-warming", context.run, warming.open_some) for context in contexts]
        if contexts and not any(begun):
            contexts[0].run(warming.open_some)
        if contexts:
            warming.is_done.wait(timeout)
    finally:
        # whoever still connects ends by the same deadline
        warming.is_over = True
    return warming.report()


async def awarm_pool(spec: SQLSpec, name: str = "default", connections: int = 5, *, timeout: float = 30.0) -> WarmUp:
    """Open connections for the running event loop, as `warm_pool` for threads.

    Raises:
        ConfigError: there is no such name, it has no pool or no asynchronous driver, or ``connections`` or
            ``timeout`` is not above 0.
        PoolClosed: after `SQLSpec.close`.
    """
    _check(connections, timeout)
    warming = _Warming(_pool(name, spec.get_async_engine(name).sync_engine), connections, timeout)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            for _ in range(warming.openers):
                group.create_task(greenlet_spawn(warming.open_some))
    return warming.report()


def _check(connections: int, timeout: float) -> None:
    if not isinstance(connections, int) or connections < 1:
        raise ConfigError(f"connections={connections!r}: give a number of at least 1", "connections")
    _check_timeout(timeout)


def _check_timeout(timeout: float) -> None:
    if not (isinstance(timeout, (int, float)) and 0 < timeout < threading.TIMEOUT_MAX):
        raise ConfigError(f"timeout={timeout!r}: give seconds above 0", "timeout")


def _told(error: Exception, dialect: Any) -> str:
    """Return an error in one line: those of drivers and of sqlspec in their words, of others only the class."""
    known = isinstance(error, (SQLSpecError, getattr(getattr(dialect, "loaded_dbapi", None), "Error", SQLSpecError)))
    return " ".join(f"{type(error).__name__}: {error}".split()) if known else type(error).__name__


def _pool(name: str, engine: Any) -> FairQueuePool:
    if not isinstance(engine.pool, FairQueuePool):
        raise ConfigError(f"{name!r} has no pool to warm: each of its connections is opened for its borrower")
    return engine.pool


class _Warming:
    """Share the attempts between those who connect: each takes the next one, and notes what became of it."""

    def __init__(self, pool: FairQueuePool, connections: int, timeout: float) -> None:
        stats = pool.stats()
        capacity = connections if stats.capacity is None else stats.capacity
        self._pool = pool
        self._total = min(connections, capacity)
        self._beyond_capacity = connections - self._total
        self._already_open = stats.total
        self._missing = max(0, self._total - stats.total)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        # Asking an iterator for its next, and adding to a list, are atomic steps.
        self._attempts = iter(range(self._missing))
        # of each attempt that is over: whether a connection was opened, or why not
        self._outcomes: list[bool | str] = []
        self.is_over = False
        self.is_done = threading.Event()

    @property
    def openers(self) -> int:
        """Return how many are to connect at the same time."""
        return min(_AT_ONCE, self._missing)

    def open_some(self) -> None:
        """Open one connection after the other, while there are attempts and time left."""
        checkout_deadline.set(self._deadline)
        for _ in self._attempts:
            if self.is_over or time.monotonic() >= self._deadline:
                break
            self._outcomes.append(self._open_one())
        if len(self._outcomes) == self._missing:
            self.is_done.set()

    def _open_one(self) -> bool | str:
        try:
            return self._pool.open_idle(self._total)
        except Exception as error:  # noqa: BLE001  # it is reported
            return _told(error, self._pool._dialect)

    def report(self) -> WarmUp:
        """Return what has become of it so far."""
        outcomes = list(self._outcomes)
        late = [f"not opened within {self._timeout:g} s"] * (self._missing - len(outcomes))
        failed = tuple([outcome for outcome in outcomes if isinstance(outcome, str)] + late)
        return WarmUp(outcomes.count(True), self._already_open, self._beyond_capacity, failed)


def with_connection_fallback(
    spec: SQLSpec, primary: str = "primary", replica: str = "replica", timeout: float = 2.0
) -> Connection:
    """Check a DB-API connection to the primary out for a ``with`` block, or one to its replica where there is none.

    The replica serves where every connection to the primary is in use, or the primary cannot be reached. The server
    refuses writes there, until the connection comes back; and what is read may be older than what was just written.
    The primary has the first half of ``timeout``, in seconds, the replica what is left of it all. What the block raises
    has nothing to do with that: it runs once. `PoolStats.fallbacks` of the primary counts what the replica has served,
    and the log tells of it. Thread-safe.

    Raises:
        FallbackError: neither gave a connection; it says why.
        ConfigError: there is no such name, or ``timeout`` is not above 0.
        PoolClosed: after `SQLSpec.close`.
        Exception: the driver's error, where the primary refuses the config: its user, say.
    """
    _check_timeout(timeout)
    names = primary, replica
    return _Fallback(names, *(spec._manager(name).source() for name in names)).get_connection(timeout)


def awith_connection_fallback(
    spec: SQLSpec, primary: str = "primary", replica: str = "replica", timeout: float = 2.0
) -> AsyncConnection:
    """Return a DB-API connection for an ``async with`` block, to the primary or its replica.

    As `with_connection_fallback`; the block checks it out, and raises what that does.

    Raises:
        ConfigError: there is no such name, it has no asynchronous driver, or ``timeout`` is not above 0.
        PoolClosed: after `SQLSpec.close`.
    """
    _check_timeout(timeout)
    names = primary, replica
    return AsyncConnection(_Fallback(names, *(spec._manager(name).source(is_async=True) for name in names)), timeout)


# What another server helps against. Where the config is refused, a replica would hide that.
_HELPS_AGAINST = {
    ErrorKind.EXHAUSTED,
    ErrorKind.CONNECT,
    ErrorKind.RESTART,
    ErrorKind.DISCONNECT,
    ErrorKind.CAPACITY,
}


class _Fallback:
    """Check connections out of a primary, or else of its replica."""

    def __init__(self, names: tuple[str, str], primary: EngineSource, replica: EngineSource) -> None:
        self._names = names
        self._primary = primary
        self._replica = replica

    def get_connection(self, timeout: float | None) -> Connection:
        """Check one out, within so many seconds for both."""
        seconds = cast("float", timeout)
        deadline = time.monotonic() + seconds
        try:
            return self._primary.get_connection(seconds / 2)
        except Exception as error:
            kind = classify(error)
            if kind not in _HELPS_AGAINST:
                raise
            # without its frames: this one will hold the error, and the connection
            failure = error.with_traceback(None)
        try:
            connection = self._replica.get_read_only_connection(max(0.001, deadline - time.monotonic()))
        except Exception as error:  # noqa: BLE001  # it is raised with the other one
            raise self._both(seconds, failure, error) from failure
        self._count(kind)
        return connection

    def _both(self, seconds: float, primary: Exception, replica: Exception) -> FallbackError:
        told = [
            f"{name} gave none ({_told(error, source.engine.dialect)})"
            for name, error, source in zip(self._names, (primary, replica), (self._primary, self._replica), strict=True)
        ]
        return FallbackError(f"no connection within {seconds:.3g} s: {', and '.join(told)}", primary, replica)

    def _count(self, kind: ErrorKind) -> None:
        pool = self._primary.engine.pool
        if isinstance(pool, FairQueuePool):
            pool.count_fallback()
        _logger.warning("%s has no connection to give (%s): %s serves, read-only", self._names[0], kind, self._names[1])
