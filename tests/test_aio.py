"""What tasks and event loops have of their own; what holds for threads as well is in test_behaviour.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import warnings
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ConfigError, ConnectionTimeout, PoolClosed, SQLSpec, SQLSpecWarning
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig
from sqlspec.testing import FaultProxy, assert_no_leaks
from tests.conftest import Database
from tests.servers import wait_until
from tests.test_cancellation import SLOW, server_side


@pytest.fixture
def registry(database: Database) -> Iterator[SQLSpec]:
    registry = SQLSpec()
    registry.register_config(database.config(pool_size=2, max_overflow=0))
    yield registry
    assert_no_leaks(registry)


# -- statements


def test_a_statement_is_awaited_by_itself_or_by_a_method_of_its_result(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry, registry.get_async_session() as session:
            query = "SELECT 1 AS one UNION ALL SELECT 2 ORDER BY 1"
            assert (await session.execute(query)).all() == [(1,), (2,)]
            assert await session.execute(query).all() == [(1,), (2,)]
            assert await session.execute(query).first() == (1,)
            assert await session.execute(query).scalar() == 1
            assert (await session.execute(query).scalars()).all() == [1, 2]
            assert (await session.execute(query).mappings()).all() == [{"one": 1}, {"one": 2}]
            assert await session.execute("SELECT 5").one() == (5,)
            assert await session.execute("SELECT 5").one_or_none() == (5,)
            assert await session.execute("SELECT 5").scalar_one() == 5
            assert await session.execute("SELECT 5").scalar_one_or_none() == 5
            assert await session.execute(sa.select(sa.literal_column("7"))).scalar() == 7
            with pytest.raises(exc.MultipleResultsFound):
                await session.execute(query).one()

    asyncio.run(main())


def test_a_statement_that_is_never_awaited_warns_of_its_place(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry, registry.get_async_session() as session:
            with pytest.warns(RuntimeWarning, match=rf"the statement at {__file__}:\d+ in main was never awaited"):  # noqa: PT031  # collecting the garbage warns
                session.execute("SELECT 1")
                gc.collect()
            pending = session.execute("SELECT 1")
            assert repr(pending).endswith("in main, not awaited yet>")
            await pending
            with pytest.raises(RuntimeError, match="awaited already"):
                await pending

    asyncio.run(main())


def test_a_savepoint_and_a_connection_want_their_block_first(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry, registry.get_async_session() as session:
            with pytest.raises(RuntimeError, match="not set yet"):
                await session.begin_nested().commit()
            savepoint = await session.begin_nested()
            assert savepoint.is_active
            await savepoint.rollback()
            with pytest.raises(RuntimeError, match="not checked out yet"):
                registry.get_async_connection().cursor()

    asyncio.run(main())


def test_rows_of_a_cursor_are_iterated_and_lost_work_is_warned_of(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry:
            async with registry.get_async_connection() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT 1 UNION ALL SELECT ? ORDER BY 1", (2,))
                assert [tuple(row) async for row in cursor] == [(1,), (2,)]
                assert await cursor.fetchone() is None
                assert connection.driver_connection is not None
            with pytest.warns(SQLSpecWarning, match="without commit") as caught:  # noqa: PT031  # the end of the block warns
                async with registry.get_async_connection() as connection:
                    await connection.cursor().execute("CREATE TEMPORARY TABLE undone (id INTEGER)")
                    await connection.cursor().execute("INSERT INTO undone VALUES (1)")
            assert caught[0].filename == __file__

    asyncio.run(main())


def test_sqlalchemys_connection_is_in_the_same_transaction(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry, registry.get_async_session() as session:
            await session.execute("CREATE TEMPORARY TABLE here (id INTEGER)")
            connection = await session.connection()
            await connection.execute(sa.text("INSERT INTO here VALUES (1)"))
            assert await session.execute("SELECT count(*) FROM here").scalar() == 1
            await session.rollback()

    asyncio.run(main())


# -- event loops


def test_loops_that_come_and_go_leave_nothing_behind(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with registry.get_async_session() as session:
            assert await session.execute("SELECT 1").scalar() == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            asyncio.run(main())
        gc.collect()
    manager = registry._managers["default"]
    assert len(manager._sources) == 1
    assert manager.pools() == []
    assert registry.get_pool_stats().total == 0
    if database.name != "sqlite":
        assert server_side(database) == []
    registry.close()


def test_a_file_that_cannot_be_opened_leaves_no_thread_that_answers_to_a_loop_that_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")

    # an error of such a thread fails the test
    before = set(threading.enumerate())
    with SQLSpec() as registry:
        registry.register_config(SQLiteConfig(database=str(tmp_path / "nowhere" / "app.db")))
        for _ in range(100):
            with pytest.raises(exc.OperationalError):
                asyncio.run(main())
            assert set(threading.enumerate()) <= before


def open_databases() -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).endswith(".db") for link in links if os.path.lexists(link))


def test_a_loop_that_ends_in_the_middle_of_statements_leaves_no_thread_and_no_connection(
    registry: SQLSpec, database: Database
) -> None:
    async def hold() -> None:
        async with registry.get_async_session() as session:
            await session.execute(SLOW[database.name], (1, 3.0))

    async def main() -> None:
        tasks = [asyncio.ensure_future(hold()) for _ in range(2)]
        while registry.get_pool_stats().checked_out < 2:
            await asyncio.sleep(0.01)
        # the loop ends without waiting for them
        assert not any(task.done() for task in tasks)

    before, files = set(threading.enumerate()), open_databases()
    asyncio.run(main())
    # those of drivers; the pool's own end by themselves
    wait_until(lambda: all("sqlspec" in thread.name for thread in set(threading.enumerate()) - before))
    if database.name == "sqlite":
        # tracebacks of cancelled tasks have cursors, without which SQLite does not close its files
        gc.collect()
        assert open_databases() == files
    else:
        # PostgreSQL looks after its clients when a statement ends
        wait_until(lambda: server_side(database) == [], 20)


def test_each_loop_has_a_pool_and_the_statistics_add_up(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")
            with registry.get_session() as other:
                other.execute("SELECT 1")
                stats = registry.get_pool_stats()
                assert (stats.checked_out, stats.total, stats.size, stats.capacity) == (2, 2, 4, 4)
                assert [part.checked_out for part in stats.parts] == [1, 1]
                assert stats.created == stats.connect.count == 2
                assert sum(stats.connect.buckets.values()) == 2
                assert len(registry.get_holders()) == 2
        registry.resize_pool(pool_size=3)
        assert registry.get_pool_stats().size == 6
        await registry.aclose()

    asyncio.run(main())


def test_a_resized_name_has_its_size_in_each_loop_to_come(registry: SQLSpec) -> None:
    async def main() -> int:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")
        return registry.get_pool_stats().size

    assert asyncio.run(main()) == 2
    registry.resize_pool(pool_size=5)
    # that of the threads, which the resizing has made, and that of the loop
    assert asyncio.run(main()) == 10
    registry.close()


def test_what_an_other_loop_uses_closes_in_that_loop(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")
            await asyncio.to_thread(registry.close)
            assert await session.execute("SELECT 2").scalar() == 2
        with pytest.raises(PoolClosed):
            registry.get_async_session()
        async with asyncio.timeout(20):
            while registry._managers["default"].pools()[-1].total():
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_replaced_config_serves_tasks_as_well(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        waiting = registry.get_async_session()
        registry.register_config(database.config(pool_size=1, max_overflow=0), replace=True)
        async with waiting as session:
            assert await session.execute("SELECT 1").scalar() == 1
        assert registry.get_pool_stats().size == 1
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")
            with pytest.raises(ConnectionTimeout, match="1 checked out"):
                async with registry.get_async_connection(timeout=0.05):
                    pass
        await registry.aclose()

    asyncio.run(main())


def test_a_driver_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    async def ask(config: PostgreSQLConfig | SQLiteConfig) -> None:
        registry = SQLSpec()
        registry.register_config(config)
        registry.get_async_session()

    for config, message in (
        (PostgreSQLConfig(url="postgresql+psycopg2://h/d"), "psycopg2 is synchronous only"),
        (SQLiteConfig(url=f"sqlite+pysqlite:///{tmp_path}/a.db"), "pysqlite .* is synchronous only"),
        (SQLiteConfig(database=":memory:"), "it would be another database"),
    ):
        with pytest.raises(ConfigError, match=message):
            asyncio.run(ask(config))
    registry = SQLSpec()
    registry.register_config(PostgreSQLConfig(url="postgresql+asyncpg://h/d"))
    with pytest.raises(ConfigError, match="asyncpg is asynchronous only"):
        registry.get_session()
    with pytest.raises(ConfigError, match="no event loop runs here"):
        registry.get_async_session()


# -- given up


def test_a_timeout_around_a_query_costs_no_new_connection(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with registry:
            async with registry.get_async_session() as session:
                await session.execute("SELECT 1")
            before = registry.get_pool_stats().created
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), registry.get_async_session() as session:
                    await session.execute(SLOW[database.name], (1, 20.0))
            async with registry.get_async_session() as session:
                await session.execute("SELECT 1")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await session.execute(SLOW[database.name], (1, 20.0))
                if database.name != "mariadb":
                    with pytest.raises(exc.PendingRollbackError, match="a statement was cancelled"):
                        await session.execute("SELECT 1")
                await session.rollback()
                assert await session.execute("SELECT 3").scalar() == 3
            # asyncmy cannot end a statement
            assert registry.get_pool_stats().created - before == (2 if database.name == "mariadb" else 0)

    asyncio.run(main())


# the others cancel by themselves, or cannot
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_a_statement_ends_that_is_cancelled_before_it_has_begun(
    registry: SQLSpec, database: Database, kind: str
) -> None:
    async def ask() -> None:
        if kind == "session":
            async with registry.get_async_session() as session:
                await session.execute("SELECT 1")
                async with asyncio.timeout(0):
                    await session.execute(SLOW[database.name], (1, 20.0))
        else:
            async with registry.get_async_connection() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
                async with asyncio.timeout(0):
                    await cursor.execute(SLOW[database.name], (1, 20.0))

    async def main() -> None:
        async with registry, asyncio.timeout(20):
            for _ in range(10):
                with pytest.raises(TimeoutError):
                    await ask()
            if kind == "session":
                assert registry.get_pool_stats().created == 1

    asyncio.run(main())


def test_it_works_under_anyio_where_each_await_is_cancelled(
    registry: SQLSpec, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with registry:
            for _ in range(10):
                with anyio.move_on_after(0.02) as scope:
                    async with registry.get_async_session() as session:
                        await session.execute(SLOW[database.name], (1, 20.0))
                assert scope.cancelled_caught
            async with registry.get_async_session() as session:
                assert await session.execute("SELECT 3").scalar() == 3
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    while registry.get_pool_stats().checked_out:
                        await asyncio.sleep(0.01)
            assert registry.get_pool_stats().checked_out == 0

    anyio.run(main)
    gc.collect()
    assert "Task was destroyed" not in caplog.text
    if database.config().driver().name in {"psycopg2", "psycopg"}:
        # asyncmy cannot end a statement
        wait_until(lambda: not any("pg_sleep" in told for told in database.server.activity()), seconds=5)


async def _within(seconds: float, library: str, work: Awaitable[Any]) -> None:
    if library == "asyncio":
        async with asyncio.timeout(seconds):
            await work
    else:
        with anyio.fail_after(seconds):
            await work


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
@pytest.mark.parametrize("cancelled_by", ["asyncio", "anyio"])
def test_a_statement_that_is_cancelled_before_the_server_begins_with_it_is_ended(
    registry: SQLSpec, database: Database, cancelled_by: str
) -> None:
    async def main() -> None:
        async with registry:
            for number in range(1, 200):
                async with registry.get_async_session() as session:
                    assert await session.execute("SELECT 1").scalar() == 1
                with pytest.raises(TimeoutError):
                    async with registry.get_async_session() as session:
                        await _within(number / 100_000, cancelled_by, session.execute("SELECT pg_sleep(20)"))
            assert registry.get_pool_stats().created == 1
            assert registry.get_pool_stats().hold.max < 4

    asyncio.run(main())
    assert not database.server.connections()


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_a_cancelled_task_ends_though_nothing_comes_to_the_server_any_more(
    registry: SQLSpec, database: Database
) -> None:
    async def ask() -> None:
        async with registry.get_async_session("far") as session:
            await session.execute("SELECT pg_sleep(20)")

    async def main(network: FaultProxy) -> None:
        async with registry:
            asking = asyncio.create_task(ask())
            await asyncio.to_thread(wait_until, lambda: "pg_sleep" in str(database.server.activity()))
            network.swallow(later_ones=True)
            asking.cancel()
            await asyncio.wait({asking}, timeout=30)
            assert asking.cancelled()

    with FaultProxy(database.server.port) as network:
        registry.register_config(database.config(port=network.port), "far")
        asyncio.run(main(network))
    # the server knows of nothing, and goes on
    database.server.end_connections()


@pytest.mark.fault(69)
def test_a_schema_change_costs_one_statement_at_most(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry, registry.get_async_session(autocommit=True) as session:
            await session.execute("DROP TABLE IF EXISTS grown")
            await session.execute("CREATE TABLE grown (id INTEGER)")
            await session.execute("INSERT INTO grown VALUES (1)")
            assert await session.execute("SELECT * FROM grown").all() == [(1,)]
            await session.execute("ALTER TABLE grown ADD COLUMN more INTEGER DEFAULT 5")
            with contextlib.suppress(exc.DBAPIError):
                await session.execute("SELECT * FROM grown")
            assert await session.execute("SELECT * FROM grown").all() == [(1, 5)]

    asyncio.run(main())


def test_discarding_the_session_keeps_what_the_driver_has_prepared(registry: SQLSpec, database: Database) -> None:
    registry.register_config(database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0), "discard")

    async def main() -> None:
        for _ in range(10):
            async with registry.get_async_session("discard") as session:
                assert await session.execute("SELECT CAST(? AS INTEGER)", (1,)).scalar() == 1
            with registry.get_session("discard") as other:
                assert other.execute("SELECT CAST(? AS INTEGER)", (1,)).scalar() == 1
        await registry.aclose()

    asyncio.run(main())


def test_first_connections_to_a_new_file_wait_for_each_other(tmp_path: Path) -> None:
    async def main(number: int) -> None:
        async with SQLSpec() as registry:
            registry.register_config(SQLiteConfig(database=str(tmp_path / f"{number}.db")))

            async def ask() -> None:
                async with registry.get_async_session() as session:
                    await session.execute("SELECT 1")

            await asyncio.gather(*(ask() for _ in range(8)))

    for number in range(10):
        asyncio.run(main(number))


# -- two tasks at once


def test_of_two_tasks_that_share_a_session_one_is_refused_and_no_connection_is_lost(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry:
            async with registry.get_async_session() as session:
                for _ in range(2):
                    results = await asyncio.gather(
                        *(session.execute(f"SELECT {number}").scalar() for number in range(4)), return_exceptions=True
                    )
                    assert results[0] == 0
                    assert all(isinstance(other, exc.InvalidRequestError) for other in results[1:])
                    assert "one task at a time" in str(results[1])
                assert await session.execute("SELECT 7").scalar() == 7
            assert registry.get_pool_stats().created == 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["session", "connection"])
@pytest.mark.parametrize("end", ["exit", "error", "close", "commit"])
def test_a_block_that_ends_while_another_task_is_at_it_hands_on_nobodys_answer(
    registry: SQLSpec, database: Database, kind: str, end: str
) -> None:
    # COMMIT and this have the same answer on MySQL
    slow = "DO SLEEP(0.3)" if database.name == "mariadb" else SLOW[database.name].replace("?", "1")

    async def run_slowly(shared: Any) -> None:
        await (shared.execute(slow) if kind == "session" else shared.cursor().execute(slow))

    async def main() -> None:
        async with registry, asyncio.timeout(20):
            block = registry.get_async_session() if kind == "session" else registry.get_async_connection()
            with pytest.raises(KeyError if end == "error" else Exception, match=r"one task at a time|error"):
                async with block as shared:
                    await (shared.execute("SELECT 1") if kind == "session" else shared.cursor().execute("SELECT 1"))
                    other = asyncio.create_task(run_slowly(shared))
                    await asyncio.sleep(0.1)
                    if end == "error":
                        raise KeyError("error")
                    if end != "exit":
                        await getattr(shared, end)()
            await asyncio.wait([other])
            assert other.exception() is not None
            for number in range(5):
                async with registry.get_async_session() as session:
                    assert await session.execute(f"SELECT {number}").scalar() == number
            assert registry.get_pool_stats().checked_out == 0

    asyncio.run(main())


def test_a_session_that_is_closed_while_another_task_connects_keeps_nothing(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry:
            session = registry.get_async_session()
            connecting = asyncio.ensure_future(session.execute("SELECT 1"))
            await asyncio.sleep(0)
            with pytest.raises(exc.InvalidRequestError, match="one task at a time"):
                await session.close()
            with pytest.raises(exc.ResourceClosedError):
                await connecting
            assert registry.get_pool_stats().checked_out == 0

    asyncio.run(main())
