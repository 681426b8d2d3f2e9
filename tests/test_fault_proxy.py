"""The fault proxy: each fault hits, is counted, and passes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import exc

from sqlspec import SQLSpec
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import free_port

pytestmark = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)


@pytest.fixture
def proxy(database: Database) -> Iterator[FaultProxy]:
    with FaultProxy(database.server.port) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: FaultProxy, database: Database, spec: SQLSpec) -> SQLSpec:
    """The registry, with the database behind the proxy as "far"."""
    spec.register_config(database.config(port=proxy.port, command_timeout=1.0, pool_size=2), "far")
    ask(spec)
    return spec


def ask(spec: SQLSpec, statement: str = "SELECT 1") -> object:
    with spec.get_session("far") as session:
        return session.execute(statement).all()


def test_what_is_cut_is_replaced(far: SQLSpec, proxy: FaultProxy) -> None:
    with pytest.raises(exc.DBAPIError) as caught, far.get_session("far") as session:
        session.execute("SELECT 1")
        proxy.cut()
        session.execute("SELECT 1")
    assert caught.value.connection_invalidated
    assert proxy.fired == {"cut": 1}
    ask(far)


def test_nobody_comes_through_until_it_heals(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(exc.DBAPIError):
        ask(far)
    assert proxy.fired["refuse"] >= 2
    proxy.heal()
    ask(far)


@pytest.mark.parametrize("later_ones", [False, True])
def test_what_is_swallowed_is_answered_by_nobody(far: SQLSpec, proxy: FaultProxy, later_ones: bool) -> None:
    proxy.swallow(later_ones=later_ones)
    with pytest.raises(exc.DBAPIError):
        ask(far)
    assert proxy.fired["swallow"] >= 1
    proxy.heal()
    ask(far)


def test_answers_come_late(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.delay(0.05)
    begin = time.monotonic()
    ask(far)
    assert time.monotonic() - begin >= 0.05
    assert proxy.fired["delay"] >= 1


@pytest.mark.fault(20)
def test_an_answer_that_is_truncated_is_an_error(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.truncate(3)
    with pytest.raises(exc.DBAPIError):
        ask(far)
    assert proxy.fired == {"truncate": 1}
    ask(far)


def test_connections_end_after_a_number_of_bytes(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.cut_after(lambda: 3000)
    proxy.cut()
    with pytest.raises(exc.DBAPIError), far.get_session("far") as session:
        for _ in range(1000):
            session.execute("SELECT 1")
    assert proxy.fired["cut_after"] == 1
    proxy.heal()
    ask(far)


def test_a_commit_whose_answer_is_swallowed_has_taken_place(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.swallow_answer("COMMIT")
    with pytest.raises(exc.DBAPIError), far.get_session("far") as session:
        session.execute("INSERT INTO users (name) VALUES ('x')")
    assert proxy.fired == {"swallow_answer": 1}
    assert ask(far, "SELECT name FROM users") == [("x",)]


def test_what_comes_later_is_led_elsewhere(far: SQLSpec, proxy: FaultProxy) -> None:
    proxy.redirect(free_port())
    ask(far)
    proxy.cut()
    with pytest.raises(exc.DBAPIError):
        ask(far)
    assert proxy.fired["redirect"] == 1
