"""What a cancelled task leaves behind: nothing on the server, nothing in the pool, and no answer for anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import socket
import time
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.util import await_only

from sqlspec import SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig
from tests.conftest import Database
from tests.servers import wait_until

# What takes the given seconds and returns the token; SQLite counts instead.
SLOW = {
    "postgresql": "SELECT CAST(? AS INTEGER), pg_sleep(CAST(? AS FLOAT))",
    "mariadb": "SELECT ?, SLEEP(?)",
    "sqlite": "SELECT ?, (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ? * 3000000) "
    "SELECT count(*) FROM n)",
}


@pytest.fixture
def registry(database: Database) -> SQLSpec:
    registry = SQLSpec()
    registry.register_config(database.config(pool_size=5, max_overflow=0))
    return registry


def server_side(database: Database) -> list[Any]:
    """Return the server's own list of our connections."""
    if database.name == "postgresql":
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sqlspec' AND pid <> pg_backend_pid()"
    else:
        sql = "SELECT id FROM information_schema.processlist WHERE user = 'app' AND id <> CONNECTION_ID()"
    with SQLSpec() as registry:
        registry.register_config(database.config())
        with registry.get_session(autocommit=True) as session:
            return list(session.execute(sql).scalars())


def busy(value: int) -> Iterator[tuple[int]]:
    """Return a row, and keep the event loop so long that psycopg gives way to others at its next step."""
    yield (value,)
    time.sleep(0.01)


