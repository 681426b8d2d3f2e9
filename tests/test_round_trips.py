"""How often a session waits for the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sqlspec import Session, SQLSpec
from tests.conftest import Database
from tests.proxy import CountingProxy

pytestmark = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)


@pytest.fixture
def count(database: Database) -> Iterator[Callable[..., int]]:
    """Run something in a session, after an ordinary one or again; return its round trips."""
    with CountingProxy(database.server.port) as proxy, SQLSpec() as spec:
        spec.register_config(database.config(port=proxy.port, pool_size=1))

        def run(work: Callable[[Session], object], *, again: bool = False, **options: object) -> int:
            if not again:
                with spec.get_session() as session:
                    session.execute("SELECT 1")
            before = proxy.round_trips
            with spec.get_session(**options) as session:
                work(session)
            return proxy.round_trips - before

        yield run


def test_an_empty_session_needs_none(count: Callable[..., int]) -> None:
    assert count(lambda session: None) == 0


def test_a_read_and_its_commit_need_no_superfluous_one(count: Callable[..., int], database: Database) -> None:
    # psycopg2 sends BEGIN by itself; MariaDB begins with the statement
    expected = 3 if database.name == "postgresql" else 2
    assert count(lambda session: session.execute("SELECT ?", (1,)).all()) == expected


def test_a_savepoint_needs_two(count: Callable[..., int], database: Database) -> None:
    expected = 3 if database.name == "postgresql" else 2

    def with_savepoint(session: Session) -> None:
        with session.begin_nested():
            pass

    assert count(with_savepoint) - count(lambda session: session.execute("SELECT 1")) == 2 - 1
    assert count(lambda session: session.execute("SELECT 1")) == expected


def test_a_read_only_session_on_postgresql_needs_none_more(count: Callable[..., int], database: Database) -> None:
    # MySQL's DDL would end a read-only transaction: there the session itself is read-only, and again not
    more = 0 if database.name == "postgresql" else 2
    plain = count(lambda session: session.execute("SELECT 1"))
    assert count(lambda session: session.execute("SELECT 1"), read_only=True) == plain + more


def test_an_autocommit_read_needs_one(count: Callable[..., int], database: Database) -> None:
    def read(session: Session) -> None:
        session.execute("SELECT 1").all()

    # the first one after another kind of session switches autocommit on MariaDB
    switch = 0 if database.name == "postgresql" else 1
    assert count(read, autocommit=True) == 1 + switch
    assert count(read, again=True, autocommit=True) == 1


@pytest.mark.parametrize(("options", "expected"), [({}, (3, 3, 2)), ({"autocommit": True}, (1, 1, 1))])
def test_tasks_need_as_many_as_threads(
    database: Database, request: pytest.FixtureRequest, options: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    async def main() -> int:
        with CountingProxy(database.server.port) as proxy:
            async with SQLSpec() as spec:
                spec.register_config(database.config(port=proxy.port, pool_size=1))
                for _ in range(2):
                    before = proxy.round_trips
                    async with spec.get_async_session(**options) as session:
                        await session.execute("SELECT 1").all()
                    # the second time, nothing has to be opened or prepared
                    needed = proxy.round_trips - before
        return needed

    drivers = ("postgresql", "psycopg", "mariadb")
    assert asyncio.run(main()) == expected[drivers.index(request.node.callspec.params["database"])]
