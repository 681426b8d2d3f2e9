"""Whatever is done to a pool, and in whatever order, its figures are those of the database, and nothing is lost.

``SQLSPEC_STEPS`` says how many steps are taken at least, each followed by a look at everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec import PoolClosed, PoolTimeout
from sqlspec.pool import AsyncFairQueuePool, FairQueuePool
from sqlspec.testing import ScriptedDriver
from tests.servers import wait_until

STEPS = int(os.environ.get("SQLSPEC_STEPS", "2000"))
PER_RUN = 50
ENOUGH = 10.0

pytestmark = [
    # many steps take longer than any other test
    pytest.mark.timeout(max(60, STEPS // 20)),
    # the connections are dropped on purpose
    pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning"),
]

OperationalError, Disconnect = ScriptedDriver.OperationalError, ScriptedDriver.Disconnect

# overflow connections
MOST = 3
OPTIONS: dict[str, list[Any]] = {
    "pool_size": [1, 2, 3, 4],
    "max_overflow": list(range(MOST + 1)),
    "use_lifo": [False, True],
    "linger_seconds": [0.0, 60.0],
    "open_aside": [False, True],
    "retire_on_dispose": [False, True],
    "max_waiters": [None, 0, 1, 2],
    "nested_checkout": ["allow"],
}


@dataclasses.dataclass
class Loan:
    """A connection that somebody has, and the pool from which it came."""

    pool: FairQueuePool
    proxy: Any


class Asking:
    """A thread that asks a pool for a connection."""

    def __init__(self, pool: FairQueuePool) -> None:
        self.pool = pool
        self.loan: Loan | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        try:
            self.loan = Loan(self.pool, self.pool.connect(timeout=600))
        except Exception as error:
            self.error = error.with_traceback(None)

    @property
    def is_done(self) -> bool:
        return not self.thread.is_alive()


class World:
    """Know what there must be, and compare it with what the pools and the driver say."""

    def __init__(self) -> None:
        self.driver = ScriptedDriver()
        self.pools: list[FairQueuePool] = []
        # those of them that close what comes back
        self.ended: list[FairQueuePool] = []
        self.loans: list[Loan] = []
        self.detached: list[Any] = []
        # those who ask without having an answer yet
        self.asking: list[Any] = []
        self.timeouts = self.dropped = self.cancelled_releases = 0
        # how many slots each pool may have had at most since the last check
        self.peaks: Counter[FairQueuePool] = Counter()

    @property
    def pool(self) -> FairQueuePool:
        return self.pools[-1]

    def add(self, pool: Any) -> None:
        self.pools.append(pool)
        self.peaks[pool] = pool.stats().capacity or 0

    def lent(self, pool: FairQueuePool) -> int:
        return sum(loan.pool is pool for loan in self.loans)

    def asked(self, pool: FairQueuePool) -> int:
        return sum(asking.pool is pool for asking in self.asking)

    def has_room(self, pool: FairQueuePool) -> bool:
        return pool.checkedout() < (pool.stats().capacity or 0)

    def is_settled(self) -> bool:
        """Tell whether nothing is under way: who asks waits in the line, and rightly so."""
        return all(
            pool.stats().waiters == self.asked(pool)
            and pool.checkedout() == self.lent(pool)
            and not (self.asked(pool) and (self.has_room(pool) or pool.checkedin()))
            for pool in self.pools
        )

    def __str__(self) -> str:
        return "\n".join(
            f"{pool!r}: {self.lent(pool)} lent, {self.asked(pool)} ask, {pool.stats()}" for pool in self.pools
        )

    def check(self) -> None:
        """Check everything that holds whenever the pools have settled."""
        driver = self.driver
        for pool in self.pools:
            self._check_pool(pool)
        every = [pool.stats() for pool in self.pools]
        assert driver.open_connections == driver.opened - driver.closed
        assert driver.open_connections == sum(stats.total for stats in every) + len(self.detached)
        assert driver.calls["connect"] - driver.opened == sum(stats.failed_connects for stats in every)
        assert driver.double_closes == driver.uses_after_close == 0
        # SQLAlchemy leaves it to the garbage collector to check in where the close after a failed rollback is cancelled
        assert self.dropped <= sum(stats.dropped for stats in every) <= self.dropped + self.cancelled_releases
        assert sum(stats.timeouts + stats.refused for stats in every) == self.timeouts
        in_use = [proxy.dbapi_connection for proxy in [*(loan.proxy for loan in self.loans), *self.detached]]
        assert len(set(map(id, in_use))) == len(in_use), "two have the same connection"
        assert not any(connection.is_closed for connection in in_use)

    def _check_pool(self, pool: FairQueuePool) -> None:
        stats, slots, used = pool.stats(), pool.total(), pool.checkedout()
        capacity = stats.capacity or 0
        figures = [value for field in dataclasses.fields(stats) if isinstance(value := getattr(stats, field.name), int)]
        assert min([*figures, *stats.closed.values(), slots, used, pool.checkedin()]) >= 0
        assert stats.checked_in + stats.checked_out == stats.total <= slots == used + pool.checkedin()
        assert stats.created - sum(stats.closed.values()) == stats.total
        assert stats.connecting == 0
        assert stats.checked_out == used == len(pool.get_holders()) == self.lent(pool)
        # after the pool shrank there may be more than it should have, but they are in use, and do not become more
        assert slots <= max(capacity, used)
        assert used <= max(capacity, self.peaks[pool])
        self.peaks[pool] = max(capacity, used)
        assert not (pool in self.ended and pool.checkedin())
        assert pool.checkedin() <= (capacity if pool._linger_seconds else stats.size)

    def check_end(self, pool: FairQueuePool) -> None:
        """Check that as many connections can be had as the pool may have, and that all of them close."""
        capacity = pool.stats().capacity or 0
        everything = [pool.connect(timeout=ENOUGH) for _ in range(capacity)]
        assert self.driver.open_connections - sum(old.stats().total for old in self.pools[:-1]) == capacity
        with pytest.raises(PoolTimeout):
            pool.connect(timeout=0.001)
        for proxy in everything:
            proxy.close()
        assert [old.close() for old in self.pools] == [0] * len(self.pools)
        assert [old.total() for old in self.pools] == [0] * len(self.pools)
        assert self.driver.open_connections == self.driver.double_closes == 0


class PoolMachine(RuleBasedStateMachine):
    """Do anything to a pool. Nothing is drawn from what the pool says, so that every run can be repeated."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.is_broken = False
        self.is_sound = True
        # how many connections must have been closed for a reason that is known here
        self.reasons = Counter(detached=0, invalidated=0, interrupted=0)

    @initialize(options=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}))
    def start(self, options: dict[str, Any]) -> None:
        self.options = options
        self.open_pool()

    def open_pool(self) -> None:
        self.world.add(FairQueuePool(self.world.driver.connect, **self.options))

    def pick(self, number: int) -> Iterator[Loan]:
        """Take one of the loans, where there is one."""
        if self.world.loans:
            self.count()
            yield self.world.loans.pop(number % len(self.world.loans))

    def count(self) -> None:
        type(self).steps += 1

    @rule(times=st.integers(1, 3))
    def acquire(self, times: int) -> None:
        for _ in range(times):
            self.count()
            self.acquire_one()
            self.holds()

    def acquire_one(self) -> None:
        world, pool = self.world, self.world.pool
        has_room = world.has_room(pool)
        try:
            proxy = pool.connect(timeout=ENOUGH if has_room else 0.001)
        except PoolTimeout:
            assert not has_room
            world.timeouts += 1
        except OperationalError:
            assert self.is_broken
            assert has_room
        else:
            assert has_room
            world.loans.append(Loan(pool, proxy))

    @rule(times=st.integers(1, 3))
    def ask_in_threads(self, times: int) -> None:
        for _ in range(times):
            if len(self.world.asking) < 4:
                self.count()
                self.world.asking.append(Asking(self.world.pool))
                self.holds()

    @rule(number=st.integers(0, 9), twice=st.booleans())
    def release(self, number: int, twice: bool) -> None:
        for loan in self.pick(number):
            loan.proxy.close()
            if twice:
                loan.proxy.close()

    @rule(number=st.integers(0, 9), error=st.sampled_from([OperationalError, Disconnect, KeyboardInterrupt]))
    def release_where_rollback_fails(self, number: int, error: type[BaseException]) -> None:
        for loan in self.pick(number):
            self.world.driver.fail("rollback", error, times=1)
            try:
                loan.proxy.close()
            except KeyboardInterrupt:
                self.reasons["interrupted"] += 1

    @rule(number=st.integers(0, 9), error=st.sampled_from([None, Disconnect()]))
    def invalidate(self, number: int, error: Exception | None) -> None:
        for loan in self.pick(number):
            loan.proxy.invalidate(error)
            self.reasons["invalidated"] += error is None

    @rule(number=st.integers(0, 9))
    def invalidate_softly(self, number: int) -> None:
        for loan in self.pick(number):
            loan.proxy.invalidate(soft=True)
            self.world.loans.append(loan)

    @rule(number=st.integers(0, 9))
    def invalidate_all(self, number: int) -> None:
        """Do what an engine does after a lost connection."""
        for loan in self.pick(number):
            loan.pool._invalidate(loan.proxy, Disconnect())

    @rule(number=st.integers(0, 9))
    def detach(self, number: int) -> None:
        for loan in self.pick(number):
            loan.proxy.detach()
            self.reasons["detached"] += 1
            self.world.detached.append(loan.proxy)

    @rule()
    def close_detached(self) -> None:
        if self.world.detached:
            self.count()
            proxy = self.world.detached.pop()
            connection = proxy.dbapi_connection
            proxy.close()
            if not connection.is_closed:
                # SQLAlchemy leaves a detached connection to the garbage collector where its rollback fails
                assert connection.is_dead
                with contextlib.suppress(Disconnect):
                    connection.close()

    @rule(number=st.integers(0, 9), in_cycle=st.booleans())
    def drop(self, number: int, in_cycle: bool) -> None:
        for loan in self.pick(number):
            self.world.dropped += 1
            if in_cycle:
                cycle = [loan.proxy]
                cycle.append(cycle)
                del cycle
            del loan.proxy
            if in_cycle:
                gc.collect()

    @rule(size=st.integers(1, 4), overflow=st.integers(0, MOST))
    def resize(self, size: int, overflow: int) -> None:
        self.count()
        self.world.pool.resize(size, overflow)

    @rule()
    def grow(self) -> None:
        """Let in one more, for whom several may wait."""
        pool = self.world.pool
        if pool._max_overflow < MOST:
            self.count()
            pool.resize(pool.size(), pool._max_overflow + 1)

    @rule()
    def keep_house(self) -> None:
        """Let so much time go by that idle overflow was not needed."""
        self.count()
        for _ in range(10):
            self.world.pool.keep_house()

    @rule(is_broken=st.booleans())
    def break_connect(self, is_broken: bool) -> None:
        self.count()
        self.is_broken = is_broken
        if is_broken:
            self.world.driver.fail("connect")
        else:
            self.world.driver.heal("connect")

    @rule()
    def let_the_next_close_fail(self) -> None:
        self.count()
        self.world.driver.heal("close")
        self.world.driver.fail("close", times=1)

    @rule()
    def restart_the_database(self) -> None:
        self.count()
        self.world.driver.stop()
        self.world.driver.restart()

    @rule(recreate=st.booleans())
    def dispose(self, recreate: bool) -> None:
        self.count()
        self.world.pool.dispose()
        if recreate:
            if self.options["retire_on_dispose"]:
                self.world.ended.append(self.world.pool)
            self.world.add(self.world.pool.recreate())

    @rule()
    def close(self) -> None:
        self.count()
        pool = self.world.pool
        assert pool.close() == self.world.lent(pool)
        self.world.ended.append(pool)
        for closed in (pool, pool.recreate()):
            with pytest.raises(PoolClosed):
                closed.connect()
        self.open_pool()

    @invariant()
    def holds(self) -> None:
        self.is_sound = False
        for _ in range(20):
            if self.is_settled():
                break
            # a matter of microseconds mostly, where wait_until() takes its time
            time.sleep(0.0002)
        try:
            wait_until(self.is_settled, ENOUGH)
        except TimeoutError:
            raise AssertionError(f"it does not settle:\n{self.world}") from None
        self.world.check()
        every = [pool.stats() for pool in self.world.pools]
        assert {reason: sum(stats.closed.get(reason, 0) for stats in every) for reason in self.reasons} == self.reasons
        self.is_sound = True

    def is_settled(self) -> bool:
        for asking in [asking for asking in self.world.asking if asking.is_done]:
            self.world.asking.remove(asking)
            if asking.loan is not None:
                self.world.loans.append(asking.loan)
            elif isinstance(asking.error, PoolTimeout):
                assert self.options["max_waiters"] is not None
                self.world.timeouts += 1
            else:
                assert isinstance(asking.error, PoolClosed) or self.is_broken
        return self.world.is_settled()

    def teardown(self) -> None:
        if not self.is_sound:
            for pool in self.world.pools:
                pool.close()
            return
        self.world.driver.heal()
        self.is_broken = False
        while self.world.loans or self.world.asking:
            self.release(0, False)
            self.holds()
        while self.world.detached:
            self.close_detached()
        self.holds()
        self.world.check_end(self.world.pool)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[int], None]:
    """Say how many steps there were."""

    def tell(steps: int) -> None:
        with capsys.disabled():
            sys.stdout.write(f" {steps} steps ")

    return tell


