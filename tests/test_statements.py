"""What a statement leaves behind: further results, rows that nobody has read, plans that are too old."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import SQLSpec
from sqlspec.session.placeholders import prepare
from tests.conftest import Database

watched = pytest.mark.parametrize("is_watched", [False, True])


def watch(spec: Any, is_watched: bool) -> Any:
    """Have somebody listen to statements, which then go SQLAlchemy's way."""
    if is_watched:
        sa.event.listen(spec.get_engine("primary"), "after_cursor_execute", lambda *_: None)
    return spec


# the ways to run a procedure, none of which its text must be known by
CALLS: list[Any] = [
    "CALL fail_late(?)",
    "SET STATEMENT max_statement_time = 5 FOR CALL fail_late(?)",
    "EXECUTE IMMEDIATE 'CALL fail_late(?)' USING ?",
    "SET STATEMENT sql_mode = 'ANSI', lock_wait_timeout = 9 FOR EXECUTE IMMEDIATE 'CALL fail_late(?)' USING ?",
    "BEGIN NOT ATOMIC CALL fail_late(?); END",
    "/* */ CALL fail_late(?)",
]


@pytest.fixture
def late_spec(any_spec: Any) -> Any:
    """The registry, with a procedure that fails behind its rows, where it is told to."""
    with any_spec.get_session("primary") as session:
        session.execute("DROP PROCEDURE IF EXISTS fail_late")
        session.execute(
            "CREATE PROCEDURE fail_late(fails INT) BEGIN SELECT 1 UNION SELECT 5; SELECT 2;"
            " IF fails THEN SIGNAL SQLSTATE '45000' SET message_text = 'late'; END IF; END"
        )
    return any_spec


@watched
@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_an_error_late_in_a_procedure_is_its_callers_own(
    late_spec: Any, autocommit: bool, is_watched: bool, call: str
) -> None:
    with watch(late_spec, is_watched).get_session("primary", autocommit=autocommit) as session:
        with pytest.raises(exc.DBAPIError, match="late") as failed:
            session.execute(call, (1,))
        assert "fail_late" in str(failed.value.statement)
        assert failed.value.params == (1,)
        session.rollback()
        assert session.execute(call, (0,)).all() == [(1,), (5,)]
        assert session.execute("SELECT 'mine'").scalar_one() == "mine"
    assert late_spec.get_pool_stats("primary").created == 1


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_an_error_late_in_a_procedure_is_that_of_an_executable(late_spec: Any) -> None:
    call = sa.text("CALL fail_late(:fails)")
    with late_spec.get_session("primary") as session:
        with pytest.raises(exc.DBAPIError, match="late") as failed:
            session.execute(call, {"fails": 1})
        assert failed.value.statement is not None
        assert failed.value.params
        session.rollback()
        assert session.execute(call, {"fails": 0}).all() == [(1,), (5,)]
        assert session.execute(sa.text("SELECT 'mine'")).scalar_one() == "mine"
    assert late_spec.get_pool_stats("primary").created == 1


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_late_in_a_procedure_is_that_of_its_cursor(late_spec: Any, call: str) -> None:
    errors = late_spec.get_engine("primary").dialect.loaded_dbapi
    with late_spec.get_connection("primary") as connection:
        cursor = connection.cursor()

        def run() -> None:
            cursor.execute(call, (1,))
            # asynchronous cursors have read it all
            while cursor.nextset():
                pass

        with pytest.raises(errors.Error, match="late"):
            run()
        connection.rollback()
        cursor = connection.cursor()
        cursor.execute(call, (0,))
        assert list(cursor.fetchall()) == [(1,), (5,)]
        cursor.close()
        cursor = connection.cursor()
        cursor.execute("SELECT 'mine'")
        assert cursor.fetchone() == ("mine",)


@pytest.mark.parametrize(
    ("sql", "reads", "controls"),
    [
        ("SET STATEMENT max_statement_time = 5 FOR SELECT 1", True, None),
        ("SET STATEMENT max_statement_time = 5 FOR DELETE FROM users", False, None),
        ("/* x */ set statement sql_mode = ' FOR SELECT' for call p()", False, "unseen"),
        ("EXECUTE IMMEDIATE 'COMMIT'", False, "unseen"),
        ("SET sql_mode = ''", True, None),
    ],
)
def test_what_follows_variables_for_one_statement_says_what_it_does(sql: str, reads: bool, controls: Any) -> None:
    statement = prepare(sql, "mysql", "none")
    assert (statement.text, statement.reads, statement.controls) == (sql, reads, controls)


@watched
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("read", [0, 1])
def test_rows_of_a_change_that_are_not_read_stand_in_nobodys_way(any_spec: Any, is_watched: bool, read: int) -> None:
    insert = "INSERT INTO users (name) VALUES ('a'), ('b'), ('c') RETURNING name"
    with watch(any_spec, is_watched).get_session("primary") as session:
        result = session.execute(insert)
        rows = [result.fetchone() for _ in range(read)]
        session.commit()
        assert [*rows, *result.all()] == [("a",), ("b",), ("c",)]
        # SQLAlchemy 2.0 does not count the rows of aiosqlite
        is_counted = any_spec.get_engine("primary").dialect.driver != "aiosqlite" or not sa.__version__.startswith(
            "2.0."
        )
        assert result.rowcount == (3 if is_counted else -1)
        kept = session.execute("UPDATE users SET name = name || '!' RETURNING name")
        session.rollback()
        assert session.execute("SELECT count(*) FROM users WHERE name LIKE '%!'").scalar_one() == 0
        del kept


