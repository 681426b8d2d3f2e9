"""What becomes of connections while nobody uses them: some are kept ready, some are closed, some are asked."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlspec import ConfigError, ConnectionFacts, RecyclingStrategy, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool
from sqlspec.pool.upkeep import delay_after
from sqlspec.testing import FaultProxy, ScriptedDriver
from tests.callers import Caller, line_up
from tests.conftest import Database
from tests.servers import wait_until


@pytest.fixture
def make(driver: ScriptedDriver) -> Iterator[Any]:
    """Make pools of engines, and see that all is closed with them."""
    pools: list[Any] = []

    def make(**options: Any) -> Any:
        engine = driver.engine(**{**BEYOND_QUEUEPOOL, "pool_size": 3, "max_overflow": 0, **options})
        pools.append(engine.pool)
        return engine.pool

    yield make
    driver.heal()
    for pool in pools:
        assert pool.close(10) == 0
    wait_until(lambda: driver.open_connections == 0)


def use(pool: Any, count: int = 1) -> None:
    held = [pool.connect() for _ in range(count)]
    for connection in held:
        connection.close()


# -- options that contradict each other


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_pool_size": 6, "pool_size": 5}, "min_pool_size"),
        ({"min_pool_size": -1}, "min_pool_size"),
        ({"pool_idle_timeout": 0}, "pool_idle_timeout"),
        ({"pool_keepalive": -1}, "pool_keepalive"),
        ({"pool_idle_timeout": 30, "pool_keepalive": 60}, "pool_keepalive"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        SyncDatabaseConfig(**options)
    assert caught.value.field in {field, None}


def test_connections_that_are_kept_ready_may_be_asked_later_than_others_are_closed() -> None:
    config = SyncDatabaseConfig(min_pool_size=2, pool_idle_timeout=30, pool_keepalive=60)
    assert (config.min_pool_size, config.pool_idle_timeout, config.pool_keepalive) == (2, 30, 60)


# -- connections that are kept ready


def test_connections_are_kept_ready_from_the_first_checkout_on(make: Any, driver: ScriptedDriver) -> None:
    pool = make(min_pool_size=2)
    assert driver.opened == 0
    use(pool)
    wait_until(lambda: driver.open_connections == 2)
    assert (pool.stats().total, pool.stats().checked_out) == (2, 0)
    held = pool.connect()
    held.invalidate()
    wait_until(lambda: driver.open_connections == 2)
    assert driver.opened == 3


def test_an_attempt_that_fails_is_followed_by_a_pause(
    make: Any, driver: ScriptedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make(min_pool_size=3)
    use(pool)
    with caplog.at_level(logging.WARNING, "sqlspec.pool"):
        driver.fail("connect", driver.OperationalError("password=secret"))
        wait_until(lambda: pool.stats().failed_connects >= 1)
        # of the two that are missing, one is tried
        assert pool.stats().failed_connects == 1
        driver.heal()
        wait_until(lambda: driver.open_connections == 3)
    assert "OperationalError; the next attempt is in 1 s" in caplog.text
    assert "secret" not in caplog.text


def test_pauses_grow_up_to_half_a_minute() -> None:
    assert [delay_after(failures) for failures in (1, 2, 3, 5, 6, 1000)] == [1.0, 2.0, 4.0, 16.0, 30.0, 30.0]


def test_an_attempt_in_the_background_that_hangs_keeps_nobody_waiting(make: Any, driver: ScriptedDriver) -> None:
    pool = make(min_pool_size=2)
    held = pool.connect()
    driver.hang("connect", times=1)
    wait_until(lambda: pool.stats().connecting == 1)
    caller = Caller(pool)
    caller.answer()
    assert pool.stats().connecting == 1
    caller.give_back()
    held.close()


def test_who_waits_gets_the_connection_that_was_opened_to_be_ready(make: Any, driver: ScriptedDriver) -> None:
    pool = make(min_pool_size=2, pool_size=2)
    held = pool.connect()
    go = driver.hang("connect", times=1)
    wait_until(lambda: pool.stats().connecting == 1)
    (caller,) = line_up(pool, 1)
    go.set()
    caller.answer()
    assert driver.opened == 2
    caller.give_back()
    held.close()


def test_there_are_never_more_than_the_pool_may_have(make: Any, driver: ScriptedDriver) -> None:
    pool = make(min_pool_size=3, recycling=RecyclingStrategy(max_age=0.05))
    most, until = [0], time.monotonic() + 2.5

    def work() -> None:
        while time.monotonic() < until:
            use(pool)
            most[0] = max(most[0], driver.open_connections)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 1 <= most[0] <= 3
    assert pool.stats().closed["recycled"] > 3


def test_a_strategy_that_always_says_yes_opens_nothing_without_end(make: Any, driver: ScriptedDriver) -> None:
    class Always(RecyclingStrategy):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def should_recycle(self, facts: ConnectionFacts) -> bool:
            self.asked += 1
            return True

    strategy = Always()
    pool = make(min_pool_size=2, recycling=strategy)
    use(pool)
    # the one that was used is replaced, and the one beside it is opened
    wait_until(lambda: (driver.open_connections, driver.opened) == (2, 3))
    asked = strategy.asked
    wait_until(lambda: strategy.asked >= asked + 8)
    assert driver.opened == 3


# -- connections that are not needed


def test_idle_connections_are_closed_down_to_those_that_are_kept_ready(make: Any, driver: ScriptedDriver) -> None:
    pool = make(min_pool_size=1, idle_timeout=0.2)
    held = pool.connect()
    use(pool, 2)
    wait_until(lambda: driver.open_connections == 1)
    assert dict(pool.stats().closed) == {"idle": 2}
    assert held.is_valid
    held.close()
    assert driver.opened == 3


def test_connections_in_use_are_not_idle(make: Any, driver: ScriptedDriver) -> None:
    pool = make(idle_timeout=0.1)
    held = pool.connect()
    use(pool)
    wait_until(lambda: dict(pool.stats().closed) == {"idle": 1})
    assert driver.open_connections == 1
    held.close()
    wait_until(lambda: dict(pool.stats().closed) == {"idle": 2})


def test_a_ping_is_no_use(make: Any, driver: ScriptedDriver) -> None:
    pool = make(idle_timeout=0.6, keepalive=0.1)
    use(pool)
    wait_until(lambda: driver.open_connections == 0)
    assert driver.calls["ping"] >= 1
    assert dict(pool.stats().closed) == {"idle": 1}


# -- connections that are asked


def test_idle_connections_are_asked_and_stay(make: Any, driver: ScriptedDriver) -> None:
    pool = make(keepalive=0.1, ping_after=30.0)
    use(pool, 2)
    wait_until(lambda: driver.calls["ping"] >= 6)
    assert (pool.stats().checked_in, driver.opened) == (2, 2)
    assert pool.stats().hold.count == 2
    use(pool)
    assert driver.opened == 2


def test_a_dead_connection_is_found_while_it_is_idle(make: Any, driver: ScriptedDriver) -> None:
    pool = make(keepalive=0.1)
    use(pool, 2)
    driver.fail("ping", times=1)
    wait_until(lambda: driver.open_connections == 1)
    assert pool.stats().disconnects == 1
    use(pool, 3)
    assert driver.opened == 4


def test_who_waits_gets_the_connection_that_is_just_being_asked(make: Any, driver: ScriptedDriver) -> None:
    pool = make(keepalive=0.05, pool_size=1)
    use(pool)
    go = driver.hang("ping", times=1)
    wait_until(lambda: driver.calls["ping"] == 1)
    (caller,) = line_up(pool, 1)
    go.set()
    caller.answer()
    assert driver.opened == 1
    caller.give_back()


def test_a_connection_that_dies_while_it_is_asked_serves_who_waits_with_a_new_one(
    make: Any, driver: ScriptedDriver
) -> None:
    pool = make(keepalive=0.05, pool_size=1)
    use(pool)
    driver.fail("ping", times=1)
    go = driver.hang("ping", times=1)
    wait_until(lambda: driver.calls["ping"] == 1)
    (caller,) = line_up(pool, 1)
    go.set()
    caller.answer()
    assert (driver.opened, driver.closed) == (2, 1)
    caller.give_back()


def test_a_pool_that_closes_while_a_connection_is_asked_closes_that_as_well(make: Any, driver: ScriptedDriver) -> None:
    pool = make(keepalive=0.05, pool_size=1)
    use(pool)
    go = driver.hang("ping", times=1)
    wait_until(lambda: driver.calls["ping"] == 1)
    pool.close()
    go.set()
    wait_until(lambda: driver.open_connections == 0)
    assert pool.stats().closed == {"closed": 1}


def test_a_ping_that_hangs_holds_up_no_other_pool(make: Any, driver: ScriptedDriver) -> None:
    other = ScriptedDriver()
    pool = make(keepalive=0.05)
    use(pool)
    go = driver.hang("ping", times=1)
    wait_until(lambda: driver.calls["ping"] == 1)
    second = FairQueuePool(other.connect, idle_timeout=0.1)
    use(second)
    wait_until(lambda: other.open_connections == 0)
    assert driver.calls["ping"] == 1
    go.set()
    second.close()


def test_the_hottest_connection_stays_the_next_one_where_the_last_used_goes_first(
    make: Any, driver: ScriptedDriver
) -> None:
    pool = make(keepalive=0.1, pool_use_lifo=True)
    use(pool, 3)
    last: Any = pool.connect()
    slot = last._connection_record
    last.close()
    wait_until(lambda: driver.calls["ping"] >= 9)
    pool._keepalive = None
    wait_until(lambda: len(pool._pool.queue) == 3 and not pool._pool.is_kept_up)
    again: Any = pool.connect()
    assert again._connection_record is slot
    again.close()


# -- on databases, in threads and in tasks


def connections_at(database: Database) -> int:
    return len(database.server.connections())


def test_a_database_gets_and_keeps_the_connections_that_are_to_be_ready(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=3, min_pool_size=3, max_overflow=0), name="ready")
    with any_spec.get_session("ready") as session:
        assert session.execute("SELECT 1").scalar() == 1
    wait_until(lambda: any_spec.get_pool_stats("ready").total == 3)
    if database.server is not None:
        database.server.end_connections()
        with any_spec.get_session("ready") as session:
            assert session.execute("SELECT 1").scalar() == 1
    for _ in range(5):
        with any_spec.get_session("ready") as session:
            assert session.execute("SELECT 1").scalar() == 1
    wait_until(lambda: any_spec.get_pool_stats("ready").total == 3)
    assert any_spec.get_pool_stats("ready").checked_out == 0


def test_a_database_is_let_go_of_by_a_pool_that_is_idle(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_idle_timeout=0.3), name="idle")
    with any_spec.get_session("idle") as session:
        assert session.execute("SELECT 1").scalar() == 1
    wait_until(lambda: any_spec.get_pool_stats("idle").total == 0)
    assert any_spec.get_pool_stats("idle").closed == {"idle": 1}
    with any_spec.get_session("idle") as session:
        assert session.execute("SELECT 1").scalar() == 1


def test_worn_connections_to_a_database_are_closed_while_idle(any_spec: Any, database: Database) -> None:
    strategy = RecyclingStrategy(max_age=0.3)
    any_spec.register_config(database.config(pool_recycling=strategy, min_pool_size=1), name="worn")
    with any_spec.get_session("worn") as session:
        assert session.execute("SELECT 1").scalar() == 1
    wait_until(lambda: any_spec.get_pool_stats("worn").closed.get("recycled", 0) >= 2)
    wait_until(lambda: any_spec.get_pool_stats("worn").total == 1)
    assert any_spec.get_pool_stats("worn").created <= 1 + any_spec.get_pool_stats("worn").closed["recycled"]


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_dead_connections_to_a_server_are_found_while_idle(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_keepalive=0.3), name="asked")
    with any_spec.get_session("asked") as session:
        assert session.execute("SELECT 1").scalar() == 1
    wait_until(lambda: all(slot.pinged for slot in any_spec._get_pool("asked")._pool.all()))
    assert any_spec.get_pool_stats("asked").closed == {}
    database.server.end_connections()
    wait_until(lambda: any_spec.get_pool_stats("asked").closed == {"disconnect": 1})
    with any_spec.get_session("asked") as session:
        assert session.execute("SELECT 1").scalar() == 1


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_a_connection_in_a_black_hole_is_closed_a_second_after_it_is_asked(any_spec: Any, database: Database) -> None:
    with FaultProxy(database.server.port) as hole:
        any_spec.register_config(database.config(port=hole.port, pool_keepalive=0.3), name="asked")
        with any_spec.get_session("asked") as session:
            assert session.execute("SELECT 1").scalar() == 1
        hole.swallow()
        wait_until(lambda: any_spec.get_pool_stats("asked").closed == {"disconnect": 1})
        with any_spec.get_session("asked") as session:
            assert session.execute("SELECT 1").scalar() == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_asking_leaves_no_transaction_open(any_spec: Any, database: Database) -> None:
    options = {"pool_keepalive": 0.2, "application_name": "asked"}
    any_spec.register_config(database.config(**options), name="asked")
    with any_spec.get_session("asked") as session:
        session.execute("SELECT 1")
    wait_until(lambda: all(slot.pinged for slot in any_spec._get_pool("asked")._pool.all()))
    with SQLSpec() as other:
        other.register_config(database.config())
        with other.get_session() as session:
            states = session.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'asked'")
            assert set(states.scalars()) == {"idle"}


def test_a_database_in_memory_stays_whatever_the_options_say() -> None:
    config = SQLiteConfig(database=":memory:", pool_idle_timeout=0.05, pool_keepalive=0.01)
    with SQLSpec() as spec:
        spec.register_config(config)
        with spec.get_session() as session:
            session.execute("CREATE TABLE users (name TEXT)")
        time.sleep(0.3)
        assert not spec._get_pool()._has_upkeep
        with spec.get_session() as session:
            assert session.execute("SELECT * FROM users").all() == []


def test_the_end_of_a_loop_ends_its_upkeep(database: Database) -> None:
    config = database.config(pool_size=3, min_pool_size=2, pool_keepalive=0.05)

    async def main(spec: SQLSpec) -> None:
        async with spec.get_async_session() as session:
            assert (await session.execute("SELECT 1")).scalar() == 1
        deadline = time.monotonic() + 10
        while spec.get_pool_stats().total < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    for _ in range(2):
        with SQLSpec() as spec:
            spec.register_config(config)
            asyncio.run(main(spec))


def test_a_pool_that_is_closed_looks_no_more_on_its_loop(database: Database) -> None:
    async def main(spec: SQLSpec) -> None:
        async with spec.get_async_session() as session:
            await session.execute("SELECT 1")
        pool: Any = spec.get_async_engine().pool
        timer = pool._pool.timer
        assert not timer.cancelled()
        await spec.aclose()
        # a loop that ends at that moment would drop the task of the look
        assert timer.cancelled()

    with SQLSpec() as spec:
        spec.register_config(database.config(pool_idle_timeout=60.0))
        asyncio.run(main(spec))


# -- the thread


def run(program: str, tmp_path: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


PRELUDE = """
import os, threading, time
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig

