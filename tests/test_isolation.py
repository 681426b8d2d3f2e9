"""Isolated tests: what they do to a database is undone, commits included."""

from __future__ import annotations

import contextlib

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm

from sqlspec import ConfigError, SQLSpec, SQLSpecWarning
from sqlspec.adapters import SQLiteConfig
from sqlspec.testing import isolated
from tests.conftest import Database

INSERT = "INSERT INTO users (name) VALUES (?)"


def names(spec: SQLSpec) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


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


def test_an_isolated_transaction_goes_on_after_an_error(spec: SQLSpec) -> None:
    with isolated(spec):
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        with pytest.raises(exc.IntegrityError), spec.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
            session.execute(INSERT, ("Alice",))
        with spec.get_session("primary") as session:
            with pytest.raises(exc.IntegrityError):
                session.execute(INSERT, ("Alice",))
            session.rollback()
            session.execute(INSERT, ("Carol",))
        assert names(spec) == ["Alice", "Carol"]
    assert names(spec) == []


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_an_isolated_commit_of_an_aborted_transaction_fails_as_a_real_one(spec: SQLSpec) -> None:
    with isolated(spec):
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        with pytest.raises(exc.DBAPIError, match="aborted"), spec.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
            with contextlib.suppress(exc.IntegrityError):
                session.execute(INSERT, ("Alice",))
        assert names(spec) == ["Alice"]


def test_a_session_within_another_commits_by_itself(spec: SQLSpec) -> None:
    with isolated(spec):
        outer = spec.get_session("primary")
        outer.execute(INSERT, ("outer",))
        with spec.get_session("primary") as inner:
            inner.execute(INSERT, ("inner",))
        with contextlib.suppress(ZeroDivisionError), spec.get_session("primary") as inner:
            inner.execute(INSERT, ("undone",))
            raise ZeroDivisionError
        outer.commit()
        outer.close()
        assert names(spec) == ["outer", "inner"]


def test_a_block_that_fails_is_undone_and_leaves_the_registry_as_it_was(spec: SQLSpec) -> None:
    with pytest.raises(ZeroDivisionError), isolated(spec):
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
        raise ZeroDivisionError
    with spec.get_session("primary") as session:
        session.execute(INSERT, ("Bob",))
    assert names(spec) == ["Bob"]


def test_a_registry_is_isolated_once(spec: SQLSpec) -> None:
    with isolated(spec):
        with pytest.raises(ConfigError, match="isolated already"), isolated(spec):
            pytest.fail("this must not begin")
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("Alice",))
    assert names(spec) == []


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
def test_a_change_of_the_schema_that_mysql_commits_ends_the_isolation_with_an_error(spec: SQLSpec) -> None:
    with pytest.raises(Exception, match=r"SAVEPOINT .* does not exist"), isolated(spec):
        session = spec.get_session("primary")
        session.execute("CREATE OR REPLACE TABLE others (id INTEGER)")
        session.close()
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE others")


def test_what_is_checked_out_before_is_not_isolated(spec: SQLSpec, database: Database) -> None:
    before = spec.get_session("primary")
    before.execute(INSERT, ("before",))
    if database.name == "sqlite":
        # it allows one writer at a time
        before.commit()
    with isolated(spec):
        before.commit()
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("within",))
        assert before.execute("SELECT name FROM users").scalars().all() == ["before"]
        before.rollback()
    before.close()
    assert names(spec) == ["before"]


def test_what_is_open_at_the_end_loses_its_connection(spec: SQLSpec) -> None:
    forgotten = spec.get_session("primary")
    block = isolated(spec)
    block.__enter__()
    forgotten.execute(INSERT, ("forgotten",))
    with pytest.warns(SQLSpecWarning, match="primary: a session or connection is still open"):
        block.__exit__(None, None, None)
    with pytest.raises(exc.DBAPIError):
        forgotten.commit()
    with contextlib.suppress(exc.DBAPIError):
        forgotten.close()
    assert names(spec) == []
    assert spec.get_pool_stats("primary").checked_out == 0