@pytest.mark.fault(69)
@watched
@pytest.mark.parametrize("change", ["one that is seen", "one that nobody sees", "one of somebody else"])
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_change_of_the_schema_reaches_statements_that_are_prepared(
    database: Database, spec: SQLSpec, change: str, is_watched: bool
) -> None:
    alter = "ALTER TABLE users ALTER COLUMN name TYPE INTEGER USING 0"
    insert = "INSERT INTO users (name) VALUES (?)"

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(pool_size=1, max_overflow=0), "primary")
            if is_watched:
                engine = registry.get_async_engine("primary").sync_engine
                sa.event.listen(engine, "after_cursor_execute", lambda *_: None)
            async with registry.get_async_session("primary") as session:
                await session.execute(insert, ("a",))
            if change == "one of somebody else":
                with spec.get_session("primary") as other:
                    other.execute(alter)
            else:
                async with registry.get_async_session("primary") as session:
                    await session.execute(alter if change == "one that is seen" else f"DO $$ BEGIN {alter}; END $$")
            async with registry.get_async_session("primary") as session:
                if change != "one that is seen":
                    # nobody could know, but it is not said twice
                    with pytest.raises(exc.DBAPIError, match="expected str"):
                        await session.execute(insert, (1,))
                    await session.rollback()
                await session.execute(insert, (1,))
            async with registry.get_async_connection("primary") as connection:
                cursor = await connection.cursor().execute(insert, (2,))
                await cursor.execute("ALTER TABLE users ALTER COLUMN name TYPE VARCHAR USING name::text")
                await cursor.execute(insert, ("b",))
                await connection.commit()

    asyncio.run(main())


@watched
@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("end", ["INSERT INTO users (name) VALUES ('one')", "SELECT 7"])
def test_what_comes_after_the_rows_of_a_procedure_takes_none_of_them_away(
    any_spec: Any, is_watched: bool, end: str
) -> None:
    with watch(any_spec, is_watched).get_session("primary") as session:
        result = session.execute(f"BEGIN NOT ATOMIC SELECT 1 UNION SELECT 2 UNION SELECT 3; {end}; END")
        assert result.rowcount == 3
        assert [result.fetchone() for _ in range(4)] == [(1,), (2,), (3,), None]


@pytest.mark.parametrize(
    ("sql", "alters"),
    [
        ("ALTER TABLE users ADD x INTEGER", True),
        ("/* x */ drop table users", True),
        ("CREATE OR  REPLACE VIEW seen AS SELECT 1", True),
        ("CREATE TEMPORARY TABLE mine (id INTEGER)", False),
        ("CREATE TABLE more (id INTEGER)", False),
        ("CREATE INDEX ON users (name)", False),
        ("SELECT 1", False),
    ],
)
def test_only_what_changes_what_there_is_makes_plans_too_old(sql: str, alters: bool) -> None:
    assert prepare(sql, "postgresql $1", "none").alters is alters


@watched
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_change_of_the_schema_reaches_what_another_task_prepares_while_it_waits(
    database: Database, spec: SQLSpec, is_watched: bool
) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(), "primary")
            if is_watched:
                engine = registry.get_async_engine("primary").sync_engine
                sa.event.listen(engine, "after_cursor_execute", lambda *_: None)

            async def alter() -> None:
                async with registry.get_async_session("primary") as session:
                    await session.execute("ALTER TABLE users ADD COLUMN more INTEGER")

            async with registry.get_async_session("primary") as session:
                await session.execute("LOCK TABLE users IN ACCESS SHARE MODE")
                task = asyncio.create_task(alter())
                waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted"
                async with registry.get_async_session("primary", autocommit=True) as other:
                    while not await other.execute(waiting).scalar():
                        await asyncio.sleep(0.01)
                # of the schema before the change, and after the change was sent
                assert (await session.execute("SELECT * FROM users")).keys() == ["id", "name"]
                await session.commit()
                await task
                assert list((await session.execute("SELECT * FROM users")).keys()) == ["id", "name", "more"]

    asyncio.run(main())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_temporary_table_leaves_what_is_prepared_alone(database: Database, spec: SQLSpec) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(pool_size=1, max_overflow=0))
            async with registry.get_async_session() as session:
                await session.execute("SELECT 41 + 1")
                times = "SELECT prepare_time FROM pg_prepared_statements WHERE statement = 'SELECT 41 + 1'"
                before = await session.execute(times).all()
                await session.execute("CREATE TEMPORARY TABLE mine (id INTEGER)")
                await session.execute("SELECT 41 + 1")
                assert await session.execute(times).all() == before
                assert len(before) == 1

    asyncio.run(main())
