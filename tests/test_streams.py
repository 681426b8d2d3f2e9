"""Rows that come as they are read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import SQLSpec
from tests.conftest import Database

NUMBERS = {
    "postgresql": "SELECT n FROM generate_series(1, ?) AS n",
    "mariadb": "SELECT seq FROM seq_1_to_1000000 WHERE seq <= ?",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?) SELECT n FROM c",
}
USERS = sa.table("users", sa.column("name"))


def test_rows_come_in_order_and_all_of_them(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        rows = session.stream(NUMBERS[database.name], (2500,), chunk_size=1000)
        assert [row[0] for row in rows] == list(range(1, 2501))
        assert session.execute("SELECT 1").scalar() == 1
        query = sa.select(sa.literal_column("1"))
        assert list(session.stream(query).scalars()) == [1]


def test_a_stream_that_is_left_in_the_middle_closes_its_cursor(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        with session.stream(NUMBERS[database.name], (5000,), chunk_size=10) as rows:
            assert next(iter(rows)) == (1,)
        assert session.execute("SELECT 1").scalar() == 1
        for row in session.stream(NUMBERS[database.name], (5000,), chunk_size=10):
            if row[0] == 15:
                break
    with pytest.raises(ZeroDivisionError), spec.get_session("primary") as session:
        for _ in session.stream(NUMBERS[database.name], (5000,), chunk_size=10):
            _ = 1 / 0
    with spec.get_session("primary") as session:
        assert session.execute("SELECT 1").scalar() == 1
    assert spec.get_pool_stats("primary").created == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_on_mysql_nothing_runs_that_would_cut_a_stream_off(spec: SQLSpec, database: Database, is_async: bool) -> None:
    query = NUMBERS[database.name]
    others: list[Callable[[Any], Any]] = [
        lambda session: session.execute("SELECT 7").all(),
        lambda session: session.execute(sa.text("SELECT 7")).all(),
        lambda session: session.load_rows("users", [(1, "x")]),
    ]

    def in_threads(other: Callable[[Any], Any]) -> int:
        with spec.get_session("primary") as session:
            for count, _ in enumerate(session.stream(query, (500,), chunk_size=10), 1):
                if count == 15:
                    refused(lambda: other(session))
            session.rollback()
        return count

    def refused(work: Callable[[], Any]) -> None:
        if database.name == "mariadb":
            with pytest.raises(exc.InvalidRequestError, match="a stream is open"):
                work()
        else:
            work()

    async def in_tasks(other: Callable[[Any], Any]) -> int:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                count = 0
                async for _ in session.stream(query, (500,), chunk_size=10):
                    count += 1
                    if count == 15:
                        try:
                            await other(session)
                        except exc.InvalidRequestError:
                            assert database.name == "mariadb"
                        else:
                            assert database.name != "mariadb"
                await session.rollback()
        return count

    for other in others:
        assert (asyncio.run(in_tasks(other)) if is_async else in_threads(other)) == 500


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_what_has_no_cursor_on_the_server_is_read_at_once(spec: SQLSpec) -> None:
    users = USERS
    insert = "INSERT INTO users (name) VALUES ('{}') RETURNING name"
    added = sa.insert(users).values(name="g").returning(users.c.name).cte()
    with spec.get_session("primary") as session:
        for statement, rows in (
            ("INSERT INTO users (name) VALUES ('a'), ('b') RETURNING name", [("a",), ("b",)]),
            ("SHOW search_path", [('"$user", public',)]),
            (sa.text("SHOW search_path"), [('"$user", public',)]),
            (sa.insert(users).values(name="c").returning(users.c.name), [("c",)]),
            (sa.text(insert.format("d")), [("d",)]),
            (f"WITH n AS (SELECT 1) {insert.format('e')}", [("e",)]),
            (f"WITH n AS ({insert.format('f')}) SELECT name FROM n", [("f",)]),
            (sa.select(added.c.name), [("g",)]),
            ("WITH n AS (UPDATE users SET name = 'h' WHERE name = 'g' RETURNING *) SELECT name FROM n", [("h",)]),
            ("WITH n AS ( DELETE FROM users WHERE name > 'c' RETURNING 1) SELECT count(*) FROM n", [(4,)]),
            ("WITH known AS (SELECT name FROM users) SELECT name FROM known WHERE name > 'b'", [("c",)]),
        ):
            assert list(session.stream(statement)) == sorted(rows), statement
        assert not session.stream("SELECT name INTO TEMPORARY others FROM users").returns_rows
        assert session.execute("SELECT count(*) FROM others").scalar() == 3


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT name FROM users WHERE name <> 'INSERT INTO' FOR UPDATE -- INTO",
        'SELECT count(update) AS "INTO" FROM (SELECT 1 AS update) AS delete /* (DELETE FROM x) */',
        "WITH n AS (SELECT 1) TABLE n",
        sa.text("VALUES (1)"),
        sa.select(sa.literal_column("1")).with_for_update(),
        sa.func.generate_series(1, 3),
    ],
)
def test_what_has_a_cursor_on_the_server_comes_as_it_is_read(spec: SQLSpec, statement: Any) -> None:
    with spec.get_session("primary") as session, session.stream(statement, chunk_size=1):
        assert session.execute("SELECT count(*) FROM pg_cursors").scalar() == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO users (name) VALUES ('a'), ('b'), ('c') RETURNING name",
        "WITH n(name) AS (VALUES ('a'), ('b'), ('c')) INSERT INTO users (name) SELECT name FROM n RETURNING name",
        sa.text("INSERT INTO users (name) VALUES ('a'), ('b'), ('c') RETURNING name"),
        sa.insert(USERS).values([{"name": name} for name in "abc"]).returning(USERS.c.name),
    ],
)
def test_on_sqlite_rows_of_a_change_that_are_not_read_stand_in_nobodys_way(
    spec: SQLSpec, database: Database, statement: Any, is_streamed: bool
) -> None:
    names = "SELECT name FROM users ORDER BY name"
    with spec.get_session("primary") as session:
        with session.begin_nested():
            rows = session.stream(statement, chunk_size=1) if is_streamed else session.execute(statement)
            assert rows.fetchone() is not None
        session.load_rows("users", [("d",)], columns=["name"])
        session.commit()
        assert session.execute(names).scalars().all() == ["a", "b", "c", "d"]
        session.execute("DELETE FROM users")

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                async with session.begin_nested():
                    if is_streamed:
                        async for _ in session.stream(statement, chunk_size=1):
                            break
                    else:
                        rows = await session.execute(statement)
                        assert rows.fetchone() is not None
                await session.load_rows("users", [("d",)], columns=["name"])
                await session.commit()
                assert (await session.execute(names)).scalars().all() == ["a", "b", "c", "d"]

    asyncio.run(main())


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_stream_that_the_transaction_has_ended_says_so(spec: SQLSpec, database: Database, end: str) -> None:
    with spec.get_session("primary") as session:
        rows = iter(session.stream(NUMBERS[database.name], (50,), chunk_size=10))
        assert next(rows) == (1,)
        getattr(session, end)()
        with pytest.raises(exc.ResourceClosedError, match="closed"):
            list(rows)


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("by_option", [False, True])
def test_a_savepoint_that_is_undone_around_a_stream_undoes_its_part_and_no_more(
    spec: SQLSpec, database: Database, is_watched: bool, by_option: bool
) -> None:
    if is_watched:
        sa.event.listen(spec.get_engine("primary"), "after_cursor_execute", lambda *_: None)
    query = NUMBERS[database.name].replace("?", "500")
    insert = "INSERT INTO users (name) VALUES (?)"
    with spec.get_session("primary") as session:
        session.execute(insert, ("before",))
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            session.execute(insert, ("undone",))
            by_its_option = sa.text(query).execution_options(yield_per=10)
            rows = session.execute(by_its_option) if by_option else session.stream(query, chunk_size=10)
            assert rows.fetchone() == (1,)
            _ = 1 / 0
        session.execute(insert, ("after",))
    with spec.get_session("primary") as session:
        assert session.execute("SELECT name FROM users ORDER BY id").scalars().all() == ["before", "after"]


def test_a_savepoint_of_a_task_that_is_undone_around_a_stream_undoes_its_part(
    spec: SQLSpec, database: Database
) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                await session.execute("INSERT INTO users (name) VALUES ('before')")
                with contextlib.suppress(ZeroDivisionError):
                    async with session.begin_nested():
                        await session.execute("INSERT INTO users (name) VALUES ('undone')")
                        async for _ in session.stream(NUMBERS[database.name], (500,), chunk_size=10):
                            _ = 1 / 0
                await session.execute("INSERT INTO users (name) VALUES ('after')")

    asyncio.run(main())
    with spec.get_session("primary") as session:
        assert session.execute("SELECT name FROM users ORDER BY id").scalars().all() == ["before", "after"]


def test_what_cannot_be_streamed_is_refused(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        with pytest.raises(ValueError, match="at least one row"):
            session.stream("SELECT 1", chunk_size=0)
        with pytest.raises(exc.ProgrammingError, match="1 placeholders and 2 values"):
            session.stream("SELECT ?", (1, 2))
    with spec.get_session("primary", autocommit=True) as session:
        if database.name == "postgresql":
            with pytest.raises(exc.InvalidRequestError, match="needs a transaction"):
                session.stream("SELECT 1")
        else:
            assert list(session.stream("SELECT 1")) == [(1,)]


def test_tasks_stream_as_well(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(pool_size=1, max_overflow=0))
            async with registry.get_async_session() as session:
                found = [row[0] async for row in session.stream(NUMBERS[database.name], (2500,), chunk_size=100)]
                assert found == list(range(1, 2501))
                async with session.stream(NUMBERS[database.name], (2500,), chunk_size=10) as rows:
                    async for row in rows:
                        if row[0] == 15:
                            break
                assert repr(rows).endswith("closed>")
                assert [row async for row in rows] == []
                assert await session.execute("SELECT 1").scalar() == 1
            with pytest.raises(ZeroDivisionError):
                async with registry.get_async_session() as session:
                    async for _ in session.stream(NUMBERS[database.name], (2500,), chunk_size=10):
                        _ = 1 / 0
            async with registry.get_async_session() as session:
                assert await session.execute("SELECT 1").scalar() == 1
            stats: Any = registry.get_pool_stats()
            assert (stats.created, stats.checked_out) == (1, 0)

    asyncio.run(main())


FAIL_LATE = (
    "CREATE PROCEDURE fail_late() BEGIN SELECT seq FROM seq_1_to_25; SELECT 2;"
    " SIGNAL SQLSTATE '45000' SET message_text = 'late'; END"
)


@pytest.mark.parametrize("statement", ["CALL fail_late()", sa.text("CALL fail_late()")])
@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_an_error_behind_the_rows_of_a_stream_is_raised_where_they_end(
    spec: SQLSpec, database: Database, statement: Any
) -> None:
    with spec.get_session("primary") as session:
        session.execute("DROP PROCEDURE IF EXISTS fail_late")
        session.execute(FAIL_LATE)
    seen: list[int] = []
    with spec.get_session("primary") as session:
        with pytest.raises(exc.DBAPIError, match="late"), session.stream(statement, chunk_size=10) as rows:
            seen += (row[0] for row in rows)
        assert session.execute("SELECT 'mine'").scalar_one() == "mine"
    assert seen == list(range(1, 26))

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(pool_size=1, max_overflow=0))
            async with registry.get_async_session() as session:
                with pytest.raises(exc.DBAPIError, match="late"):
                    async with session.stream(statement, chunk_size=10) as rows:
                        async for row in rows:
                            seen.append(row[0])
                assert await session.execute("SELECT 'mine'").scalar_one() == "mine"
            assert registry.get_pool_stats().created == 1

    asyncio.run(main())
    assert seen == [*range(1, 26), *range(1, 26)]


def test_a_stream_that_its_transaction_has_ended_is_closed_without_a_word(
    spec: SQLSpec, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with spec.get_session("primary") as session:
        for close in (lambda rows: rows.close(), list):
            rows = session.stream(NUMBERS[database.name], (50,), chunk_size=10)
            assert next(iter(rows)) == (1,)
            session.commit()
            with contextlib.suppress(exc.ResourceClosedError):
                close(rows)
    assert caplog.messages == []