@pytest.fixture
def quick() -> Iterator[None]:
    """Spare the garbage collector what is there already, and the log everything."""
    logging.disable()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    logging.disable(logging.NOTSET)


def test_a_pool_loses_nothing_whatever_is_done_to_it(told: Callable[[int], None], quick: None) -> None:
    """Size, order, lingering, opening aside and bounds are drawn as well."""
    PoolMachine.steps = 0
    while PoolMachine.steps < STEPS:
        enough = settings(
            # some rules take more than one step
            max_examples=1 + (STEPS - PoolMachine.steps) // (2 * PER_RUN),
            stateful_step_count=PER_RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(PoolMachine, settings=enough)
    told(PoolMachine.steps)


def test_who_waits_in_a_pool_that_is_replaced_gets_one_of_its_connections() -> None:
    """Neither do they wait in vain, nor is one connection after the other opened for them and closed again."""
    driver = ScriptedDriver()
    pool = FairQueuePool(driver.connect, pool_size=2, max_overflow=0, open_aside=True, retire_on_dispose=True)
    first, second = pool.connect(), pool.connect()
    asking = Asking(pool)
    wait_until(lambda: pool.stats().waiters == 1)
    pool.dispose()
    pool.recreate()
    first.close()
    try:
        wait_until(lambda: asking.is_done or driver.opened > 10)
        assert driver.opened == 3
        assert asking.loan is not None
        asking.loan.proxy.close()
        second.close()
        assert driver.open_connections == pool.total() == 0
    finally:
        pool.close()


# -- tasks


class AwaitingConnection:
    """A connection of the driver in whose calls a task waits, as in those of an asyncio driver."""

    def __init__(self, driver: ScriptedDriver) -> None:
        await_only(asyncio.sleep(0))
        self.connection = driver.connect()

    @property
    def is_closed(self) -> bool:
        return self.connection.is_closed

    def rollback(self) -> None:
        await_only(asyncio.sleep(0))
        self.connection.rollback()

    def close(self) -> None:
        # asyncio drivers close for good where saying good-bye is cancelled
        try:
            await_only(asyncio.sleep(0))
        finally:
            self.connection.close()


class AskingTask:
    """A task that asks a pool for a connection."""

    def __init__(self, pool: FairQueuePool, timeout: float) -> None:
        self.pool = pool
        self.timeout = timeout
        self.task = asyncio.create_task(greenlet_spawn(pool.connect, timeout))


class Tasks(World):
    """Have tasks do anything to an asyncio pool, as the dice fall."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.is_broken = False
        self.background: set[asyncio.Task[Any]] = set()
        self.options = {name: dice.choice(values) for name, values in OPTIONS.items()}
        self.open_pool()
        self.rules = [self.ask] * 5 + [self.cancel] * 2 + [self.release] * 2 + [self.release_and_cancel_who_waits] * 3
        self.rules += [self.release_and_cancel, self.invalidate, self.invalidate_softly, self.invalidate_all]
        self.rules += [self.resize, self.break_connect, self.break_rollback, self.restart]
        self.rules += [self.dispose, self.replace, self.close]

    def open_pool(self) -> None:
        self.add(AsyncFairQueuePool(lambda: AwaitingConnection(self.driver), **self.options))

    def start(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(greenlet_spawn(work, *arguments))
        self.background.add(task)
        return task

    def pick(self) -> Iterator[Loan]:
        if self.loans:
            yield self.loans.pop(self.dice.randrange(len(self.loans)))

    def ask(self) -> None:
        for _ in range(self.dice.randint(1, 3)):
            self.asking.append(AskingTask(self.pool, self.dice.choice([0.0, 0.0005, ENOUGH, ENOUGH])))

    def cancel(self) -> None:
        if self.asking:
            self.dice.choice(self.asking).task.cancel()

    def release(self) -> None:
        for loan in self.pick():
            self.start(loan.proxy.close)

    def release_and_cancel(self) -> None:
        for loan in self.pick():
            self.cancelled_releases += 1
            # a task that is cancelled before its first step would not even begin to give back
            self.soon(self.dice.randint(1, 4), self.start(loan.proxy.close).cancel)

    def release_and_cancel_who_waits(self) -> None:
        """Cancel the first in the line when it has been given a connection, perhaps without knowing it yet."""
        for loan in self.pick():
            self.start(loan.proxy.close)
            self.soon(self.dice.randint(0, 6), lambda: self.asking and self.asking[0].task.cancel())

    def soon(self, rounds: int, work: Callable[[], Any]) -> None:
        """Do something when the loop has gone round so many times."""
        if rounds:
            asyncio.get_running_loop().call_soon(self.soon, rounds - 1, work)
        else:
            work()

    def invalidate(self) -> None:
        for loan in self.pick():
            self.start(loan.proxy.invalidate)

    def invalidate_softly(self) -> None:
        for loan in self.loans[:1]:
            loan.proxy.invalidate(soft=True)

    def invalidate_all(self) -> None:
        for loan in self.pick():
            self.start(loan.pool._invalidate, loan.proxy, Disconnect())

    def resize(self) -> None:
        size, overflow = self.dice.randint(1, 4), self.dice.randint(0, MOST)
        self.peaks[self.pool] = max(self.peaks[self.pool], size + overflow)
        self.start(self.pool.resize, size, overflow)

    def break_connect(self) -> None:
        self.is_broken = True
        self.driver.fail("connect", times=self.dice.randint(1, 3))

    def break_rollback(self) -> None:
        self.driver.fail("rollback", times=1)

    def restart(self) -> None:
        self.driver.stop()
        self.driver.restart()

    def dispose(self) -> None:
        self.start(self.pool.dispose)

    def replace(self) -> None:
        """Do what an engine does in its dispose()."""
        pool = self.pool
        self.add(pool.recreate())

        def dispose() -> None:
            pool.dispose()
            pool.recreate()

        self.start(dispose)
        if self.options["retire_on_dispose"]:
            self.ended.append(pool)

    def close(self) -> None:
        self.ended.append(self.pool)
        self.start(self.pool.close)
        self.open_pool()

    def collect(self) -> bool:
        """Take what the tasks have got; tell whether all that is under way waits for a connection."""
        for asking in [asking for asking in self.asking if asking.task.done()]:
            self.asking.remove(asking)
            error = None if asking.task.cancelled() else asking.task.exception()
            if isinstance(error, PoolTimeout):
                self.timeouts += 1
            elif error is not None:
                assert isinstance(error, PoolClosed) or self.is_broken
            elif not asking.task.cancelled():
                self.loans.append(Loan(asking.pool, asking.task.result()))
        for task in [task for task in self.background if task.done()]:
            self.background.remove(task)
            if not task.cancelled():
                task.result()
        impatient = any(asking.timeout < ENOUGH for asking in self.asking)
        return not self.background and not impatient and self.is_settled()

    async def settle(self) -> None:
        for _ in range(10_000):
            if self.collect():
                break
            await asyncio.sleep(0.0005)
        else:
            raise AssertionError(f"it does not settle:\n{self}")
        self.check()

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            self.dice.choice(self.rules)()
            for _ in range(self.dice.choice([0, 0, 1, 2, 5, 20])):
                await asyncio.sleep(0)
            self.collect()
            if self.dice.random() < 0.2:
                await self.settle()
        await self.end()

    async def end(self) -> None:
        self.driver.heal()
        while self.asking or self.background or self.loans:
            self.release()
            await self.settle()
        await greenlet_spawn(self.check_end, self.pool)


def test_an_asyncio_pool_loses_nothing_whatever_tasks_do(told: Callable[[int], None], quick: None) -> None:
    """They are cancelled while they wait, connect and give back."""
    steps = 0
    while steps < STEPS:
        seed = random.randrange(2**32)  # noqa: S311  # not for secrets
        try:
            asyncio.run(Tasks(random.Random(seed)).run(PER_RUN))  # noqa: S311  # not for secrets
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        steps += PER_RUN
    told(steps)
