"""Statements that are prepared once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sqlspec import ConfigError, PreparedStatementCache, SQLSpec
from sqlspec.adapters import PostgreSQLConfig
from tests.conftest import Database


def prepared(spec: SQLSpec, name: str = "primary") -> list[str]:
    """Return what the server has prepared for our one connection."""
    with spec.get_connection(name) as connection:
        cursor = connection.cursor().execute("SELECT statement FROM pg_prepared_statements ORDER BY prepare_time")
        return [row[0] for row in cursor.fetchall()]


@pytest.fixture
def cache() -> PreparedStatementCache:
    return PreparedStatementCache(max_size=2)


def is_psycopg2(spec: SQLSpec) -> bool:
    return spec.get_engine("primary").dialect.driver == "psycopg2"


def test_a_statement_is_prepared_once_for_a_physical_connection(spec: SQLSpec, cache: PreparedStatementCache) -> None:
    if spec.get_engine("primary").dialect.name == "mysql":
        with spec.get_connection("primary") as connection, pytest.raises(ConfigError, match="no prepared statements"):
            cache.get_or_prepare(connection, "SELECT 1")
        return
    for number in range(3):
        with spec.get_connection("primary") as connection:
            statement = cache.get_or_prepare(connection, "SELECT CAST(? AS INTEGER) + 1, '?'")
            assert statement.execute((number,)).fetchone() == (number + 1, "?")
            named = cache.get_or_prepare(connection, "SELECT CAST(:a AS INTEGER) - CAST(:b AS INTEGER)")
            assert named.execute({"a": 5, "b": number}).fetchall() == [(5 - number,)]
    if is_psycopg2(spec):
        assert [text.split(" AS ", 1)[1] for text in prepared(spec)] == [
            "SELECT CAST($1 AS INTEGER) + 1, '?'",
            "SELECT CAST($1 AS INTEGER) - CAST($2 AS INTEGER)",
        ]


def test_the_least_recently_used_is_deallocated(spec: SQLSpec, cache: PreparedStatementCache) -> None:
    if not is_psycopg2(spec):
        return
    with spec.get_connection("primary") as connection:
        for number in (1, 2, 1, 3):
            assert cache.get_or_prepare(connection, f"SELECT {number}").execute().fetchone() == (number,)
    assert [text[-1] for text in prepared(spec)] == ["1", "3"]
    # what is prepared again under the same text works on
    with spec.get_connection("primary") as connection:
        assert cache.get_or_prepare(connection, "SELECT 2").execute().fetchone() == (2,)


def test_running_a_statement_is_using_it_and_one_that_was_evicted_takes_the_place_of_another(
    spec: SQLSpec, cache: PreparedStatementCache
) -> None:
    if not is_psycopg2(spec):
        return
    with spec.get_connection("primary") as connection:
        first, second = (cache.get_or_prepare(connection, f"SELECT {number}") for number in (1, 2))
        first.execute()
        third = cache.get_or_prepare(connection, "SELECT 3")
        connection.commit()
    assert [text[-1] for text in prepared(spec)] == ["1", "3"]
    with spec.get_connection("primary") as connection:
        second, third = (cache.get_or_prepare(connection, f"SELECT {number}") for number in (2, 3))
        first = cache.get_or_prepare(connection, "SELECT 1")
        for statement, number in ((first, 1), (second, 2), (third, 3), (second, 2)):
            assert statement.execute().fetchone() == (number,)
    assert [text[-1] for text in prepared(spec)] == ["2", "3"]


def test_it_is_prepared_anew_after_a_reset_and_a_reconnect(
    spec: SQLSpec, database: Database, cache: PreparedStatementCache
) -> None:
    if not is_psycopg2(spec):
        return
    spec.register_config(database.config(pool_reset_on_return="discard", pool_size=1), "discarding")
    for _ in range(2):
        with spec.get_connection("discarding") as connection:
            assert cache.get_or_prepare(connection, "SELECT 1").execute().fetchone() == (1,)
            connection.commit()
    for _ in range(2):
        with spec.get_connection("primary") as connection:
            assert cache.get_or_prepare(connection, "SELECT 1").execute().fetchone() == (1,)
            connection.invalidate()


def test_it_is_prepared_anew_after_a_change_of_the_schema(spec: SQLSpec, cache: PreparedStatementCache) -> None:
    if not is_psycopg2(spec):
        return
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('Bob')")

    def ask() -> Any:
        with spec.get_connection("primary") as connection:
            return cache.get_or_prepare(connection, "SELECT * FROM users").execute().fetchone()

    def change() -> None:
        with spec.get_session("primary") as session:
            session.execute("ALTER TABLE users ADD COLUMN more INTEGER DEFAULT 5")

    assert ask() == (1, "Bob")
    change()
    assert ask() == (1, "Bob", 5)
    with spec.get_session("primary") as session:
        session.execute("DEALLOCATE ALL")
    assert ask() == (1, "Bob", 5)
    # in the middle of a transaction it cannot be helped, but the next one works
    with spec.get_session("primary") as session:
        session.execute("ALTER TABLE users DROP COLUMN more")
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("primary") as connection:
        connection.cursor().execute("SELECT 1")
        statement = cache.get_or_prepare(connection, "SELECT * FROM users")
        with pytest.raises(driver.NotSupportedError, match="cached plan"):
            statement.execute()
        connection.rollback()
        assert statement.execute().fetchone() == (1, "Bob")


def test_a_parameter_whose_type_has_changed_is_prepared_anew_and_nothing_outdated_stays(
    spec: SQLSpec, cache: PreparedStatementCache
) -> None:
    if not is_psycopg2(spec):
        return
    insert, ask = "INSERT INTO users (name) VALUES (?)", "SELECT name FROM users WHERE name = ?"

    def run(value: object) -> Any:
        with spec.get_connection("primary") as connection:
            cache.get_or_prepare(connection, insert).execute((value,))
            connection.commit()
            return cache.get_or_prepare(connection, ask).execute((value,)).fetchone()

    def change(to: str) -> None:
        with spec.get_session("primary") as session:
            session.execute(f"ALTER TABLE users ALTER COLUMN name TYPE {to}")

    assert run("1") == ("1",)
    change("INTEGER USING name::integer")
    assert run(2) == (2,)
    change("VARCHAR(9)")
    assert run("three") == ("three",)
    assert len(prepared(spec)) == 2
    # in the middle of a transaction, the next one has it prepared anew
    change("INTEGER USING length(name) + id")
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("primary") as connection:
        connection.cursor().execute("SELECT 1")
        statement = cache.get_or_prepare(connection, insert)
        with pytest.raises(driver.ProgrammingError, match="is of type integer"):
            statement.execute((50,))
        connection.rollback()
        statement.execute((50,))
        connection.commit()
    assert len(prepared(spec)) == 2
    # a value that was never right is told as before
    with spec.get_connection("primary") as connection, pytest.raises(driver.DataError, match="syntax for type integer"):
        cache.get_or_prepare(connection, "SELECT CAST(? AS INTEGER)").execute(("x",))


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_change_of_the_schema_ends_no_transaction_that_was_begun(
    spec: SQLSpec, database: Database, cache: PreparedStatementCache, autocommit: bool
) -> None:
    if not is_psycopg2(spec):
        return
    spec.register_config(database.config(autocommit=autocommit, pool_size=1), "begun")
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("begun") as connection:
        statement = cache.get_or_prepare(connection, "SELECT * FROM users")
        statement.execute()
        connection.rollback()
        with spec.get_session("primary") as session:
            session.execute("ALTER TABLE users ADD COLUMN much INTEGER")
        connection.begin()
        if not autocommit:
            connection.driver_connection.cursor().execute("INSERT INTO users (name) VALUES ('kept?')")
        with pytest.raises(driver.NotSupportedError, match="cached plan"):
            statement.execute()
        connection.rollback()
        assert statement.execute().fetchall() == []


def test_a_full_cache_minds_nothing_that_was_deallocated_by_hand(spec: SQLSpec, cache: PreparedStatementCache) -> None:
    if not is_psycopg2(spec):
        return
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("primary") as connection:
        for number in (1, 2):
            cache.get_or_prepare(connection, f"SELECT {number}")
        connection.cursor().execute("DEALLOCATE ALL")
        connection.commit()
        assert cache.get_or_prepare(connection, "SELECT 3").execute().fetchone() == (3,)
        connection.commit()
        with pytest.raises(driver.Error):
            connection.cursor().execute("SELECT nothing")
        # in a transaction that is lost nothing can be deallocated, and so nothing is forgotten
        with pytest.raises(driver.InternalError, match="aborted"):
            cache.get_or_prepare(connection, "SELECT 4")
        connection.rollback()
        assert cache.get_or_prepare(connection, "SELECT 4").execute().fetchone() == (4,)
    assert [text[-1] for text in prepared(spec)] == ["3", "4"]


@pytest.mark.parametrize("sql", ["SELECT 1; INSERT INTO users (name) VALUES ('x')", "SELECT ';'; SELECT 2 -- x"])
def test_of_several_statements_none_is_prepared(spec: SQLSpec, cache: PreparedStatementCache, sql: str) -> None:
    if not is_psycopg2(spec):
        return
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("primary") as connection:
        with pytest.raises(driver.ProgrammingError, match="one statement"):
            cache.get_or_prepare(connection, sql)
        for single in ("SELECT ';' ; -- one;", "SELECT $a$ ; $a$ /* ; x */ ;"):
            assert cache.get_or_prepare(connection, single).execute().fetchone()


def test_errors_are_the_drivers(spec: SQLSpec, cache: PreparedStatementCache) -> None:
    if not is_psycopg2(spec):
        return
    driver = spec.get_engine("primary").dialect.loaded_dbapi
    with spec.get_connection("primary") as connection:
        with pytest.raises(driver.ProgrammingError, match="1 placeholders and 2 values"):
            cache.get_or_prepare(connection, "SELECT CAST(? AS INTEGER)").execute((1, 2))
        with pytest.raises(driver.ProgrammingError, match="nowhere"):
            cache.get_or_prepare(connection, "SELECT * FROM nowhere")
        connection.rollback()
        with pytest.raises(driver.ProgrammingError):
            cache.get_or_prepare(connection, "SELECT ?, :name")


def test_where_nothing_can_be_prepared_it_is_refused(
    spec: SQLSpec, database: Database, cache: PreparedStatementCache
) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PreparedStatementCache(0)
    if isinstance(spec.get_config("primary"), PostgreSQLConfig):
        spec.register_config(database.config(prepare_threshold=None), "proxied")
        with spec.get_connection("proxied") as connection, pytest.raises(ConfigError, match="a proxy is in between"):
            cache.get_or_prepare(connection, "SELECT 1")

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_connection() as connection:
                with pytest.raises(TypeError, match="prepare asynchronous statements by themselves"):
                    cache.get_or_prepare(connection, "SELECT 1")  # type: ignore[arg-type]  # the mistake

    asyncio.run(main())
