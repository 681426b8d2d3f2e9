"""`pool_reset_on_return="discard"`: the next borrower finds a connection as it was opened."""

from __future__ import annotations

from typing import Any

import pytest

from sqlspec import SQLSpec
from tests.conftest import Database
from tests.session_state import KINDS, SETUP, Kind, look

CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


@pytest.fixture
def clean_spec(any_spec: Any, database: Database) -> Any:
    """A registry whose pool is one connection, "clean", that is discarded each time it comes back."""
    one = database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0)
    any_spec.register_config(one, name="clean")
    with any_spec.get_session("clean") as session:
        for statement in SETUP[database.name]:
            session.execute(statement)
    return any_spec


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_no_state_of_a_session_reaches_the_next_borrower(clean_spec: Any, database: Database) -> None:
    leaks = {}
    for kind in KINDS[database.name]:
        with clean_spec.get_session("clean") as session:
            before = look(session, kind)
        leave(clean_spec, kind, before)
        with clean_spec.get_session("clean") as session:
            after = look(session, kind)
        if after != before:
            leaks[kind.name] = (before, after)
    assert not leaks


def leave(spec: Any, kind: Kind, before: object) -> None:
    with spec.get_session("clean") as session:
        for statement in kind.leave:
            session.execute(statement)
        session.commit()
        assert look(session, kind) != before, f"{kind.name} is not shown by its query"


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_what_a_borrower_told_the_driver_ends_with_its_checkout(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0), name="clean")
    pool = spec._get_pool("clean")
    proxy = pool.connect()
    proxy.driver_connection.isolation_level = 4
    proxy.driver_connection.autocommit = True
    proxy.close()
    proxy = pool.connect()
    assert (proxy.driver_connection.isolation_level, proxy.driver_connection.autocommit) == (None, False)
    proxy.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_news_reach_nobody_but_who_listened(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0), name="clean")
    with spec.get_connection("clean") as conn:
        conn.cursor().execute("LISTEN news")
        conn.commit()
        conn.cursor().execute("NOTIFY news")
        conn.commit()
        assert [news.channel for news in conn.notifies] == ["news"]
    with spec.get_connection("clean") as conn:
        assert conn.notifies == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_text_is_read_in_the_character_set_of_the_config_again(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0), name="clean")
    with spec.get_connection("clean") as conn:
        conn.set_character_set("latin1")
    with spec.get_session("clean") as session:
        assert session.execute("SELECT ?, LENGTH(?)", ("é€", "é€")).one() == ("é€", 5)
