"""The pool of asyncio's engines: tasks wait in the order of asking, and lose nothing when they are cancelled."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from sqlspec import PoolClosed, PoolTimeout, SQLSpecError
from sqlspec.pool import BEYOND_QUEUEPOOL, AsyncFairQueuePool
from sqlspec.testing import ScriptedDriver
from tests.conftest import PASSWORD
from tests.servers import Server


def make(driver: ScriptedDriver, **options: Any) -> AsyncFairQueuePool:
    return AsyncFairQueuePool(driver.connect, **{"pool_size": 1, "max_overflow": 0, "timeout": 10, **options})


async def connect(pool: AsyncFairQueuePool, timeout: float | None = None) -> Any:
    return await greenlet_spawn(pool.connect, timeout)


async def give_back(connection: Any) -> None:
    await greenlet_spawn(connection.close)


async def line_up(pool: AsyncFairQueuePool, count: int, timeout: float | None = None) -> list[asyncio.Task[Any]]:
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(connect(pool, timeout)))
        await until(lambda: pool.stats().waiters == len(tasks))
    return tasks


async def until(state: Any) -> None:
    deadline = time.monotonic() + 10
    while not state():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.001)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 40))


def test_tasks_are_served_in_the_order_of_asking() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await connect(pool)
        tasks = await line_up(pool, 5)
        await give_back(held)
        for number, task in enumerate(tasks):
            held = await task
            assert [later.done() for later in tasks[number + 1 :]] == [False] * (4 - number)
            await give_back(held)

    run(main())
    assert driver.opened == 1


def test_a_failed_connect_serves_the_next_task_at_once() -> None:
    driver = ScriptedDriver()
    driver.fail("connect", times=1)
    go = asyncio.Event()

    def open_connection() -> Any:
        from sqlalchemy.util import await_only

        if not go.is_set():
            await_only(go.wait())
        return driver.connect()

    async def main() -> None:
        pool = AsyncFairQueuePool(open_connection, pool_size=1, max_overflow=0, timeout=10)
        first = asyncio.create_task(connect(pool))
        await until(lambda: pool.stats().connecting == 1)
        (second,) = await line_up(pool, 1)
        go.set()
        with pytest.raises(driver.Error):
            await first
        await give_back(await second)
        assert pool.stats().wait.max < 5

    run(main())


def test_a_task_gives_up_at_its_deadline() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await connect(pool)
        begin = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"timeout 0\.10"):
            await connect(pool, 0.1)
        assert 0.1 <= time.monotonic() - begin < 5
        await give_back(held)
        await give_back(await connect(pool))

    run(main())


def test_closing_lets_tasks_go_and_waits_for_the_others() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await connect(pool)
        (task,) = await line_up(pool, 1)
        closing = asyncio.create_task(greenlet_spawn(pool.close, 10))
        with pytest.raises(PoolClosed):
            await task
        assert not closing.done()
        await give_back(held)
        assert await closing == 0
        with pytest.raises(PoolClosed):
            await connect(pool)

    run(main())
    assert driver.open_connections == 0


def test_a_task_takes_what_comes_first() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver, pool_size=3, **BEYOND_QUEUEPOOL)
        held = await connect(pool)
        await give_back(await connect(pool))
        driver.fail("connect", times=1)
        second = await connect(pool)
        with pytest.raises(driver.Error):
            await connect(pool)
        await give_back(second)
        await give_back(held)

    run(main())
    assert driver.opened == 2


def test_overflow_lingers_on_the_loop() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver, max_overflow=2, linger_seconds=0.2)
        for held in [await connect(pool) for _ in range(3)]:
            await give_back(held)
        assert pool.stats().overflow == 2
        await until(lambda: pool.stats().closed == {"lingered": 2})

    run(main())
    assert driver.open_connections == 1


def test_holders_are_named_by_task_and_place() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await asyncio.create_task(connect(pool), name="worker-7")
        (holder,) = pool.get_holders()
        assert holder.owner == "task worker-7 (ended)"
        assert holder.place.startswith(f"{__file__}:")
        assert holder.place.endswith(" in connect")
        await give_back(held)

    run(main())


def test_a_nested_checkout_of_a_task_may_be_refused_and_one_of_its_child_may_not() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver, pool_size=2, nested_checkout="refuse")
        held = await connect(pool)
        with pytest.raises(SQLSpecError, match="task Task-"):
            await connect(pool)
        await give_back(await asyncio.create_task(connect(pool)))
        await give_back(held)
        await give_back(await connect(pool))

    run(main())


@pytest.mark.fault(33)
@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
def test_a_dropped_connection_gives_its_place_back_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await connect(pool)
        del held
        gc.collect()
        assert (pool.stats().dropped, dict(pool.stats().closed)) == (1, {"detached": 1})
        await give_back(await connect(pool))

    run(main())
    (record,) = [record for record in caplog.records if record.name == "sqlspec.pool"]
    assert f"{__file__}:" in record.getMessage()


def test_a_detached_connection_was_not_dropped() -> None:
    driver = ScriptedDriver()

    async def main() -> None:
        pool = make(driver)
        held = await connect(pool)
        held.detach()
        assert (pool.stats().dropped, dict(pool.stats().closed)) == (0, {"detached": 1})
        await give_back(held)

    run(main())


@pytest.mark.fault(39)
@pytest.mark.parametrize("options", [{}, BEYOND_QUEUEPOOL])
def test_tasks_cancelled_at_any_moment_lose_nothing(options: dict[str, Any]) -> None:
    driver = ScriptedDriver()
    chance = random.Random(3)  # noqa: S311  # not for secrets

    async def work(pool: AsyncFairQueuePool) -> None:
        held = await connect(pool, chance.choice([None, 0.001, 5.0]))
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            if chance.random() < 0.1:
                held.invalidate()
            held.close()

    async def main() -> None:
        pool = make(driver, pool_size=2, max_overflow=1, **options)
        for _ in range(40):
            tasks = [asyncio.create_task(work(pool)) for _ in range(20)]
            await asyncio.sleep(chance.random() * 0.004)
            for task in tasks:
                if chance.random() < 0.6:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: pool.stats().connecting == 0)
        stats = pool.stats()
        assert (stats.checked_out, stats.waiters) == (0, 0)
        assert stats.created - sum(stats.closed.values()) == stats.total == driver.open_connections
        for held in [await connect(pool, 5) for _ in range(3)]:
            await give_back(held)

    run(main())
    assert driver.double_closes == 0


@pytest.mark.fault(40)
def test_a_loop_that_ends_with_waiters_takes_none_with_it(caplog: pytest.LogCaptureFixture) -> None:
    driver = ScriptedDriver()
    pool = make(driver)
    held: list[Any] = []

    async def abandon() -> None:
        held.append(await connect(pool))
        await line_up(pool, 2)

    asyncio.run(abandon())
    assert pool.stats().waiters == 0
    held.pop().close()

    async def go_on() -> None:
        await give_back(await connect(pool))

    run(go_on())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.fault(40)
def test_a_waiter_of_a_loop_that_was_closed_gets_nothing() -> None:
    driver = ScriptedDriver()
    pool = make(driver)
    held: list[Any] = []
    loop = asyncio.new_event_loop()

    async def abandon() -> list[asyncio.Task[Any]]:
        held.append(await connect(pool))
        return await line_up(pool, 1)

    tasks = loop.run_until_complete(abandon())
    loop.close()
    assert pool.stats().waiters == 1
    held.pop().close()

    async def go_on() -> None:
        await give_back(await connect(pool))

    run(go_on())
    for task in tasks:
        # it is pending for ever, and would say so
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for that


def test_a_burst_of_tasks_is_served_by_the_connections_there_are() -> None:
    driver = ScriptedDriver()
    slow = False

    def open_connection() -> Any:
        from sqlalchemy.util import await_only

        if slow:
            await_only(asyncio.sleep(0.3))
        return driver.connect()

    async def work(pool: AsyncFairQueuePool) -> None:
        held = await connect(pool)
        await asyncio.sleep(0.002)
        await give_back(held)

    async def main() -> None:
        nonlocal slow
        pool = AsyncFairQueuePool(open_connection, pool_size=50, max_overflow=0, timeout=10, **BEYOND_QUEUEPOOL)
        for held in [await connect(pool) for _ in range(5)]:
            await give_back(held)
        slow = True
        await asyncio.gather(*(work(pool) for _ in range(50)))
        await until(lambda: pool.stats().connecting == 0)
        assert driver.opened <= 10

    run(main())


def test_shrinking_from_a_coroutine_closes_connections(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}?plugin=sqlspec")
        pool: Any = engine.pool
        before = set(threading.enumerate())
        connections = [await engine.connect() for _ in range(3)]
        for connection in connections:
            await connection.close()
        pool.resize(1, 0)
        await until(lambda: len(set(threading.enumerate()) - before) == 1)
        assert pool.stats().total == 1
        await engine.dispose()

    run(main())


def test_another_loop_looks_after_overflow_as_well() -> None:
    driver = ScriptedDriver()
    pool = make(driver, max_overflow=2, linger_seconds=0.2)

    async def overflow() -> None:
        for held in [await connect(pool) for _ in range(3)]:
            await give_back(held)

    asyncio.run(overflow())

    async def again() -> None:
        await overflow()
        await until(lambda: pool.stats().closed == {"lingered": 2})

    run(again())


def test_an_engine_on_postgresql_serves_tasks_fairly(postgresql_server: Server) -> None:
    url = sa.URL.create(
        "postgresql+asyncpg", "app", PASSWORD, "127.0.0.1", postgresql_server.port, "postgres", {"plugin": "sqlspec"}
    )
    served = [0] * 12

    async def loop(engine: AsyncEngine, number: int, until: float) -> None:
        while time.monotonic() < until:
            async with engine.connect() as connection:
                assert (await connection.execute(sa.text("SELECT 42 + 0"))).scalar() == 42
            served[number] += 1

    async def main() -> None:
        engine = create_async_engine(url, pool_size=3, max_overflow=0)
        assert type(engine.pool) is AsyncFairQueuePool
        until = time.monotonic() + 1.0
        await asyncio.gather(*(loop(engine, number, until) for number in range(12)))
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT 'a' FROM pg_class"))
            (holder,) = engine.pool.get_holders()
            assert holder.statement == "SELECT …"
            assert holder.place.endswith(" in main")
        await engine.dispose()

    run(main())
    assert max(served) <= 1.5 * min(served) + 5


def test_an_engine_on_sqlite_comes_from_the_plugin(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}?plugin=sqlspec")
        async with engine.connect() as connection:
            assert (await connection.execute(sa.text("SELECT 1"))).scalar() == 1
        assert type(engine.pool) is AsyncFairQueuePool
        await engine.dispose()

    run(main())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="there are no eager tasks before Python 3.12")
def test_the_pools_own_work_does_not_begin_within_work_that_is_under_way_where_tasks_are_eager() -> None:
    async def main() -> None:
        loop, pool, begun = asyncio.get_running_loop(), make(ScriptedDriver()), []
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # of Python 3.12

        def work() -> None:
            pool._spawn(loop, begun.append, 1)
            assert begun == []

        await greenlet_spawn(work)
        await pool.finish()
        assert begun == [1]

    run(main())
