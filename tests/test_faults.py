"""Faults of servers, networks and databases: who gets which error, how soon, and what works afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import exc

from sqlspec import CircuitBreaker, CircuitOpenError, ConnectionTimeout, ErrorKind, classify, with_retry
from sqlspec.pool import FairQueuePool
from sqlspec.resilience import is_ambiguous, is_safe_to_repeat, is_unavailable
from sqlspec.testing import FaultProxy, ScriptedDriver
from tests.conftest import Database
from tests.faults import LONG, NUMBER, ask, assert_whole, deadlocks, end, running
from tests.servers import wait_until

on_servers = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
INSERT = "INSERT INTO users (name) VALUES (?)"


def names(spec: Any) -> list[str]:
    with spec.get_session("primary") as session:
        return [name for (name,) in session.execute("SELECT name FROM users ORDER BY id").all()]


@pytest.fixture
def proxy(database: Database) -> Iterator[FaultProxy]:
    with FaultProxy(database.server.port) as proxy:
        yield proxy


class Readers:
    """Read in four threads, each read tried again until it works, while the block runs.

    By autocommit: where a COMMIT is lost, nobody knows whether it was one of reads alone, and it is not tried again.
    """

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self._is_over = threading.Event()
        self.attempts: list[int] = []
        self.reads: list[int] = []

    def _attempt(self) -> int:
        self.attempts.append(1)
        return int(ask(self._spec, read_only=True))

    def _read(self) -> None:
        while not self._is_over.is_set():
            self.reads.append(with_retry(self._attempt, 100, initial_delay=0.02, max_delay=0.2, timeout=30))

    def go_on(self) -> None:
        """Wait until all are reading, and have done so for a while."""
        seen = len(self.reads)
        wait_until(lambda: len(self.reads) >= seen + 40, seconds=30)

    def __enter__(self) -> Readers:
        self._threads = ThreadPoolExecutor(4)
        self._running = [self._threads.submit(self._read) for _ in range(4)]
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._threads.shutdown()
        for reader in self._running:
            reader.result(0)


# -- servers that end


@pytest.mark.fault(1)
@on_servers
def test_a_server_that_is_killed_ends_what_is_under_way_and_lets_waiters_go(any_spec: Any, database: Database) -> None:
    server = database.server
    any_spec.register_config(database.config(pool_size=2, max_overflow=0), "pair")
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(ask, any_spec, LONG[database.name], "pair") for _ in range(2)]
        wait_until(lambda: len(running(server)) == 2)
        calls.append(threads.submit(ask, any_spec, name="pair", timeout=20))
        wait_until(lambda: any_spec.get_pool_stats("pair").waiters == 1)
        begin = time.monotonic()
        server.kill()
        try:
            errors = [call.exception(20) for call in calls]
            # of the twenty seconds that the statements take, and that the waiter would wait
            assert time.monotonic() - begin < 10
        finally:
            server.start()
    for error in errors:
        assert error is not None
        assert is_unavailable(error)
        assert not is_ambiguous(error)
    assert any_spec.get_pool_stats("pair").disconnects == 2
    assert ask(any_spec, name="pair") == ask(any_spec) == 1


@pytest.mark.fault(2)
@on_servers
def test_readers_that_try_again_notice_nothing_of_a_restart(any_spec: Any, database: Database) -> None:
    with Readers(any_spec) as readers:
        database.server.restart()
        readers.go_on()
    assert set(readers.reads) == {1}
    assert len(readers.attempts) > len(readers.reads)


@pytest.mark.fault(3)
@on_postgresql
def test_readers_that_try_again_notice_nothing_of_a_crash_of_one_backend(any_spec: Any, database: Database) -> None:
    with Readers(any_spec) as readers:
        before = database.server.connections()
        os.kill(before[0], signal.SIGKILL)
        readers.go_on()
        # the server itself goes on, and has ended all the others
        assert database.server._process.poll() is None
        assert not set(before) & set(database.server.connections())
    assert set(readers.reads) == {1}
    assert len(readers.attempts) > len(readers.reads)


@pytest.mark.fault(4, 7)
@on_servers
def test_idle_connections_that_were_ended_are_replaced_one_for_one_and_nobody_notices(
    any_spec: Any, database: Database
) -> None:
    any_spec.register_config(database.config(pool_size=10, max_overflow=0), "many")

    def hold_all() -> set[int]:
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(any_spec.get_session("many")) for _ in range(10)]
            return {session.execute(NUMBER[database.name]).scalar_one() for session in sessions}

    before = hold_all()
    database.server.end_connections()
    after = hold_all()
    assert len(before) == len(after) == 10
    assert not before & after
    assert any_spec.get_pool_stats("many").created == 20


@pytest.mark.fault(5)
@on_servers
def test_a_connection_that_is_ended_in_a_transaction_is_an_error_of_its_own_session_alone(
    any_spec: Any, database: Database
) -> None:
    with any_spec.get_session("primary") as other:
        other.execute(INSERT, ("kept",))
        with pytest.raises(exc.DBAPIError) as caught, any_spec.get_session("primary") as session:
            session.execute(INSERT, ("lost",))
            end(database.server, session.execute(NUMBER[database.name]).scalar_one())
            session.execute("SELECT 1")
        other.execute(INSERT, ("kept as well",))
    assert caught.value.connection_invalidated
    assert is_safe_to_repeat(caught.value)
    assert names(any_spec) == ["kept", "kept as well"]


@pytest.mark.fault(6)
@on_servers
def test_a_statement_whose_connection_is_ended_fails_at_once_and_after_a_rollback_its_session_goes_on(
    any_spec: Any, database: Database
) -> None:
    def end_it() -> None:
        wait_until(lambda: running(database.server) == [number])
        database.server.end_connection(number)

    with ThreadPoolExecutor(1) as threads, any_spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        number = session.execute(NUMBER[database.name]).scalar_one()
        begin, ending = time.monotonic(), threads.submit(end_it)
        with pytest.raises(exc.DBAPIError) as caught:
            session.execute(LONG[database.name])
        assert time.monotonic() - begin < 10
        ending.result(20)
        assert caught.value.connection_invalidated
        with pytest.raises(exc.PendingRollbackError):
            session.execute(INSERT, ("lost as well",))
        session.rollback()
        session.execute(INSERT, ("kept",))
    assert names(any_spec) == ["kept"]


@pytest.mark.fault(30)
@on_servers
def test_a_transaction_that_idles_for_too_long_is_an_error_at_its_next_statement(
    any_spec: Any, database: Database
) -> None:
    limit = (
        "idle_in_transaction_session_timeout = 100" if database.name == "postgresql" else "idle_transaction_timeout = 1"
    )
    with pytest.raises(exc.DBAPIError) as caught, any_spec.get_session("primary") as session:
        session.execute(f"SET {limit}")
        session.execute(INSERT, ("lost",))
        number = session.execute(NUMBER[database.name]).scalar_one()
        wait_until(lambda: number not in database.server.connections())
        session.execute("SELECT 1")
    assert caught.value.connection_invalidated
    assert is_safe_to_repeat(caught.value)
    assert names(any_spec) == []


@pytest.mark.fault(31)
@on_servers
def test_an_idle_connection_that_the_server_does_not_keep_is_replaced(any_spec: Any, database: Database) -> None:
    limit = "SET idle_session_timeout = 100" if database.name == "postgresql" else "SET wait_timeout = 1"
    with any_spec.get_session("primary") as session:
        session.execute(limit)
        number = session.execute(NUMBER[database.name]).scalar_one()
    wait_until(lambda: number not in database.server.connections())
    assert ask(any_spec, NUMBER[database.name]) != number
    assert any_spec.get_pool_stats("primary").total == 1


# -- servers that hang


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process from running, and let it go on at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.fault(8)
@on_postgresql
def test_a_statement_whose_backend_hangs_ends_at_its_deadline(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(command_timeout=0.5, pool_size=2, max_overflow=0), "limited")
    begin = time.monotonic()
    with (
        pytest.raises(exc.DBAPIError, match="no answer to a statement within") as caught,
        any_spec.get_session("limited") as session,
    ):
        number = session.execute("SELECT pg_backend_pid()").scalar_one()
        with stopped(number):
            session.execute("SELECT 1")
    assert time.monotonic() - begin < 10
    assert caught.value.connection_invalidated
    assert ask(any_spec, "SELECT pg_backend_pid()", "limited") != number


@pytest.mark.fault(9)
@on_postgresql
def test_an_idle_connection_whose_backend_hangs_is_replaced_within_the_deadline(
    any_spec: Any, database: Database
) -> None:
    number = ask(any_spec, "SELECT pg_backend_pid()")
    # as after it was idle for a while
    any_spec._get_pool("primary")._ping_after = 0.0
    with stopped(number):
        assert ask(any_spec, "SELECT pg_backend_pid()", timeout=10) != number
    assert any_spec.get_pool_stats("primary").created == 2


@pytest.mark.fault(11)
@on_servers
def test_callers_of_a_frozen_server_end_at_their_deadlines_and_the_thawed_one_serves_them(
    any_spec: Any, database: Database
) -> None:
    any_spec.register_config(database.config(command_timeout=0.5, pool_size=2, max_overflow=0), "limited")
    ask(any_spec, name="limited")
    begin = time.monotonic()
    database.server.freeze()
    try:
        with ThreadPoolExecutor(6) as threads:
            calls = [threads.submit(ask, any_spec, name="limited", timeout=1.0) for _ in range(6)]
            errors = [call.exception(60) for call in calls]
        # each has a second for its connection, and half of one, and two of grace, for its statement and the rollback
        assert time.monotonic() - begin < 20
    finally:
        database.server.thaw()
    assert all(isinstance(error, (ConnectionTimeout, exc.DBAPIError)) for error in errors)
    assert any(isinstance(error, ConnectionTimeout) for error in errors)
    assert ask(any_spec, name="limited") == 1


# -- networks


@pytest.mark.fault(15)
@on_servers
def test_a_connection_that_is_reset_under_a_statement_fails_at_once(
    any_spec: Any, database: Database, proxy: FaultProxy
) -> None:
    def cut() -> None:
        wait_until(lambda: len(running(database.server)) == 1)
        proxy.cut()

    any_spec.register_config(database.config(port=proxy.port), "far")
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        cutting = threads.submit(cut)
        with pytest.raises(exc.DBAPIError) as caught:
            ask(any_spec, LONG[database.name], "far")
        cutting.result(20)
    assert time.monotonic() - begin < 10
    assert proxy.fired == {"cut": 1}
    assert caught.value.connection_invalidated
    assert ask(any_spec, name="far") == 1
    for number in running(database.server):
        # nobody tells it that its answer is not wanted any more
        database.server.end_connection(number)


@pytest.mark.fault(17)
@on_servers
def test_a_slow_network_opens_no_further_connections_and_the_figures_tell_of_it(
    any_spec: Any, database: Database, proxy: FaultProxy
) -> None:
    any_spec.register_config(database.config(port=proxy.port), "far")
    proxy.delay(0.05)
    assert [ask(any_spec, name="far") for _ in range(10)] == [1] * 10
    assert proxy.fired["delay"] >= 10
    stats = any_spec.get_pool_stats("far")
    assert (stats.created, stats.wait.count) == (1, 0)
    # where the time went
    assert stats.connect.max >= 0.05
    assert stats.hold.max >= 0.05


# -- what is tried again, and what a breaker sees


@pytest.mark.fault(71)
@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["works", "fails"])
def test_a_call_of_before_an_outage_that_ends_during_the_probe_says_nothing(error: Exception | None) -> None:
    breaker = CircuitBreaker(1, 0.01, probe_timeout=60)
    has_begun, end_call, end_probe = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        has_begun.set()
        end_call.wait(20)
        if error is not None:
            raise error

    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(breaker.call, call)
        assert has_begun.wait(20)
        with pytest.raises(ConnectionRefusedError):
            breaker.call(_refuse)
        assert breaker.state == "open"
        time.sleep(0.02)
        probe = threads.submit(breaker.call, lambda: end_probe.wait(20))
        wait_until(lambda: breaker.state == "half-open")
        end_call.set()
        assert late.exception(20) is error
        assert (breaker.state, breaker.failure_count) == ("half-open", 1)
        with pytest.raises(CircuitOpenError):
            breaker.call(int)
        end_probe.set()
        assert probe.result(20)
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


def _refuse() -> None:
    raise ConnectionRefusedError


@pytest.mark.fault(72)
@on_servers
def test_a_storm_of_refused_statements_leaves_a_breaker_closed(any_spec: Any, database: Database) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    tell_once = "INSERT INTO users (id, name) VALUES (1, 'x')"
    with any_spec.get_session("primary") as session:
        session.execute(tell_once)
    kinds = list[ErrorKind]()
    for statement in [tell_once, "SELEC 1", "SELECT * FROM nothing"] * 10:
        with pytest.raises(exc.DBAPIError) as caught:
            breaker.call(lambda statement=statement: ask(any_spec, statement))
        kinds.append(classify(caught.value))
    assert kinds == [ErrorKind.INTEGRITY, ErrorKind.PROGRAMMING, ErrorKind.PROGRAMMING] * 10
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


@pytest.mark.fault(76)
@on_servers
def test_transactions_that_meet_in_a_deadlock_take_place_once_each(any_spec: Any, database: Database) -> None:
    with any_spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (id, name) VALUES (?, ?)", [(1, "a"), (2, "b")])
    before, met, attempts = deadlocks(database.server), threading.Barrier(2), list[int]()

    def change(first: int, second: int) -> None:
        attempts.append(1)
        is_first_attempt = len(attempts) <= 2
        with any_spec.get_session("primary") as session:
            session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (first,))
            if is_first_attempt:
                met.wait(20)
            session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (second,))

    with ThreadPoolExecutor(2) as threads:
        changes = [threads.submit(with_retry, lambda pair=pair: change(*pair)) for pair in [(1, 2), (2, 1)]]
        for done in changes:
            done.result(60)
    assert len(attempts) == 3
    assert names(any_spec) == ["a..", "b.."]
    wait_until(lambda: deadlocks(database.server) == before + 1)


@pytest.mark.fault(77)
@on_servers
def test_an_open_breaker_ends_the_attempts_of_all_callers(any_spec: Any, database: Database, proxy: FaultProxy) -> None:
    breaker = CircuitBreaker(failure_threshold=3)
    any_spec.register_config(database.config(port=proxy.port), "far")
    ask(any_spec, name="far")
    proxy.refuse()
    errors = list[BaseException]()
    for _ in range(20):
        with pytest.raises((exc.DBAPIError, CircuitOpenError)) as caught:
            with_retry(lambda: breaker.call(lambda: ask(any_spec, name="far")), 5, initial_delay=0.01, timeout=20)
        errors.append(caught.value)
    assert breaker.state == "open"
    assert [type(error) for error in errors] == [CircuitOpenError] * 20
    # of the hundred that twenty callers had
    assert any_spec.get_pool_stats("far").failed_connects == 3
    assert proxy.fired["refuse"] >= 3
    proxy.heal()


@pytest.mark.fault(78)
@on_servers
def test_a_pool_in_which_everything_is_in_use_trips_no_breaker(any_spec: Any, database: Database) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), "small")
    with any_spec.get_session("small") as session:
        session.execute("SELECT 1")
        for _ in range(3):
            with pytest.raises(ConnectionTimeout) as caught:
                breaker.call(lambda: ask(any_spec, name="small", timeout=0.05))
            assert caught.value.phase == "wait"
    assert any_spec.get_pool_stats("small").timeouts == 3
    assert (breaker.state, breaker.failure_count) == ("closed", 0)
    assert breaker.call(lambda: ask(any_spec, name="small")) == 1


# -- crowds


@pytest.mark.fault(44)
def test_a_thousand_waiters_are_served_in_the_order_of_asking(driver: ScriptedDriver) -> None:
    # of several connections, some might be in hands that the system gives no time to
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, timeout=120)
    held = pool.connect()
    served = list[int]()

    def ask_once(number: int) -> None:
        with pool.connect():
            served.append(number)

    threads = [threading.Thread(target=ask_once, args=(number,)) for number in range(1000)]
    for number, thread in enumerate(threads):
        thread.start()
        while pool.stats().waiters <= number:
            time.sleep(0.0001)
    held.close()
    for thread in threads:
        thread.join(120)
    assert served == list(range(1000))
    assert (driver.opened, pool.stats().timeouts) == (1, 0)
    assert_whole(pool, driver)