def threads():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("sqlspec"))

def wait_for(state):
    until = time.monotonic() + 10
    while not state():
        assert time.monotonic() < until, threads()
        time.sleep(0.01)

def use(spec, name="default"):
    with spec.get_session(name) as session:
        session.execute("SELECT 1")

"""


def test_one_thread_serves_all_pools_and_goes_with_the_last_one(tmp_path: Path) -> None:
    run(
        PRELUDE
        + """
spec = SQLSpec()
for name in "ab":
    spec.register_config(SQLiteConfig(database=f"{name}.db", min_pool_size=2, pool_idle_timeout=600), name=name)
spec.register_config(SQLiteConfig(database="c.db"), name="plain")
use(spec, "plain")
assert threads() == []
for name in "ab":
    use(spec, name)
wait_for(lambda: all(spec.get_pool_stats(name).total == 2 for name in "ab"))
wait_for(lambda: threads() == ["sqlspec-housekeeping"])
spec.close()
wait_for(lambda: threads() == [])
""",
        tmp_path,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_upkeep_of_its_own(tmp_path: Path) -> None:
    run(
        PRELUDE
        + """
spec = SQLSpec()
spec.register_config(SQLiteConfig(database="app.db", pool_size=3, min_pool_size=2))
use(spec)
wait_for(lambda: spec.get_pool_stats().total == 2)
if os.fork() == 0:
    assert threads() == []
    use(spec)
    wait_for(lambda: spec.get_pool_stats().total == 2)
    wait_for(lambda: threads() == ["sqlspec-housekeeping"])
    spec.close()
    wait_for(lambda: threads() == [])
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
wait_for(lambda: spec.get_pool_stats().total == 2)
spec.close()
""",
        tmp_path,
    )
