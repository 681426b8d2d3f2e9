"""How many connections a pool keeps: the rule on readings, and pools that follow their load."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlspec import AdaptivePool, ConfigError, PoolMetrics, SQLSpec
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig
from sqlspec.config import PoolConfig
from sqlspec.engine import build_engine
from sqlspec.pool import BEYOND_QUEUEPOOL, AsyncFairQueuePool, FairQueuePool
from sqlspec.pool.sizing import Reading, next_size
from sqlspec.testing import ScriptedDriver
from tests.callers import Caller, line_up
from tests.conftest import Database
from tests.servers import PostgreSQLServer, wait_until

CONFIG = PoolConfig(pool_size=10, min_pool_size=5, max_pool_size=30, max_overflow=0)


class Model:
    """A pool that only counts."""

    logging_name = "model"

    def __init__(self, size: int) -> None:
        self.now, self.used, self.waited = 0.0, 0.0, 0.0
        self.sizes = [size]

    def size(self) -> int:
        return self.sizes[-1]

    def read(self, now: float) -> Reading:
        return Reading(now, self.size(), self.used, self.waited)

    def change_size(self, size: int, wanted: int) -> bool:
        assert size == self.size()
        self.sizes.append(wanted)
        return True

    def spend(self, adaptive: AdaptivePool, demand: float, seconds: int = 1) -> bool:
        """Let time go by at a load, and be looked at every second."""
        again = True
        for _ in range(seconds):
            self.now += 1.0
            self.used += min(demand, self.size())
            self.waited += max(0.0, demand - self.size())
            again = adaptive.adjust(self, self.now)
        return again

    def turns(self) -> int:
        """Return how often it went on in the other direction."""
        grew = [after > before for before, after in itertools.pairwise(self.sizes)]
        return sum(before is not after for before, after in itertools.pairwise(grew))


def readings(*usages: float, size: int = 10, **last: Any) -> PoolMetrics:
    """Return what is known after so many seconds, each with its usage."""
    metrics, used = PoolMetrics(), 0.0
    metrics.add(Reading(100.0, size))
    for second, usage in enumerate(usages, start=1):
        used += usage * size
        more = last if second == len(usages) else {}
        metrics.add(Reading(100.0 + second, size, used, **more))
    return metrics


# -- the rule


@pytest.mark.parametrize(
    ("size", "usage", "expected"),
    [
        (10, 0.81, 15),
        (10, 0.8, 10),
        (10, 0.5, 10),
        (10, 0.2, 10),
        (10, 0.19, 5),
        (28, 0.9, 30),
        (7, 0.1, 5),
        (30, 2, 30),
    ],
)
def test_the_size_changes_by_five_outside_a_dead_band_and_within_its_bounds(
    size: int, usage: float, expected: int
) -> None:
    assert next_size(size, 5, 30, readings(*[usage] * 10, size=size)) == expected


def test_without_readings_nothing_is_used_and_nothing_changes() -> None:
    metrics = PoolMetrics()
    assert (metrics.average_usage(), metrics.peak_usage(), metrics.average_waiting()) == (0.0, 0.0, 0.0)
    assert metrics.trouble() is None
    assert next_size(10, 5, 30, metrics) == 10
    metrics.add(Reading(100.0, 10, used_seconds=50.0))
    assert (metrics.average_usage(), next_size(10, 5, 30, metrics)) == (0.0, 10)
    assert AdaptivePool(CONFIG).decide(10, 100.0) == 10


def test_growing_looks_at_the_last_moment_and_shrinking_at_the_whole_window() -> None:
    assert next_size(10, 5, 30, readings(*[0.0] * 10, 1.0)) == 15
    assert next_size(10, 5, 30, readings(0.9)) == 15
    assert next_size(10, 5, 30, readings(*[0.0] * 9)) == 10
    assert next_size(10, 5, 30, readings(*[0.0] * 10)) == 5


def test_callers_that_wait_count_as_usage() -> None:
    metrics = PoolMetrics()
    metrics.add(Reading(100.0, 10))
    metrics.add(Reading(102.0, 10, used_seconds=10.0, waited_seconds=8.0))
    assert (metrics.average_usage(), metrics.average_waiting()) == (0.9, 4.0)
    assert next_size(10, 5, 30, metrics) == 15


def test_a_pool_does_not_shrink_below_twice_what_its_busiest_moment_used() -> None:
    assert next_size(10, 1, 30, readings(*[0.0] * 5, 0.4, *[0.0] * 4)) == 8
    assert next_size(10, 1, 30, readings(*[0.0] * 5, 0.7, *[0.0] * 4)) == 10
    assert next_size(6, 1, 30, readings(*[1 / 6] * 10, size=6)) == 2


@pytest.mark.parametrize(
    "last",
    [
        {"failed_connects": 1},
        {"connects": 1, "connect_seconds": 1.5},
        {"connecting_seconds": 1.5},
    ],
)
def test_a_pool_does_not_grow_while_connects_fail_or_take_long(last: dict[str, Any]) -> None:
    assert next_size(10, 5, 30, readings(1.0, 1.0)) == 15
    assert next_size(10, 5, 30, readings(1.0, 1.0, **last)) == 10


@pytest.mark.parametrize(("seconds", "expected"), [(0.05, 15), (0.25, 15), (0.35, 10)])
def test_connecting_is_slow_by_comparison_with_what_is_usual(seconds: float, expected: int) -> None:
    metrics = PoolMetrics()
    metrics.add(Reading(100.0, 10, connects=100, connect_seconds=10.0))
    metrics.add(Reading(102.0, 10, 20.0, connects=102, connect_seconds=10.0 + 2 * seconds))
    assert next_size(10, 5, 30, metrics) == expected


def test_metrics_hold_a_window_and_no_more_readings_than_it_needs() -> None:
    metrics = PoolMetrics(window_seconds=10.0)
    for moment in range(100_000):
        metrics.add(Reading(moment / 1000, 10, used_seconds=moment / 1000 * (10 if moment < 80_000 else 2)))
    assert len(metrics._readings) < 100
    metrics = PoolMetrics(window_seconds=10.0)
    for second in range(100):
        metrics.add(Reading(second, 10, used_seconds=min(second, 80) * 10.0 + max(0, second - 80) * 2.0))
    assert metrics.average_usage() == pytest.approx(0.2)
    assert metrics.covers(10.0)
    assert not metrics.covers(10.1)


def test_a_reading_that_missed_a_long_hold_is_left_out() -> None:
    metrics = PoolMetrics()
    for reading in (Reading(100, 10, 500.0), Reading(101, 10, 401.0), Reading(102, 10, 502.0)):
        metrics.add(reading)
    assert metrics.average_usage() == pytest.approx(0.1)
    assert metrics.peak_usage() == pytest.approx(0.1)
    # not for ever: what a cancelled task has waited is not counted any more
    for second in (3, 4, 5):
        metrics.add(Reading(100 + second, 10, 300.0 + second))
    assert [reading.used_seconds for reading in metrics._readings] == [305.0]


def test_another_size_begins_anew() -> None:
    metrics = readings(1.0, 1.0)
    metrics.add(Reading(103.0, 15, 20.0))
    assert not metrics.covers(0.001)


@given(
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 60),
    st.lists(st.floats(0, 1e3), max_size=30),
    st.integers(0, 3),
)
def test_whatever_is_read_the_size_stays_within_its_bounds_and_changes_by_five_at_most(
    lowest: int, above: int, span: int, usages: list[float], failures: int
) -> None:
    size, highest = lowest + above, lowest + above + span
    wanted = next_size(size, lowest, highest, readings(*usages, size=size, failed_connects=failures))
    assert lowest <= wanted <= highest
    assert abs(wanted - size) <= 5


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.data())
def test_a_load_that_hardly_varies_has_no_pool_go_to_and_fro(lowest: int, span: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(lowest, lowest + span))
    demand = data.draw(st.floats(0, 80))
    adaptive = AdaptivePool(PoolConfig(pool_size=begin, min_pool_size=lowest, max_pool_size=lowest + span))
    model = Model(begin)
    for factor in data.draw(st.lists(st.floats(1.0, 1.5), min_size=150, max_size=150)):
        model.spend(adaptive, demand * factor)
    assert all(lowest <= size <= lowest + span for size in model.sizes)
    assert model.turns() <= 1


def test_a_load_that_rises_and_falls_is_followed_step_by_step() -> None:
    adaptive, model = AdaptivePool(CONFIG), Model(10)
    model.spend(adaptive, 22.0, seconds=60)
    assert model.sizes == [10, 15, 20, 25, 30]
    model.spend(adaptive, 8.0, seconds=60)
    assert model.sizes[-1] == 30
    model.spend(adaptive, 2.0, seconds=60)
    assert model.sizes == [10, 15, 20, 25, 30, 25, 20, 15, 10]
    model.spend(adaptive, 0.0, seconds=60)
    assert model.sizes[-1] == 5


def test_after_a_step_a_pool_rests_and_after_a_resize_by_hand_for_a_window() -> None:
    adaptive, model = AdaptivePool(CONFIG), Model(10)
    model.spend(adaptive, 40.0, seconds=2)
    assert model.sizes == [10, 15]
    model.spend(adaptive, 40.0)
    assert model.sizes == [10, 15]
    model.spend(adaptive, 40.0)
    assert model.sizes == [10, 15, 20]
    model.sizes.append(5)
    adaptive.rest(model.now)
    model.spend(adaptive, 40.0, seconds=9)
    assert model.size() == 5
    model.spend(adaptive, 40.0)
    assert model.size() == 10


def test_a_pool_that_is_not_used_is_not_looked_at_any_more() -> None:
    adaptive, model = AdaptivePool(CONFIG), Model(5)
    assert model.spend(adaptive, 2.0, seconds=30)
    assert model.spend(adaptive, 0.0, seconds=9)
    assert not model.spend(adaptive, 0.0)
    assert not adaptive.metrics.covers(0.001)


def test_a_step_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sqlspec.pool")
    adaptive, model = AdaptivePool(CONFIG), Model(10)
    model.spend(adaptive, 14.0, seconds=2)
    model.spend(adaptive, 0.0, seconds=12)
    assert [record.getMessage() for record in caplog.records] == [
        "model grows from 10 to 15 connections: usage 1.40, 4.0 waiting",
        "model shrinks from 15 to 10 connections: usage 0.00, 0.0 waiting",
    ]


def test_a_decision_that_somebody_has_overtaken_by_hand_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sqlspec.pool")
    adaptive, model = AdaptivePool(CONFIG), Model(10)
    model.change_size = lambda size, wanted: False  # type: ignore[method-assign]  # somebody was faster
    model.spend(adaptive, 14.0, seconds=5)
    assert caplog.records == []


# -- configs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PostgreSQLConfig(max_pool_size=9), "max_pool_size=9 is below pool_size=10: raise max_pool_size"),
        (lambda: PostgreSQLConfig(min_pool_size=11), "min_pool_size=11 is above pool_size=10: raise pool_size"),
        (lambda: PostgreSQLConfig(min_pool_size=-1), "min_pool_size: Input should be greater than or equal to 0"),
        (lambda: PostgreSQLConfig(max_pool_size=0), "max_pool_size: Input should be greater than or equal to 1"),
        (lambda: SQLiteConfig(database=":memory:", max_pool_size=20), "max_pool_size does not go with a database in"),
        (lambda: SQLiteConfig(database=":memory:", min_pool_size=1), "min_pool_size does not go with a database in"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({}, None),
        ({"max_pool_size": 10}, None),
        ({"min_pool_size": 2}, None),
        ({"max_pool_size": 30}, (10, 30)),
        ({"min_pool_size": 2, "max_pool_size": 10}, (2, 10)),
    ],
)
def test_a_config_makes_its_pool_adaptive_where_it_leaves_room(
    options: dict[str, int], bounds: tuple[int, int] | None
) -> None:
    config = PostgreSQLConfig(host="db.example", database="shop", **options)
    pool: Any = build_engine(config).pool
    adaptive = pool._adaptive
    assert (None if adaptive is None else (adaptive.lowest, adaptive.highest)) == bounds
    assert pool.size() == config.pool_size == 10


def test_each_pool_of_a_name_adapts_itself(tmp_path: Any) -> None:
    pytest.importorskip("aiosqlite")
    config = SQLiteConfig(database=str(tmp_path / "a.db"), max_pool_size=30)

    async def main(spec: SQLSpec) -> None:
        async with spec.get_async_session() as session:
            await session.execute("SELECT 1")
        own: Any = spec.get_async_engine().sync_engine.pool
        others: Any = spec.get_engine().pool
        assert own._adaptive is not others._adaptive
        await spec.aclose()

    with SQLSpec() as spec:
        spec.register_config(config)
        asyncio.run(main(spec))


# -- pools


def make(
    driver: ScriptedDriver, window: float = 0.4, lowest: int = 1, highest: int = 11, **options: Any
) -> FairQueuePool:
    """Return a pool that grows within a tenth of a window, and shrinks after one."""
    config = PoolConfig(pool_size=lowest, max_pool_size=highest)
    arguments = {"pool_size": lowest, "max_overflow": 0, "timeout": 20, "adaptive": AdaptivePool(config, window)}
    return FairQueuePool(driver.connect, **{**BEYOND_QUEUEPOOL, **arguments, **options})


def test_callers_that_wait_get_the_connections_a_pool_grows_by(driver: ScriptedDriver) -> None:
    pool = make(driver)
    callers = [Caller(pool) for _ in range(4)]
    for caller in callers:
        caller.answer()
    stats = pool.stats()
    assert (stats.size, stats.capacity, stats.grown, stats.shrunk) == (6, 6, 1, 0)
    for caller in callers:
        caller.give_back()


def test_a_pool_that_is_used_less_shrinks_and_closes_nothing_in_use(driver: ScriptedDriver) -> None:
    pool = make(driver, linger_seconds=0.0)
    callers = [Caller(pool) for _ in range(9)]
    for caller in callers:
        caller.answer()
    assert pool.size() == 11
    first = callers[0]
    for caller in callers[1:]:
        caller.give_back()
    wait_until(lambda: pool.stats().shrunk > 0)
    wait_until(lambda: pool.size() == 2)
    wait_until(lambda: pool.stats().total == 2)
    assert not first.connection.dbapi_connection.is_closed
    first.give_back()
    wait_until(lambda: pool.size() == 1)
    # nothing is left to do, and the housekeeping thread need not come again
    wait_until(lambda: not pool._pool.is_looked_after)
    assert pool.stats().total <= 1


def test_a_pool_does_not_grow_while_the_database_refuses(driver: ScriptedDriver) -> None:
    pool = make(driver, max_overflow=2)
    held = pool.connect()
    driver.fail("connect", times=None)
    until = time.monotonic() + 2
    seen = 0
    while time.monotonic() < until:
        with pytest.raises(Exception, match="the script says"):
            pool.connect(timeout=5)
        seen += 1
        time.sleep(0.01)
    assert seen > 10
    assert pool.stats().grown == 0
    held.close()


def test_a_resize_by_hand_holds_and_keeps_the_bounds(driver: ScriptedDriver) -> None:
    # a window within which nothing is decided
    pool = make(driver, window=3600.0)
    pool.resize(7)
    assert pool.size() == 7
    for size in (0, 12):
        with pytest.raises(ValueError, match=rf"pool_size={size}"):
            pool.resize(size)
    with pytest.raises(ValueError, match="between min_pool_size=1 and max_pool_size=11"):
        make(driver, pool_size=12)
    pool.resize(8, max_overflow=3)
    assert (pool.stats().size, pool.stats().capacity, pool.stats().grown) == (8, 11, 0)


def test_a_step_that_was_decided_before_a_resize_by_hand_is_not_taken(driver: ScriptedDriver) -> None:
    pool = make(driver, window=3600.0)
    pool.resize(7)
    assert not pool.change_size(1, 6)
    pool._pool.wished = 9, 0
    assert not pool.change_size(7, 11)
    assert (pool.size(), pool.stats().grown) == (9, 0)


def test_a_pool_in_the_place_of_another_adapts_itself_from_its_size(driver: ScriptedDriver) -> None:
    pool = make(driver)
    callers = [Caller(pool) for _ in range(3)]
    for caller in callers:
        caller.answer()
    successor: Any = pool.recreate()
    assert successor.size() == 6
    assert successor._adaptive is not pool._adaptive
    assert (successor._adaptive.lowest, successor._adaptive.highest) == (1, 11)
    for caller in callers:
        caller.give_back()
    pool.close()
    wait_until(lambda: not pool._pool.is_looked_after)


def test_a_forked_child_knows_the_size_and_no_load(driver: ScriptedDriver) -> None:
    pool = make(driver, window=3600.0)
    pool.resize(7)
    before: Any = pool._adaptive
    before.metrics.add(Reading(1.0, 7))
    child = os.fork()
    if child == 0:
        known: Any = pool._adaptive
        os._exit(0 if pool.size() == 7 and known is not before and not known.metrics._readings else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_pool_without_bounds_is_not_looked_after(driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("sqlspec.pool.queue.look_after", lambda *arguments: asked.append(arguments))
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, **BEYOND_QUEUEPOOL)
    with pool.connect():
        waiting = line_up(pool, 1)
    waiting[0].answer()
    waiting[0].give_back()
    assert asked == []


def test_readings_know_of_what_is_still_going_on(driver: ScriptedDriver) -> None:
    pool = make(driver, window=3600.0)
    held = pool.connect()
    (caller,) = line_up(pool, 1)
    now = time.monotonic()
    begin, end = pool.read(now), pool.read(now + 10.0)
    assert end.used_seconds - begin.used_seconds == pytest.approx(10.0)
    assert end.waited_seconds - begin.waited_seconds == pytest.approx(10.0)
    held.close()
    caller.answer()
    caller.give_back()
    assert pool.read(time.monotonic()).used_seconds == pytest.approx(pool.stats().hold.sum)
    assert pool.read(time.monotonic()).waited_seconds == pytest.approx(pool.stats().wait.sum)
    assert pool.read(time.monotonic()).connects == 1


# -- real servers


class Load:
    """So many threads that use connections one after the other."""

    def __init__(self, use: Callable[[], None]) -> None:
        self._use = use
        self._threads: list[tuple[threading.Event, threading.Thread]] = []
        self.errors: list[BaseException] = []

    def _loop(self, may_end: threading.Event) -> None:
        try:
            while not may_end.is_set():
                self._use()
        except BaseException as error:
            self.errors.append(error)

    def become(self, count: int) -> None:
        """Have so many of them from now on."""
        while len(self._threads) < count:
            may_end = threading.Event()
            self._threads.append((may_end, threading.Thread(target=self._loop, args=(may_end,))))
            self._threads[-1][1].start()
        going, self._threads = self._threads[count:], self._threads[:count]
        for may_end, _ in going:
            may_end.set()
        for _, thread in going:
            thread.join(20)


def changes(records: list[logging.LogRecord]) -> list[tuple[int, int]]:
    return [record.args[2:4] for record in records if record.name == "sqlspec.pool" and isinstance(record.args, tuple)]


def test_a_pool_on_postgresql_follows_a_load_that_rises_and_falls(
    postgresql_server: PostgreSQLServer, caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg2

    caplog.set_level(logging.INFO, "sqlspec.pool")
    config = PoolConfig(pool_size=3, min_pool_size=2, max_pool_size=12)
    options: Any = {**BEYOND_QUEUEPOOL, "pool_size": 3, "max_overflow": 2, "adaptive": AdaptivePool(config, 1.0)}
    # what lingers would stay open for longer than the test lasts
    options["linger_seconds"] = 0.2
    pool = FairQueuePool(lambda: psycopg2.connect(**postgresql_server.parameters()), **options)

    def use() -> None:
        with pool.connect() as connection:
            connection.cursor().execute("SELECT pg_sleep(0.01)")
            assert pool.total() <= 14

    load = Load(use)
    try:
        load.become(1)
        load.become(11)
        wait_until(lambda: pool.size() == 12)
        load.become(0)
        wait_until(lambda: pool.size() == 2)
        wait_until(lambda: pool.stats().total <= 2)
    finally:
        load.become(0)
        pool.close()
    assert load.errors == []
    steps = changes(caplog.records)
    assert steps[:2] == [(3, 8), (8, 12)]
    assert all(2 <= after < before <= after + 5 for before, after in steps[2:])
    assert steps[-1][1] == 2
    assert (pool.stats().grown, pool.stats().shrunk) == (2, len(steps) - 2)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_name_grows_and_is_resized_within_its_bounds(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=1, max_pool_size=4, max_overflow=0), name="primary")
        pool: Any = spec._get_pool("primary")
        callers = [Caller(pool) for _ in range(4)]
        for caller in callers:
            caller.answer()
        stats = spec.get_pool_stats("primary")
        assert (stats.size, stats.capacity, stats.grown) == (4, 4, 1)
        wait_until(lambda: len(database.server.connections()) == 4)
        for caller in callers:
            caller.give_back()
        with pytest.raises(ConfigError, match="between min_pool_size=1 and max_pool_size=4"):
            spec.resize_pool("primary", pool_size=5)
        spec.resize_pool("primary", pool_size=2)
        assert spec.get_pool_stats("primary").size == 2
        config: Any = spec.get_config("primary")
        assert config.pool_size == 1


def test_a_pool_of_tasks_follows_its_load(postgresql_server: PostgreSQLServer) -> None:
    pytest.importorskip("asyncpg")
    from sqlalchemy.ext.asyncio import create_async_engine

    place: Any = postgresql_server.parameters()
    config = PoolConfig(pool_size=1, max_pool_size=6)
    options: Any = {**BEYOND_QUEUEPOOL, "pool_size": 1, "max_overflow": 0, "adaptive": AdaptivePool(config, 1.0)}
    url = f"postgresql+asyncpg://{place['host']}:{place['port']}/{place['dbname']}"
    access = {"user": place["user"], "password": place["password"]}

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AsyncFairQueuePool, connect_args=access, **options)
        pool: Any = engine.sync_engine.pool
        may_end = asyncio.Event()

        async def hold() -> None:
            async with engine.connect():
                await may_end.wait()

        async with asyncio.timeout(30):
            tasks = [asyncio.create_task(hold()) for _ in range(6)]
            while pool.stats().checked_out < 6:
                await asyncio.sleep(0.01)
            assert (pool.size(), pool.stats().grown) == (6, 1)
            may_end.set()
            await asyncio.gather(*tasks)
            while pool.size() > 1 or pool._pool.is_looked_after:
                await asyncio.sleep(0.01)
            assert pool.stats().shrunk >= 1
        await engine.dispose()

    asyncio.run(main())
    gc.collect()
