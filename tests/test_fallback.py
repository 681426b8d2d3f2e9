"""with_connection_fallback: the replica serves where the primary cannot, and takes no writes."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sqlspec import (
    ConfigError,
    ConnectionTimeout,
    ErrorKind,
    FallbackError,
    PoolClosed,
    SQLSpec,
    awith_connection_fallback,
    classify,
    with_connection_fallback,
    with_retry,
)
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import PASSWORD, free_port, wait_until
from tests.tasks import RegistryInTasks

SERVERS = ["postgresql", "psycopg", "mariadb"]
on_servers = pytest.mark.parametrize("database", SERVERS, indirect=True)
# Seconds, of which a primary that is in use has half.
PATIENCE = 3.0
WRITE = "INSERT INTO users (name) VALUES ('x')"


@pytest.fixture
def fall_back(any_spec: Any) -> Callable[..., Any]:
    """Return with_connection_fallback, or its asynchronous form, on the registry."""
    if isinstance(any_spec, RegistryInTasks):
        return lambda **options: any_spec._loop.call(awith_connection_fallback, any_spec._registry, **options)
    return lambda **options: with_connection_fallback(any_spec, **options)


@pytest.fixture
def pair(any_spec: Any, database: Database) -> Any:
    """The registry with one connection to the primary, and a replica that is the same database."""
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), "primary", replace=True)
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), "replica")
    # so that nobody has to connect in time
    with any_spec.get_connection("replica"):
        pass
    return any_spec


@pytest.fixture
def exhausted(pair: Any) -> Iterator[Any]:
    with ExitStack() as held:
        held.enter_context(pair.get_connection("primary"))
        yield pair


def write(connection: Any) -> None:
    connection.cursor().execute(WRITE)
    connection.commit()


def test_a_primary_that_has_connections_serves_and_takes_writes(pair: Any, fall_back: Any) -> None:
    with fall_back() as connection:
        write(connection)
    stats = pair.get_pool_stats("primary")
    assert (stats.fallbacks, stats.total, pair.get_pool_stats("replica").hold.count) == (0, 1, 1)


def test_a_replica_serves_reads_while_the_primary_is_in_use(
    exhausted: Any, fall_back: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1, 2):
        with caplog.at_level(logging.WARNING, "sqlspec"), fall_back(timeout=PATIENCE) as connection:
            assert connection.cursor().execute("SELECT COUNT(*) FROM users").fetchone() == (0,)
            assert exhausted.get_pool_stats("replica").checked_out == 1
        assert exhausted.get_pool_stats("primary").fallbacks == count
    assert exhausted.get_pool_stats("replica").fallbacks == 0
    told = [record.getMessage() for record in caplog.records if record.name == "sqlspec"]
    assert told == ["primary has no connection to give (exhausted): replica serves, read-only"] * 2


@pytest.mark.fault(78)
def test_a_replica_refuses_writes_in_every_transaction_and_only_there(exhausted: Any, fall_back: Any) -> None:
    for _ in range(2):
        with fall_back(timeout=PATIENCE) as connection:
            for _ in range(2):
                with pytest.raises(Exception, match=r"(?i)read.?only") as refused:
                    write(connection)
                assert classify(refused.value) is ErrorKind.READ_ONLY
                connection.rollback()
                connection.begin()
                connection.commit()
    with exhausted.get_connection("replica") as connection:
        write(connection)
    stats = exhausted.get_pool_stats("replica")
    # a refusal that was asked for says nothing about the server
    assert (stats.created, stats.closed) == (1, {})


def test_a_replica_refuses_writes_under_autocommit_as_well(any_spec: Any, database: Database, fall_back: Any) -> None:
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), "primary", replace=True)
    any_spec.register_config(database.config(pool_size=1, max_overflow=0, autocommit=True), "replica")
    with any_spec.get_connection("replica"):
        pass
    with any_spec.get_connection("primary"), fall_back(timeout=PATIENCE) as connection:
        with pytest.raises(Exception, match=r"(?i)read.?only"):
            connection.cursor().execute(WRITE)
        connection.rollback()
        assert connection.cursor().execute("SELECT COUNT(*) FROM users").fetchone() == (0,)
    with any_spec.get_connection("replica") as connection:
        connection.cursor().execute(WRITE)
    with any_spec.get_session("primary") as session:
        assert session.execute("SELECT COUNT(*) FROM users").scalar() == 1


@on_servers
def test_a_replica_serves_while_the_primary_is_away(pair: Any, database: Database, fall_back: Any) -> None:
    pair.register_config(database.config(port=free_port()), "primary", replace=True)
    with fall_back() as connection:
        assert connection.cursor().execute("SELECT 1").fetchone() == (1,)
    assert pair.get_pool_stats("primary").fallbacks == 1


@on_servers
def test_both_have_one_deadline_of_which_a_frozen_primary_takes_half(
    pair: Any, database: Database, fall_back: Any
) -> None:
    with FaultProxy(database.server.port) as hole:
        hole.swallow(later_ones=True)
        pair.register_config(database.config(port=hole.port), "primary", replace=True)
        begin = time.monotonic()
        with fall_back(timeout=2.0) as connection:
            assert connection.cursor().execute("SELECT 1").fetchone() == (1,)
        assert time.monotonic() - begin > 0.9
        pair.register_config(database.config(port=hole.port), "replica", replace=True)
        begin = time.monotonic()
        with pytest.raises(FallbackError), fall_back(timeout=0.5):
            pytest.fail("there is no connection")
        assert 0.4 < time.monotonic() - begin < 5.0
        assert hole.fired["swallow"]


@on_servers
def test_a_replica_that_freezes_while_it_is_made_read_only_is_left_in_time(
    exhausted: Any, database: Database, fall_back: Any
) -> None:
    with FaultProxy(database.server.port) as hole:
        exhausted.register_config(database.config(port=hole.port, pool_size=1), "replica", replace=True)
        with fall_back(timeout=2.0) as connection:
            connection.cursor().execute("SELECT 1")
        hole.swallow()
        begin = time.monotonic()
        if database.name == "mariadb":
            with pytest.raises(FallbackError), fall_back(timeout=0.5):
                pytest.fail("there is no connection")
            assert hole.fired["swallow"]
        else:
            # what makes it read only goes with the first statement
            with fall_back(timeout=0.5) as connection:
                connection.invalidate()
        assert time.monotonic() - begin < 5.0
        assert exhausted.get_pool_stats("replica").checked_out == 0


@on_servers
def test_where_both_fail_the_error_says_why_each_did_and_no_secret(
    exhausted: Any, database: Database, fall_back: Any
) -> None:
    exhausted.register_config(database.config(password="wrong secret"), "replica", replace=True)
    with pytest.raises(FallbackError) as caught, fall_back(timeout=2.0):
        pytest.fail("there is no connection")
    error = caught.value
    assert isinstance(error.primary, ConnectionTimeout)
    assert error.__cause__ is error.primary
    assert classify(error.replica) is ErrorKind.CONFIGURATION
    # as the primary's: what tries again, tries again
    assert classify(error) is ErrorKind.EXHAUSTED
    told = str(error)
    assert told.startswith("no connection within 2 s: primary gave none (ConnectionTimeout: ")
    assert ", and replica gave none (" in told
    assert "wrong secret" not in told
    assert PASSWORD not in told
    assert (copied := copy.copy(error)).args == error.args
    assert copied.replica is error.replica


def test_the_block_runs_once_whatever_it_raises(pair: Any, fall_back: Any) -> None:
    runs = []
    for problem in (ConnectionTimeout("of the block"), ConnectionRefusedError()):
        with pytest.raises(type(problem)) as caught, fall_back():
            runs.append(1)
            raise problem
        assert caught.value is problem
    assert len(runs) == 2
    stats = pair.get_pool_stats("primary")
    assert (stats.fallbacks, stats.checked_out, pair.get_pool_stats("replica").hold.count) == (0, 0, 1)


@on_servers
def test_a_config_that_the_primary_refuses_is_not_hidden_by_the_replica(
    pair: Any, database: Database, fall_back: Any
) -> None:
    pair.register_config(database.config(password="wrong"), "primary", replace=True)
    with pytest.raises(Exception) as caught, fall_back():  # noqa: PT011  # which one, is the question
        pytest.fail("there is no connection")
    assert classify(caught.value) is ErrorKind.CONFIGURATION
    assert not isinstance(caught.value, FallbackError)


def test_what_cannot_be_meant_is_refused_while_the_primary_still_works(pair: Any, fall_back: Any) -> None:
    with pytest.raises(ConfigError, match="replica2"), fall_back(replica="replica2"):
        pytest.fail("there is no such name")
    with pytest.raises(ConfigError, match="give seconds above 0"), fall_back(timeout=0):
        pytest.fail("there is no such time")


def test_after_close_there_is_no_fallback() -> None:
    spec = SQLSpec()
    spec.close()
    with pytest.raises(PoolClosed), with_connection_fallback(spec):
        pytest.fail("it is closed")


def test_a_fallback_can_be_tried_again(exhausted: Any, fall_back: Any) -> None:
    attempts = []

    def read() -> Any:
        attempts.append(1)
        with ExitStack() as held:
            if len(attempts) == 1:
                held.enter_context(exhausted.get_connection("replica"))
            with fall_back(timeout=PATIENCE) as connection:
                return connection.cursor().execute("SELECT 1").fetchone()

    assert with_retry(read, max_attempts=3, initial_delay=0.01) == (1,)
    assert len(attempts) == 2
    wait_until(lambda: exhausted.get_pool_stats("replica").checked_out == 0)
