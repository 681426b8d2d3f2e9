"""health_check: whether the databases of a registry answer, and whether there are connections left for callers."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.util import greenlet_spawn

from sqlspec.engine import build_engine
from sqlspec.exceptions import CircuitOpenError, ConfigError, PoolClosed
from sqlspec.manager import EngineSource, PooledConnectionManager
from sqlspec.pool import checkout_deadline, probe, start_thread
from sqlspec.registry import SQLSpec
from sqlspec.resilience import ErrorKind, classify

__all__ = ["DatabaseHealth", "HealthReport", "check_health", "health_check"]

_logger = logging.getLogger("sqlspec.health")

HealthState = Literal["up", "degraded", "down"]
# Not in the words of drivers: those name hosts and users, and pages of health are often open to everybody.
_REASONS = {
    ErrorKind.CONNECT: "the server cannot be reached",
    ErrorKind.DISCONNECT: "the server ended the connection",
    ErrorKind.RESTART: "the server is starting or shutting down",
    ErrorKind.CAPACITY: "the server has no connections, memory or disk left",
    ErrorKind.CONFIGURATION: "the config is refused, by the server or the driver",
}
_CLOSED = "the registry, or this config, is closed"
# Seconds by which drivers may give up before a deadline.
_EARLY = 0.1


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """Say how one database is.

    Attributes:
        state: ``up``; ``degraded`` (the server lives, and has no further connection for this process at the moment);
            ``down``.
        latency_seconds: how long asking took.
        reason: why it is not up; without hosts, users and passwords.
        age_seconds: how long ago it was asked.
    """

    state: HealthState
    latency_seconds: float = 0.0
    reason: str = ""
    age_seconds: float = 0.0


class HealthReport(dict[str, bool]):
    """Map the names to whether their databases can be used: up or degraded, and not down.

    Attributes:
        details: the names, and the `DatabaseHealth` of each.
    """

    def __init__(self, details: Mapping[str, DatabaseHealth]) -> None:
        super().__init__({name: health.state != "down" for name, health in details.items()})
        self.details = dict(details)


def check_health(
    spec: SQLSpec, names: Iterable[str] | None = None, *, timeout: float = 2.0, max_age: float = 0.0
) -> HealthReport:
    """Ask all databases of a registry, or those with these names, for a sign of life, at the same time.

    Where a pool has an idle connection, it is asked over that; otherwise over one that is opened for it, beyond the
    pool's capacity, and closed again. So a pool that is in use as a whole is *degraded*, and one that nobody has used
    yet is *up*. An open circuit breaker says what the failures said that have opened it; the check may be its probe.

    Args:
        spec: the registry. Once it is closed, all are down.
        names: of the databases to ask; None: of all.
        timeout: seconds for all together; who has not answered by then is down.
        max_age: seconds for which a verdict may be told again. Callers that ask at the same time then share one check.
            That a database is down is told again, and a check shared, only where it had at least this ``timeout``.

    Thread-safe. Nothing is locked while a database is asked, and nothing is left open.

    Raises:
        ConfigError: there is no such name, or a time is out of range.
    """
    asked, deadline = _ask_all(spec, names, timeout, max_age, _Check.start_aside)
    return HealthReport({name: known.wait(timeout, deadline) for name, known in asked.items()})


async def health_check(
    spec: SQLSpec, names: Iterable[str] | None = None, *, timeout: float = 2.0, max_age: float = 0.0
) -> HealthReport:
    """Ask the databases for a sign of life, as `check_health`, without blocking the event loop.

    The pool of the running loop is asked in the loop; that of threads, where the application uses that one only, in a
    thread.

    Raises:
        ConfigError: there is no such name, or a time is out of range.
    """
    asked, deadline = _ask_all(spec, names, timeout, max_age, _Check.start_in_loop)
    return HealthReport({name: await known.await_(timeout, deadline) for name, known in asked.items()})


class _Check:
    """Be one check of one database, for all who wait for it."""

    def __init__(self, manager: PooledConnectionManager, timeout: float) -> None:
        self._manager = manager
        self.timeout = timeout
        self._restart()
        self._verdict: Future[DatabaseHealth] = Future()
        # who gives up must not cancel it for the others
        self._verdict.set_running_or_notify_cancel()
        self._is_over = False

    def _restart(self) -> None:
        self.begun_at = time.monotonic()
        self._deadline = self.begun_at + self.timeout

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    # -- asking

    def start_aside(self) -> None:
        """Ask in a thread."""
        if not start_thread("sqlspec-health", self._run):
            self._conclude("down", "there is no thread left to ask in")

    def start_in_loop(self) -> None:
        """Ask in a task of the running loop, where its pool is the one that counts."""
        source = self._source_in_loop()
        if source is None:
            self.start_aside()
            return
        # the driver may have been imported just now, which is not the server's time
        self._restart()
        # of its own context: it serves others as well
        task = asyncio.get_running_loop().create_task(self._run_in_loop(source), context=Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    def _source_in_loop(self) -> EngineSource | None:
        manager = self._manager
        source = manager.known_source(is_async=True)
        if source is not None or manager.known_source() is not None:
            return source
        # nobody has used either of them
        try:
            return manager.source(is_async=True)
        except (ConfigError, PoolClosed):
            return None

    async def _run_in_loop(self, source: EngineSource) -> None:
        checkout_deadline.set(self._deadline)
        try:
            async with asyncio.timeout(self.timeout):
                await greenlet_spawn(probe, source.engine.pool)
        except Exception as error:  # noqa: BLE001  # it is what was asked for
            self._judge(error)
        except BaseException:
            # the loop ends, which says nothing about the database
            self._conclude("down", "the check was cancelled", is_kept=False)
            raise
        else:
            self._judge(None)

    def _run(self) -> None:
        checkout_deadline.set(self._deadline)
        try:
            self._probe()
        except BaseException as error:  # noqa: BLE001  # it is what was asked for
            self._judge(error)
        else:
            self._judge(None)

    def _probe(self) -> None:
        manager = self._manager
        try:
            if not manager.config.is_async_only:
                probe(manager.source().engine.pool)
                return
        except ConfigError:
            if manager.known_source() is not None:
                raise
        # there is no driver for threads: in a loop that nobody else has
        asyncio.run(self._probe_in_own_loop())

    async def _probe_in_own_loop(self) -> None:
        engine = build_engine(self._manager.config, self._manager.name, is_async=True)
        async with asyncio.timeout(self._deadline - time.monotonic()):
            await greenlet_spawn(probe, engine.pool)

    # -- the verdict

    def _judge(self, error: BaseException | None) -> None:
        if error is not None:
            state, reason = _state_after(error)
        elif any(pool.is_exhausted for pool in self._manager.pools()):
            state, reason = "degraded", "every connection of the pool is in use"
        else:
            state, reason = "up", ""
        if state == "down" and time.monotonic() >= self._deadline - _EARLY:
            reason = f"no answer within {self.timeout:.3g} s"
        self._conclude(state, reason)

    def _conclude(self, state: HealthState, reason: str, *, is_kept: bool = True) -> DatabaseHealth:
        """Keep a verdict, and tell all who wait; the first one counts."""
        health = DatabaseHealth(state, time.monotonic() - self.begun_at, reason)
        with _lock:
            is_first, self._is_over = not self._is_over, True
            before = _keep_locked(self._manager, self, health if is_kept and is_first else None)
        if is_first:
            self._verdict.set_result(health)
        if is_first and is_kept and state != before:
            level = logging.INFO if state == "up" else logging.WARNING
            _logger.log(level, "%s is %s%s", self._manager.name, state, reason and f": {reason}")
        return health

    def _late(self, timeout: float) -> DatabaseHealth:
        reason = f"no answer within {timeout:.3g} s"
        if self.is_late:
            return self._conclude("down", reason)
        # for who waits longer, it goes on
        return DatabaseHealth("down", timeout, reason)

    def wait(self, timeout: float, deadline: float) -> DatabaseHealth:
        """Return the verdict, as it is at the deadline at the latest."""
        try:
            return self._verdict.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return self._late(timeout)

    async def await_(self, timeout: float, deadline: float) -> DatabaseHealth:
        """Return the verdict, as `wait`."""
        if self._verdict.done():
            return self._verdict.result()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(self._verdict)
        except TimeoutError:
            return self._late(timeout)


def _state_after(error: BaseException) -> tuple[HealthState, str]:
    """Return what an error says about a database."""
    if isinstance(error, PoolClosed):
        return "down", _CLOSED
    told = ""
    if isinstance(error, CircuitOpenError):
        told = f"; its circuit breaker probes again in {error.retry_after:.3g} s"
        error = error.__cause__ or error
    kind = classify(error)
    return ("degraded" if kind is ErrorKind.CAPACITY else "down"), _REASONS.get(kind, type(error).__name__) + told


class _Known:
    """Hold what is known of one database."""

    __slots__ = ("asked_at", "begun_at", "check", "health", "timeout")

    def __init__(self) -> None:
        # under way
        self.check: _Check | None = None
        self.health: DatabaseHealth | None = None
        self.asked_at = 0.0
        # when the check began that told it
        self.begun_at = 0.0
        # how long was waited for it
        self.timeout = 0.0

    def verdict_for(self, timeout: float) -> DatabaseHealth | None:
        """Return what is known, but not that a database is down which has had less time."""
        health = self.health
        return None if health is not None and health.state == "down" and self.timeout < timeout else health


class _Verdict:
    """Be known already."""

    def __init__(self, health: DatabaseHealth) -> None:
        self._health = health

    def wait(self, timeout: float, deadline: float) -> DatabaseHealth:
        return self._health

    async def await_(self, timeout: float, deadline: float) -> DatabaseHealth:
        return self._health


def _ask_all(
    spec: SQLSpec, names: Iterable[str] | None, timeout: float, max_age: float, start: Callable[[_Check], None]
) -> tuple[dict[str, _Check | _Verdict], float]:
    """Begin what is to be asked; return what to wait for, by name, and until when."""
    if not (isinstance(timeout, (int, float)) and 0 < timeout < threading.TIMEOUT_MAX):
        raise ConfigError(f"timeout={timeout!r}: give seconds above 0", "timeout")
    if not (isinstance(max_age, (int, float)) and max_age >= 0):
        raise ConfigError(f"max_age={max_age!r}: give seconds, or 0 to ask anew", "max_age")
    if isinstance(names, str):
        raise ConfigError(f"names={names!r}: give a list of names", "names")
    wanted = spec.list_configs() if names is None else list(names)
    asked = {name: _ask(spec, name, timeout, max_age, start) for name in wanted}
    return asked, time.monotonic() + timeout


def _ask(
    spec: SQLSpec, name: str, timeout: float, max_age: float, start: Callable[[_Check], None]
) -> _Check | _Verdict:
    try:
        manager = spec._manager(name)
    except PoolClosed:
        return _Verdict(DatabaseHealth("down", reason=_CLOSED))
    now = time.monotonic()
    with _lock:
        known = _known.setdefault(manager, _Known())
        health, check = known.verdict_for(timeout), known.check
        if max_age > 0 and health is not None and now - known.asked_at <= max_age:
            return _Verdict(replace(health, age_seconds=now - known.asked_at))
        if max_age > 0 and check is not None and check.timeout >= timeout and not check.is_late:
            return check
        known.check = check = _Check(manager, timeout)
    start(check)
    return check


def _keep_locked(manager: PooledConnectionManager, check: _Check, health: DatabaseHealth | None) -> HealthState:
    """Know of the end of a check, and of its verdict if there is one; return the state as it was known before."""
    known = _known.setdefault(manager, _Known())
    before = known.health
    if known.check is check:
        known.check = None
    # a check that took long says nothing about a database that was asked after it
    if health is not None and check.begun_at >= known.begun_at:
        known.health, known.asked_at, known.timeout = health, time.monotonic(), check.timeout
        known.begun_at = check.begun_at
    return "up" if before is None else before.state


def _begin() -> None:
    """Know of nothing; in a child process, the checks under way are its parent's, and so are their pools."""
    global _lock, _known, _tasks
    # Guards _known, what is in it, and which verdict of a check is the first. Nothing else happens under it.
    _lock = threading.Lock()
    _known = weakref.WeakKeyDictionary()
    # a loop keeps its tasks weakly
    _tasks = set()


_lock: threading.Lock
_known: weakref.WeakKeyDictionary[PooledConnectionManager, _Known]
_tasks: set[asyncio.Task[None]]
_begin()
os.register_at_fork(after_in_child=_begin)