class CancelledAt:
    """Run a coroutine, and cancel its task as it begins to wait for the times with these numbers."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], *numbers: int) -> None:
        self._steps = coroutine.__await__()
        self._numbers = numbers

    def __await__(self) -> Generator[Any, None, None]:
        step = functools.partial(self._steps.send, None)
        for number in itertools.count():
            try:
                waiting = step()
            except StopIteration:
                return
            if number in self._numbers:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waiting
                step = functools.partial(self._steps.send, None)
            except BaseException as error:  # the coroutine's
                step = functools.partial(self._steps.throw, error)


async def ask(registry: SQLSpec, sql: str, token: int, seconds: float, wrong: list[Any]) -> None:
    async with registry.get_async_session() as session:
        for number in (token, token + 1):
            row = await session.execute(sql, (number, seconds)).one()
            if row[0] != number:
                wrong.append((row[0], number))


@pytest.mark.fault(39)
def test_cancelled_at_random_nothing_is_lost_and_nobody_gets_a_foreign_answer(
    database: Database, registry: SQLSpec
) -> None:
    rounds, wrong = int(os.environ.get("SQLSPEC_CANCELLATIONS", "200")), []
    sql, chance = SLOW[database.name], random.Random(5)  # noqa: S311  # not for secrets
    cancelled = 0

    async def cancel_one(number: int) -> None:
        nonlocal cancelled
        task = asyncio.create_task(ask(registry, sql, 10 * number, chance.choice([0.0, 0.002]), wrong))
        await asyncio.sleep(chance.random() * 0.012)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1

    async def main() -> None:
        for first in range(0, rounds, 10):
            await asyncio.gather(*(cancel_one(first + n) for n in range(10)))
        async with asyncio.timeout(30):
            await asyncio.gather(*(ask(registry, sql, n * 10, 0.0, wrong) for n in range(20)))
        stats = registry.get_pool_stats()
        assert (stats.checked_out, stats.waiters, stats.dropped) == (0, 0, 0)
        if database.name != "sqlite":
            async with asyncio.timeout(30):
                while len(await asyncio.to_thread(server_side, database)) != registry.get_pool_stats().total:
                    await asyncio.sleep(0.05)
        await registry.aclose()

    asyncio.run(main())
    assert wrong == []
    assert cancelled > rounds // 4


@pytest.mark.fault(39)
@pytest.mark.parametrize("kind", ["session", "autocommit", "connection", "many", "connection, many"])
def test_cancelled_at_any_await_leaves_the_next_borrower_a_clean_connection(
    database: Database, registry: SQLSpec, kind: str
) -> None:
    sql = "INSERT INTO kept VALUES (?)"

    async def write(value: int) -> None:
        if kind.startswith("connection"):
            async with registry.get_async_connection() as connection:
                cursor = connection.cursor()
                await (cursor.executemany(sql, busy(value)) if "many" in kind else cursor.execute(sql, (value,)))
                await connection.commit()
            return
        async with registry.get_async_session(autocommit=kind == "autocommit") as session:
            await (session.execute_many(sql, busy(value)) if kind == "many" else session.execute(sql, (value,)))

    async def cancelled_after(steps: int) -> None:
        task = asyncio.create_task(write(-steps))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def main() -> None:
        async with registry.get_async_session() as session:
            await session.execute("DROP TABLE IF EXISTS kept")
            await session.execute("CREATE TABLE kept (value INTEGER)")
        for steps in range(1, 40):
            await cancelled_after(steps)
            await write(steps)
            with registry.get_session() as other:
                # seen by others: it is committed
                assert other.execute("SELECT count(*) FROM kept WHERE value = ?", (steps,)).scalar() == 1
        assert registry.get_pool_stats().checked_out == 0
        await registry.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["session", "autocommit", "watched", "connection"])
def test_cancelled_on_its_way_into_many_rows_a_task_ends_so_and_its_connection_answers_nobody_else(
    database: Database, registry: SQLSpec, kind: str
) -> None:
    sql = "INSERT INTO kept VALUES (?)"

    def rows() -> Iterator[tuple[int]]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        yield from busy(1)
        yield from busy(1)

    async def write() -> None:
        if kind == "connection":
            async with registry.get_async_connection() as connection:
                await connection.cursor().execute("SELECT 1")
                await connection.cursor().executemany(sql, rows())
            return
        async with registry.get_async_session(autocommit=kind == "autocommit") as session:
            await session.execute("SELECT 1").all()
            await session.execute_many(sql, rows())

    async def main() -> None:
        registry.resize_pool(pool_size=1)
        async with registry.get_async_session() as session:
            await session.execute("DROP TABLE IF EXISTS kept")
            await session.execute("CREATE TABLE kept (value INTEGER)")
        if kind == "watched":
            event.listen(registry.get_async_engine().sync_engine, "before_cursor_execute", lambda *_: None)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(write())
        async with registry.get_async_session() as session:
            assert await session.execute("SELECT 'mine'").scalar() == "mine"
            await session.execute(sql, (2,))
        with registry.get_session() as other:
            assert other.execute("SELECT value FROM kept WHERE value = 2").all() == [(2,)]
        await registry.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
def test_cancelled_at_any_moment_of_connecting_to_a_mute_server_a_task_ends_and_closes_it(
    scheme: str, cancelled: int
) -> None:
    async def connect(registry: SQLSpec) -> None:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")

    async def main(registry: SQLSpec) -> None:
        # a step of the loop is as short as a moment can be: one of them is that in which the network connects
        for steps in range(60):
            task = asyncio.create_task(connect(registry))
            for _ in range(steps):
                await asyncio.sleep(0)
            for _ in range(cancelled):
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait({task}, timeout=5)
            assert task.cancelled(), steps
        stats = registry.get_pool_stats()
        assert (stats.total, stats.checked_out, stats.connecting) == (0, 0, 0)
        await registry.aclose()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        registry = SQLSpec()
        config: type[PostgreSQLConfig | MySQLConfig] = PostgreSQLConfig if "postgresql" in scheme else MySQLConfig
        registry.register_config(config(url=f"{scheme}://u:p@127.0.0.1:{mute.getsockname()[1]}/d"))
        asyncio.run(main(registry))
        assert is_left_alone(mute)


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
@pytest.mark.parametrize("closing", ["works", "hangs", "fails"])
def test_cancelled_at_the_moment_it_has_connected_a_task_closes_the_connection(
    database: Database, registry: SQLSpec, closing: str
) -> None:
    async def connect() -> None:
        async with registry.get_async_session() as session:
            await session.execute("SELECT 1")

    async def main() -> None:
        dialect = registry.get_async_engine().dialect
        terminate = dialect.do_terminate

        def terminate_badly(connection: Any) -> None:
            try:
                if closing == "hangs":
                    await_only(asyncio.sleep(3600))
            finally:
                terminate(connection)
            if closing == "fails":
                raise RuntimeError("it could not be closed")

        dialect.do_terminate = terminate_badly  # type: ignore[method-assign] # the fault of this test
        task = asyncio.create_task(connect())
        while not (others := asyncio.all_tasks() - {task, asyncio.current_task()}):
            await asyncio.sleep(0)
        (connecting,) = others
        while not connecting.done():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.cancelled()
        assert registry.get_pool_stats().total == 0
        # the server is a moment late
        await asyncio.to_thread(wait_until, lambda: not server_side(database))
        await registry.aclose()

    asyncio.run(main())


def is_left_alone(server: socket.socket) -> bool:
    """Tell whether all that have connected are gone; there must have been some."""
    server.settimeout(0)
    clients = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(ConnectionResetError):
                client.settimeout(5)
                while client.recv(1000):
                    pass
            clients += 1
    return clients > 0


def test_a_write_that_is_cancelled_twice_leaves_no_lock(database: Database) -> None:
    async def main() -> None:
        registry, tasks = SQLSpec(), []
        registry.register_config(database.config(pool_size=1, max_overflow=0, connect_timeout=2.0))

        async def write(*cancelled_at: int) -> None:
            async def insert() -> None:
                async with registry.get_async_session() as session:
                    await session.execute("SELECT 1").all()
                    await session.execute_many("INSERT INTO kept VALUES (?)", [(1,), (2,)])

            with contextlib.suppress(asyncio.CancelledError):
                await CancelledAt(insert(), *cancelled_at)

        async with registry.get_async_session() as session:
            await session.execute("DROP TABLE IF EXISTS kept")
            await session.execute("CREATE TABLE kept (value INTEGER)")
        for first, gap in itertools.product(range(16), (1, 2, 3)):
            # who still looks at a task keeps its frames, and what is in them
            tasks.append(asyncio.create_task(write(first, first + gap)))
            await asyncio.wait(tasks)
            async with registry.get_async_session() as session:
                await session.execute("DELETE FROM kept")
        await registry.aclose()

    asyncio.run(main())


def test_a_transaction_begun_in_a_string_does_not_outlive_a_cancellation(database: Database, registry: SQLSpec) -> None:
    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05), registry.get_async_session(autocommit=True) as session:
                await session.execute("BEGIN")
                await session.execute(SLOW[database.name], (1, 20.0))
        for _ in range(3):
            async with registry.get_async_session() as session:
                assert await session.execute("SELECT 1").scalar() == 1
        await registry.aclose()

    asyncio.run(main())
