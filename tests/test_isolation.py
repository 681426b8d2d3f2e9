"""Isolated tests: what they do to a database is undone, commits included."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import AsyncSession as AsyncUnit

from sqlspec import ConfigError, SQLSpec, SQLSpecWarning
from sqlspec.adapters import SQLiteConfig
from sqlspec.testing import aisolated, isolated
from tests.conftest import Database
from tests.tasks import InTasks, RegistryInTasks

INSERT = "INSERT INTO users (name) VALUES (?)"
# what takes longer than anybody waits
SLOW = {
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1e9) SELECT max(x) FROM n",
    "postgresql": "SELECT pg_sleep(20)",
    "mariadb": "SELECT SLEEP(1)",
}


# A block without traces, of the registry or, for tasks, its event loop.
Isolation = Callable[[], Any]


def names(spec: Any) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


@pytest.fixture
def isolation(any_spec: Any) -> Isolation:
    if isinstance(any_spec, RegistryInTasks):
        return lambda: InTasks(any_spec._loop, aisolated(any_spec._registry))
    return lambda: isolated(any_spec)


def test_everything_of_a_registry_is_isolated(spec: SQLSpec, database: Database) -> None:
    users = sa.table("users", sa.column("name"))
    made_before = orm.sessionmaker(spec.get_engine("primary"))
    created = spec.get_pool_stats("primary").created
    with isolated(spec):
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("a session",))
        with spec.get_session("primary", autocommit=True) as session:
            session.execute(INSERT, ("autocommit",))
        level = {"isolation_level": "AUTOCOMMIT"}
        with spec.get_engine("primary").connect().execution_options(**level) as connected:
            connected.execute(sa.insert(users).values(name="an engine in autocommit"))
        with spec.get_session("primary", isolation_level="SERIALIZABLE") as session:
            session.execute(sa.insert(users).values(name="an executable"))
        with spec.get_connection("primary") as connection:
            connection.cursor().execute(INSERT, ("a connection",))
            connection.commit()
        with spec.get_engine("primary").begin() as begun:
            begun.execute(sa.insert(users).values(name="an engine"))
        with made_before() as unit:
            unit.execute(sa.insert(users).values(name="an ORM session"))
            unit.commit()
            unit.execute(sa.insert(users).values(name="undone"))
            unit.rollback()
        with spec.get_session("primary") as session:
            session.load_rows("users", [("loaded",)], ["name"])
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                session.execute(INSERT, ("undone",))
                raise ZeroDivisionError
        assert names(spec) == [
            "a session",
            "autocommit",
            "an engine in autocommit",
            "an executable",
            "a connection",
            "an engine",
            "an ORM session",
            "loaded",
        ]
    assert names(spec) == []
    assert spec.get_pool_stats("primary").checked_out == 0
    assert spec.get_pool_stats("primary").created == created


def test_an_isolated_transaction_goes_on_after_an_error(any_spec: Any, isolation: Isolation) -> None:
    with isolation():
        with any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        with pytest.raises(exc.IntegrityError), any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
            session.execute(INSERT, ("Alice",))
        with any_spec.get_session("primary") as session:
            with pytest.raises(exc.IntegrityError):
                session.execute(INSERT, ("Alice",))
            session.rollback()
            session.execute(INSERT, ("Carol",))
        assert names(any_spec) == ["Alice", "Carol"]
    assert names(any_spec) == []


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_an_isolated_commit_of_an_aborted_transaction_fails_as_a_real_one(any_spec: Any, isolation: Isolation) -> None:
    with isolation():
        with any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        with pytest.raises(exc.DBAPIError, match="aborted"), any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
            with contextlib.suppress(exc.IntegrityError):
                session.execute(INSERT, ("Alice",))
        assert names(any_spec) == ["Alice"]


def test_a_session_within_another_commits_by_itself(any_spec: Any, isolation: Isolation) -> None:
    with isolation():
        outer = any_spec.get_session("primary")
        outer.execute(INSERT, ("outer",))
        with any_spec.get_session("primary") as inner:
            inner.execute(INSERT, ("inner",))
        with contextlib.suppress(ZeroDivisionError), any_spec.get_session("primary") as inner:
            inner.execute(INSERT, ("undone",))
            raise ZeroDivisionError
        outer.commit()
        outer.close()
        assert names(any_spec) == ["outer", "inner"]


def test_a_block_that_fails_is_undone_and_leaves_the_registry_as_it_was(any_spec: Any, isolation: Isolation) -> None:
    with pytest.raises(ZeroDivisionError), isolation():
        with any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        raise ZeroDivisionError
    with any_spec.get_session("primary") as session:
        session.execute(INSERT, ("Bob",))
    assert names(any_spec) == ["Bob"]


def test_a_registry_is_isolated_once(any_spec: Any, isolation: Isolation) -> None:
    with isolation():
        with pytest.raises(ConfigError, match="isolated already"), isolation():
            pytest.fail("this must not begin")
        with any_spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
    assert names(any_spec) == []


def test_a_database_that_autocommits_is_isolated(spec: SQLSpec, database: Database) -> None:
    with SQLSpec() as other:
        other.register_config(database.config(autocommit=True), name="primary")
        with isolated(other), other.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        assert names(spec) == []
        with other.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
            assert names(spec) == ["Bob"]


def test_a_database_in_memory_is_isolated() -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
        with spec.get_session("primary") as session:
            session.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        with isolated(spec):
            with spec.get_session("primary") as session:
                session.execute(INSERT, ("Alice",))
            assert names(spec) == ["Alice"]
        assert names(spec) == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_change_of_the_schema_that_mysql_commits_ends_the_isolation_with_an_error(
    any_spec: Any, isolation: Isolation
) -> None:
    with pytest.raises(Exception, match=r"SAVEPOINT .* does not exist"), isolation():
        session = any_spec.get_session("primary")
        session.execute("CREATE OR REPLACE TABLE others (id INTEGER)")
        session.close()
    with any_spec.get_session("primary") as session:
        session.execute("DROP TABLE others")


def test_what_is_checked_out_before_is_not_isolated(any_spec: Any, isolation: Isolation, database: Database) -> None:
    before = any_spec.get_session("primary")
    before.execute(INSERT, ("before",))
    if database.name == "sqlite":
        # it allows one writer at a time
        before.commit()
    with isolation():
        before.commit()
        with any_spec.get_session("primary") as session:
            session.execute(INSERT, ("within",))
        assert before.execute("SELECT name FROM users").scalars().all() == ["before"]
        before.rollback()
    before.close()
    assert names(any_spec) == ["before"]


def test_what_is_open_at_the_end_loses_its_connection(any_spec: Any, spec: SQLSpec, isolation: Isolation) -> None:
    forgotten = any_spec.get_session("primary")
    block = isolation()
    block.__enter__()
    forgotten.execute(INSERT, ("forgotten",))
    with pytest.warns(SQLSpecWarning, match="primary: a session or connection is still open"):
        block.__exit__(None, None, None)
    with pytest.raises(exc.DBAPIError):
        if any_spec is not spec:
            forgotten.execute(INSERT, ("late",))
        forgotten.commit()
    with contextlib.suppress(exc.DBAPIError):
        forgotten.close()
    assert names(any_spec) == []
    assert any_spec.get_pool_stats("primary").checked_out == 0


async def users(spec: SQLSpec) -> list[str]:
    async with spec.get_async_session("primary") as session:
        return list(await session.execute("SELECT name FROM users ORDER BY id").scalars())


def test_everything_of_an_event_loop_is_isolated(spec: SQLSpec) -> None:
    table = sa.table("users", sa.column("name"))

    async def main() -> None:
        engine = spec.get_async_engine("primary")
        before = await users(spec), spec.get_pool_stats("primary").created
        async with aisolated(spec):
            async with spec.get_async_session("primary") as session:
                await session.execute(INSERT, ("a session",))
            async with spec.get_async_session("primary", autocommit=True) as session:
                await session.execute(INSERT, ("autocommit",))
            async with spec.get_async_session("primary", isolation_level="SERIALIZABLE") as session:
                await session.execute(sa.insert(table).values(name="an executable"))
            async with spec.get_async_connection("primary") as connection:
                await connection.cursor().execute(INSERT, ("a connection",))
                await connection.commit()
            async with engine.begin() as begun:
                await begun.execute(sa.insert(table).values(name="an engine"))
            async with engine.connect() as connected:
                level = await connected.execution_options(isolation_level="AUTOCOMMIT")
                await level.execute(sa.insert(table).values(name="an engine in autocommit"))
            async with AsyncUnit(engine) as unit:
                await unit.execute(sa.insert(table).values(name="an ORM session"))
                await unit.commit()
                await unit.execute(sa.insert(table).values(name="undone"))
            async with spec.get_async_session("primary") as session:
                await session.load_rows("users", [("loaded",)], ["name"])
                with contextlib.suppress(ZeroDivisionError):
                    async with session.begin_nested():
                        await session.execute(INSERT, ("undone",))
                        raise ZeroDivisionError
            assert await users(spec) == [
                "a session",
                "autocommit",
                "an executable",
                "a connection",
                "an engine",
                "an engine in autocommit",
                "an ORM session",
                "loaded",
            ]
        assert (await users(spec), spec.get_pool_stats("primary").created) == before == ([], before[1])
        assert spec.get_pool_stats("primary").checked_out == 0

    asyncio.run(main())


def test_a_statement_that_is_cancelled_undoes_its_own_session_alone(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with aisolated(spec):
            async with spec.get_async_session("primary") as session:
                await session.execute(INSERT, ("Alice",))
            async with spec.get_async_session("primary") as session:
                await session.execute(INSERT, ("Bob",))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await session.execute(SLOW[database.name])
                await session.rollback()
                await session.execute(INSERT, ("Carol",))
            assert await users(spec) == ["Alice", "Carol"]
        assert await users(spec) == []

    if database.name == "mariadb":
        # asyncmy cannot end a statement: its connection is closed, and the isolation with it
        with pytest.raises(Exception, match="Cancelled during execution"):
            asyncio.run(main())
        return
    asyncio.run(main())


def test_tasks_and_threads_are_isolated_apart(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with aisolated(spec):
            async with spec.get_async_session("primary") as session:
                await session.execute(INSERT, ("a task",))
            if database.name != "sqlite":
                assert names(spec) == ["a thread"]
            assert await users(spec) == ["a task"]

    with isolated(spec):
        if database.name != "sqlite":
            with spec.get_session("primary") as session:
                session.execute(INSERT, ("a thread",))
        asyncio.run(main())


def test_a_config_without_a_driver_for_tasks_has_no_session_to_be_isolated(spec: SQLSpec) -> None:
    spec.register_config(SQLiteConfig(database=":memory:"), name="memory")

    async def main() -> None:
        async with aisolated(spec), spec.get_async_session("primary") as session:
            await session.execute(INSERT, ("Alice",))
        assert await users(spec) == []

    asyncio.run(main())


@pytest.mark.parametrize("when", ["at its begin", "at its end"])
def test_an_isolation_that_is_cancelled_leaves_the_registry_as_it_was(spec: SQLSpec, when: str) -> None:
    async def isolate() -> None:
        task: Any = asyncio.current_task()
        if when == "at its begin":
            task.cancel()
        async with aisolated(spec):
            async with spec.get_async_session("primary") as session:
                await session.execute(INSERT, ("Alice",))
            task.cancel()

    async def main() -> None:
        assert await users(spec) == []
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(isolate())
        assert spec.get_pool_stats("primary").checked_out == 0
        async with spec.get_async_session("primary") as session:
            await session.execute(INSERT, ("Bob",))
        assert await users(spec) == ["Bob"]

    asyncio.run(main())


def test_an_isolation_that_anyio_cancels_keeps_its_connection(spec: SQLSpec) -> None:
    async def main() -> None:
        assert await users(spec) == []
        created = spec.get_pool_stats("primary").created
        with anyio.CancelScope() as scope:
            async with aisolated(spec):
                async with spec.get_async_session("primary") as session:
                    await session.execute(INSERT, ("Alice",))
                    await session.commit()
                scope.cancel()
        assert not spec.get_holders("primary")
        assert await users(spec) == []
        assert spec.get_pool_stats("primary").created == created

    asyncio.run(main())
