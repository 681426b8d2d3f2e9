"""The pools that are compared, behind one pair of calls, and a driver without a database for all of them."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from operator import methodcaller
from threading import Lock
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import Engine, exc, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.pool import BEYOND_QUEUEPOOL, AsyncFairQueuePool, FairQueuePool
from sqlspec.pool.places import find_place, held_here, owner_of_thread
from sqlspec.pool.stats import MANY, Tally

__all__ = ["KITS", "LEAST", "PROMISED", "AsyncDriver", "Driver", "Kit", "Maker", "Pool", "Refused"]

# what a config of sqlspec switches on
LIKE_A_CONFIG: dict[str, Any] = {**BEYOND_QUEUEPOOL, "nested_checkout": "warn", "recycle": 3600}

# a connect that fails is part of a scenario; without a handler its warning would be printed
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())


class Refused(Exception):
    """Say that a driver did not connect, as it was told."""


class Connection:
    """Be a connection that does nothing, with as much as the pools look at."""

    closed = False
    # libpq's number for a connection that is idle
    pgconn = SimpleNamespace(transaction_status=0)

    def rollback(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class AsyncConnection(Connection):
    """Be the same for those who close with await."""

    async def close(self) -> None:  # type: ignore[override]  # awaited, by who closes in that way
        """Do nothing."""


class Driver:
    """Open connections that take as many seconds as it is told, the first ones in vain where it is told so."""

    threadsafety = 2
    OperationalError = InterfaceError = InternalError = Refused

    def __init__(self, seconds: float = 0.0, failures: int = 0) -> None:
        self.seconds = seconds
        self.failures = failures
        self.failed_at = math.inf
        # appending is atomic, counting is not
        self._begun: list[None] = []

    @property
    def connects(self) -> int:
        """Return how many connects have begun."""
        return len(self._begun)

    def connect(self, *_arguments: object, **_options: object) -> Any:
        """Open a connection, whatever the arguments."""
        self._begun.append(None)
        if self.seconds:
            time.sleep(self.seconds)
        return self._outcome(Connection)

    def _outcome(self, kind: type[Connection]) -> Connection:
        if not self.failures:
            return kind()
        self.failures -= 1
        # what comes after the failure is the pool's time alone
        self.seconds, self.failed_at = 0.0, time.perf_counter()
        raise Refused


class AsyncDriver(Driver):
    """Do the same on an event loop."""

    async def connect(self, *_arguments: object, **_options: object) -> Any:
        """Open a connection, whatever the arguments."""
        self._begun.append(None)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return self._outcome(AsyncConnection)


class LeastPool(QueuePool):
    """Serve in the order of asking and do nothing else: no timeout, no figures, no failures, no end.

    Nobody uses such a pool. It shows what the order and SQLAlchemy's own objects cost alone.
    """

    def __init__(self, creator: Any, size: int, *arguments: Any, **options: Any) -> None:
        super().__init__(creator, size, *arguments, **options)
        self._idle = deque(self._create_connection() for _ in range(size))
        self._waiters: deque[tuple[list[Any], Any]] = deque()

    def _do_get(self) -> Any:
        given, gate = waiter = ([], Lock())
        gate.acquire()
        self._waiters.append(waiter)
        self._serve()
        gate.acquire()
        return given[0]

    def _do_return_conn(self, record: Any) -> None:
        self._idle.append(record)
        self._serve()

    def _serve(self) -> None:
        while self._idle and self._waiters:
            try:
                record = self._idle.popleft()
            except IndexError:
                return
            try:
                given, gate = self._waiters.popleft()
            except IndexError:
                self._idle.append(record)
                continue
            given.append(record)
            gate.release()


class PromisedPool(LeastPool):
    """Do in addition what is promised of each checkout, in the fewest steps, and still none of what can go wrong.

    That is: it has a deadline, waits and holds are counted, one can ask who holds it, since when and where, and
    nesting is noticed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tally = Tally()
        self._marks: dict[Any, Any] = {}

    def _do_get(self) -> Any:
        began, owner, (code, instruction) = time.monotonic(), owner_of_thread(), find_place()
        held_here.get()
        given, gate = waiter = ([], Lock())
        gate.acquire()
        self._waiters.append(waiter)
        self._serve()
        if not gate.acquire(True, 30.0):
            raise exc.TimeoutError
        now = time.monotonic()
        self._tally.waits.append(now - began)
        self._marks[given[0]] = mark = (now, owner, code, instruction, None)
        held_here.set((mark,))
        return given[0]

    def _do_return_conn(self, record: Any) -> None:
        self._tally.holds.append(time.monotonic() - self._marks.pop(record)[0])
        if len(self._tally.holds) > MANY:
            self._tally.sum_up()
        super()._do_return_conn(record)


class Pool(NamedTuple):
    """Hold how connections are checked out and in, both awaitable in a pool for tasks, and what a timeout raises."""

    checkout: Callable[[], Any]
    checkin: Callable[[Any], Any]
    timeouts: tuple[type[Exception], ...] = ()


