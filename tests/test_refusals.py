"""Connections that cannot be had: who is refused, who is told, and what works with those there are."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import CircuitBreaker, ConnectionTimeout, ErrorKind, PoolTimeout, classify, with_retry
from sqlspec.pool import FairQueuePool, handover
from sqlspec.testing import ScriptedDriver
from tests.conftest import Database
from tests.faults import NUMBER, ask, end, tell
from tests.servers import wait_until

on_servers = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
_USERS = {"postgresql": "guest", "mariadb": "guest@'127.0.0.1'"}
_CREATE = {
    "postgresql": ["CREATE ROLE guest LOGIN PASSWORD 'first'"],
    "mariadb": ["CREATE USER guest@'127.0.0.1' IDENTIFIED BY 'first'", "GRANT ALL ON app.* TO guest@'127.0.0.1'"],
}
_DROP = {"postgresql": ["DROP ROLE IF EXISTS guest"], "mariadb": ["DROP USER IF EXISTS guest@'127.0.0.1'"]}
_LOCK = {"postgresql": "ALTER ROLE guest NOLOGIN", "mariadb": "ALTER USER guest@'127.0.0.1' ACCOUNT LOCK"}
_LIMITS = {
    "postgresql": ("ALTER ROLE guest CONNECTION LIMIT 3", "ALTER ROLE guest CONNECTION LIMIT -1"),
    "mariadb": (
        "ALTER USER guest@'127.0.0.1' WITH MAX_USER_CONNECTIONS 3",
        "ALTER USER guest@'127.0.0.1' WITH MAX_USER_CONNECTIONS 0",
    ),
}


@pytest.fixture
def user(database: Database) -> Iterator[str]:
    """A user of its own, with the password "first", who may do what it wants in the database."""
    name = _USERS[database.name]
    # one that stays of another test would keep its rights
    for statement in [*_DROP[database.name], *_CREATE[database.name]]:
        tell(database.server, statement)
    yield name
    for statement in _DROP[database.name]:
        tell(database.server, statement)


@pytest.fixture
def few(user: str, any_spec: Any, database: Database) -> Iterator[None]:
    """The user may have three connections, until any_spec asks for all that its pools may have."""
    limited, unlimited = _LIMITS[database.name]
    tell(database.server, limited)
    yield
    tell(database.server, unlimited)


def refusals(database: Database) -> int:
    """Return how often the server has refused a user, by its log."""
    told = "password authentication failed" if database.name == "postgresql" else "Access denied for user"
    return (database.server.folder / "log").read_text().count(told)


@pytest.mark.fault(21)
@on_servers
def test_a_wrong_password_is_tried_once_and_says_nothing_about_the_database(any_spec: Any, database: Database) -> None:
    breaker, before = CircuitBreaker(failure_threshold=1), refusals(database)
    any_spec.register_config(database.config(password="wrong"), "wrong")
    with pytest.raises(exc.DBAPIError) as caught:
        with_retry(lambda: breaker.call(lambda: ask(any_spec, name="wrong")), 5)
    assert classify(caught.value) is ErrorKind.CONFIGURATION
    assert any_spec.get_pool_stats("wrong").failed_connects == 1
    # the log comes a little later
    wait_until(lambda: refusals(database) > before)
    assert refusals(database) == before + 1
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


@pytest.mark.fault(22)
@on_servers
def test_a_password_that_is_changed_while_connections_are_pooled_is_noticed_by_nobody(
    user: str, any_spec: Any, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    password, asked = ["first"], list[str]()

    def current() -> str:
        asked.append(password[0])
        return password[0]

    any_spec.register_config(database.config(username="guest", password=current, pool_size=2, max_overflow=0), "guest")
    before = ask(any_spec, NUMBER[database.name], "guest")
    password[0] = "second"
    how = (
        "ALTER ROLE guest PASSWORD 'second'"
        if database.name == "postgresql"
        else f"ALTER USER {user} IDENTIFIED BY 'second'"
    )
    tell(database.server, how)
    # who is connected stays so
    assert ask(any_spec, NUMBER[database.name], "guest") == before
    end(database.server, before)
    assert ask(any_spec, NUMBER[database.name], "guest") != before
    assert asked == ["first", "second"]
    any_spec.register_config(database.config(username="guest", password="first"), "late")
    with pytest.raises(exc.DBAPIError) as caught:
        ask(any_spec, name="late")
    assert classify(caught.value) is ErrorKind.CONFIGURATION
    assert "first" not in caplog.text + str(caught.value)


@pytest.mark.fault(23)
@on_servers
@pytest.mark.parametrize("way", ["dropped", "locked out"])
def test_a_user_who_may_not_connect_any_more_is_told_so_at_once(
    user: str, any_spec: Any, database: Database, way: str
) -> None:
    any_spec.register_config(database.config(username="guest", password="first", pool_size=2), "guest")
    number = ask(any_spec, NUMBER[database.name], "guest")
    for statement in _DROP[database.name] if way == "dropped" else [_LOCK[database.name]]:
        tell(database.server, statement)
    end(database.server, number)
    attempts = list[int]()

    def attempt() -> None:
        attempts.append(1)
        ask(any_spec, name="guest")

    with pytest.raises(exc.DBAPIError) as caught:
        with_retry(attempt, 5)
    assert classify(caught.value) is ErrorKind.CONFIGURATION
    assert len(attempts) == 1
    # for what is looked at after each fault
    for statement in [*_DROP[database.name], *_CREATE[database.name]]:
        tell(database.server, statement)


@pytest.mark.fault(24)
@on_servers
def test_a_pool_that_may_have_more_connections_than_the_server_gives_works_with_what_it_gets(
    few: None, any_spec: Any, database: Database
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    options = {"username": "guest", "password": "first", "breaker": breaker}
    any_spec.register_config(database.config(**options, pool_size=8, max_overflow=0), "guest")

    def use() -> int:
        with any_spec.get_session("guest") as session:
            session.execute("SELECT 1")
            time.sleep(0.02)
            return int(session.execute("SELECT 1").scalar_one())

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(use) for _ in range(40)]
        assert [call.result(60) for call in calls] == [1] * 40
    stats = any_spec.get_pool_stats("guest")
    assert 1 <= stats.total <= 3
    # the server has refused some, which says nothing of it
    assert stats.failed_connects >= 1
    assert breaker.failure_count == 0


@pytest.mark.fault(24)
@on_servers
def test_who_waits_in_vain_for_what_a_full_server_gives_is_told_both(
    few: None, any_spec: Any, database: Database
) -> None:
    any_spec.register_config(database.config(username="guest", password="first", pool_size=8, max_overflow=0), "guest")
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(any_spec.get_session("guest")).execute("SELECT 1")
        with pytest.raises(ConnectionTimeout, match="last attempt to connect failed") as caught:
            ask(any_spec, name="guest", timeout=0.5)
        assert classify(caught.value.__cause__) is ErrorKind.CAPACITY
        assert any_spec.get_pool_stats("guest").waiters == 0
    assert ask(any_spec, name="guest") == 1


@pytest.mark.fault(24)
@on_servers
def test_a_server_that_has_no_connection_at_all_is_an_error_at_once(
    few: None, any_spec: Any, database: Database
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    for name, guard in {"guest": None, "other": breaker}.items():
        config = database.config(username="guest", password="first", pool_size=8, breaker=guard)
        any_spec.register_config(config, name)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(any_spec.get_session("guest")).execute("SELECT 1")
        # none of this pool's own could come back
        with pytest.raises(exc.DBAPIError) as caught:
            ask(any_spec, name="other")
        assert classify(caught.value) is ErrorKind.CAPACITY
        assert breaker.state == "open"


@pytest.mark.fault(24)
@on_servers
def test_who_finds_a_dead_connection_and_a_full_server_waits_for_those_that_live(
    few: None, any_spec: Any, database: Database
) -> None:
    for name in ("guest", "other"):
        any_spec.register_config(database.config(username="guest", password="first", pool_size=3, max_overflow=0), name)
    with contextlib.ExitStack() as held:
        sessions = [held.enter_context(any_spec.get_session("guest")) for _ in range(3)]
        numbers = [session.execute(NUMBER[database.name]).scalar_one() for session in sessions]
    end(database.server, numbers[0])
    with any_spec.get_session("other") as session:
        session.execute("SELECT 1")
        # whichever is their turn
        assert [ask(any_spec, name="guest") for _ in range(6)] == [1] * 6
    stats = any_spec.get_pool_stats("guest")
    assert (stats.failed_connects, stats.total) == (1, 2)


@pytest.mark.fault(24)
def test_who_has_met_a_full_server_waits_no_longer_than_others(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it would wait for so long before it looks at the clock
    monkeypatch.setattr(handover, "_STARVED", 60.0)
    pool = FairQueuePool(driver.connect, pool_size=3, max_overflow=0, is_full=lambda error: isinstance(error, OSError))
    held = pool.connect()
    driver.fail("connect", OSError("too many"))
    driver.slow("connect", 1.0)
    begin = time.monotonic()
    with pytest.raises(PoolTimeout):
        pool.connect(timeout=2.0)
    assert time.monotonic() - begin < 2.9
    # what it has waited is counted once
    assert pool.stats().wait.sum < 2.9
    held.close()


@pytest.mark.fault(52)
@on_servers
def test_a_connection_that_cannot_be_prepared_is_closed_and_gives_its_place_back(
    any_spec: Any, database: Database
) -> None:
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), "small")
    ask(any_spec, name="small")
    pool, opened = any_spec._get_pool("small"), list[int]()

    @sa.event.listens_for(pool, "connect")
    def fail_once(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(NUMBER[database.name])
        opened.append(cursor.fetchone()[0])
        if len(opened) == 1:
            cursor.execute("SET nonsense")

    end(database.server, ask(any_spec, NUMBER[database.name], "small"))
    with pytest.raises(Exception, match=r"nonsense|syntax"):
        ask(any_spec, name="small")
    wait_until(lambda: opened[0] not in database.server.connections())
    assert any_spec.get_pool_stats("small").total == 0
    assert ask(any_spec, NUMBER[database.name], "small") == opened[1]


@pytest.mark.fault(80)
@on_servers
def test_a_process_without_file_descriptors_is_refused_a_connection_and_recovers(database: Database) -> None:
    program = [sys.executable, "-c", _STARVED.format(config=database.as_code())]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # it failed, one connection is held, and another works
    assert done.stdout.split() == ["connect", "1", "1"]


_STARVED = """
import os, resource
from sqlspec import SQLSpec, classify
from sqlspec.adapters import *
spec = SQLSpec()
spec.register_config({config})
held = spec.create_connection()
ask = lambda: spec._get_pool().connect().close()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
last = os.open(os.devnull, os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
try:
    ask()
except Exception as error:
    print(classify(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print(spec.get_pool_stats().total)
ask()
print(spec.get_pool_stats().checked_out)
held.close()
spec.close()
"""