# Called with a driver, a size, an overflow and a timeout.
Maker = Callable[..., AbstractContextManager[Pool]]
AsyncMaker = Callable[..., AbstractAsyncContextManager[Pool]]


class Kit(NamedTuple):
    """Hold how one kind of pool is made: for threads, for tasks, and each way of checking out that is timed alone."""

    threads: Maker
    tasks: AsyncMaker | None
    cycles: Mapping[str, Maker]


def of_sqlalchemy(kind: type[QueuePool], by_engine: bool = False, **options: Any) -> Maker:
    """Return the maker of a pool of SQLAlchemy's kind, asked itself or by way of an engine."""

    @contextmanager
    def make(driver: Driver, size: int, overflow: int = 0, timeout: float = 30.0) -> Iterator[Pool]:
        dialect = DefaultDialect()
        pool = kind(driver.connect, size, overflow, timeout, dialect=dialect, **options)
        asked = Engine(pool, dialect, make_url("none://")) if by_engine else pool
        yield Pool(asked.connect, methodcaller("close"), (exc.TimeoutError,))
        pool.dispose()

    return make


def of_sqlalchemy_for_tasks(kind: type[QueuePool], **options: Any) -> AsyncMaker:
    """Return the maker of a pool of SQLAlchemy's kind for tasks, which is asked as its AsyncConnection does."""

    @asynccontextmanager
    async def make(driver: AsyncDriver, size: int, overflow: int = 0, timeout: float = 30.0) -> AsyncIterator[Pool]:
        pool = kind(lambda: await_only(driver.connect()), size, overflow, timeout, **options)
        yield Pool(
            lambda: greenlet_spawn(pool.connect),
            lambda connection: greenlet_spawn(connection.close),
            (exc.TimeoutError,),
        )

    return make


@contextmanager
def of_psycopg(driver: Driver, size: int, overflow: int = 0, timeout: float = 30.0) -> Iterator[Pool]:
    """Make psycopg_pool's pool, which calls its connection class to connect."""
    import psycopg_pool

    options: dict[str, Any] = {"connection_class": driver, "min_size": size, "max_size": size + overflow}
    with psycopg_pool.ConnectionPool(**options, timeout=timeout, open=False) as pool:
        yield Pool(pool.getconn, pool.putconn, (psycopg_pool.PoolTimeout,))


@asynccontextmanager
async def of_psycopg_for_tasks(
    driver: AsyncDriver, size: int, overflow: int = 0, timeout: float = 30.0
) -> AsyncIterator[Pool]:
    """Make psycopg_pool's pool for tasks."""
    import psycopg_pool

    options: dict[str, Any] = {"connection_class": driver, "min_size": size, "max_size": size + overflow}
    async with psycopg_pool.AsyncConnectionPool(**options, timeout=timeout, open=False) as pool:
        yield Pool(pool.getconn, pool.putconn, (psycopg_pool.PoolTimeout,))


@contextmanager
def of_dbutils(driver: Driver, size: int, overflow: int = 0, timeout: float = 30.0) -> Iterator[Pool]:
    """Make DBUtils' pool, which has no timeout."""
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(driver, maxcached=size, maxconnections=size + overflow, blocking=True, ping=0)
    yield Pool(pool.connection, methodcaller("close"))
    pool.close()


LEAST, PROMISED = of_sqlalchemy(LeastPool), of_sqlalchemy(PromisedPool)


def cycles(kind: type[QueuePool], **options: Any) -> Mapping[str, Maker]:
    """Return the ways of checking out of a pool of SQLAlchemy's kind, with these options and without."""
    return {
        "pool, as of a config": of_sqlalchemy(kind, **options),
        "pool, QueuePool's arguments": of_sqlalchemy(kind),
        "engine, as of a config": of_sqlalchemy(kind, by_engine=True, **options),
        "engine, QueuePool's arguments": of_sqlalchemy(kind, by_engine=True),
    }


def others(pool: Maker) -> Mapping[str, Maker]:
    """Return the way of checking out of a pool that SQLAlchemy has no engine for."""
    return {"pool, as of a config": pool}


_KITS = {
    "ours": Kit(
        of_sqlalchemy(FairQueuePool, **LIKE_A_CONFIG),
        of_sqlalchemy_for_tasks(AsyncFairQueuePool, **LIKE_A_CONFIG),
        cycles(FairQueuePool, **LIKE_A_CONFIG),
    ),
    "stock": Kit(of_sqlalchemy(QueuePool), of_sqlalchemy_for_tasks(AsyncAdaptedQueuePool), cycles(QueuePool)),
    "psycopg_pool": Kit(of_psycopg, of_psycopg_for_tasks, others(of_psycopg)),
    "dbutils": Kit(of_dbutils, None, others(of_dbutils)),
}
# the pools that are here
KITS = {name: kit for name, kit in _KITS.items() if name in ("ours", "stock") or importlib.util.find_spec(name)}
