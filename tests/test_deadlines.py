"""Servers that hang: every call ends, and says how."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from MySQLdb.cursors import SSCursor
from sqlalchemy import exc

from sqlspec import ConnectionTimeout, LoadError, SQLSpec
from sqlspec.pool import call_aside, deadlines, sockets, within, within_each
from sqlspec.pool.housekeeping import look_after
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import wait_until

on_servers = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
ROWS = {
    "postgresql": "SELECT n FROM generate_series(1, 100000) AS n",
    "mariadb": "SELECT seq FROM seq_1_to_100000",
}


@pytest.fixture
def hole(database: Database) -> Iterator[FaultProxy]:
    with FaultProxy(database.server.port) as hole:
        yield hole


@pytest.fixture
def limited(any_spec: Any, database: Database, hole: FaultProxy) -> Any:
    """The registry, whose "limited" goes through the hole."""
    any_spec.register_config(
        database.config(port=hole.port, command_timeout=0.3, pool_size=2, max_overflow=0), "limited"
    )
    return any_spec


def execute(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute("SELECT 1")
        swallow()
        session.execute("SELECT 2")


def execute_watched(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute(sa.text("SELECT 1"))
        swallow()
        session.execute(sa.text("SELECT 2"))


def commit(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute("SELECT 1")
        swallow()


def commit_of_sqlalchemy(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute(sa.text("SELECT 1"))
        swallow()


def execute_on_a_cursor(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_connection("limited") as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        swallow()
        cursor.execute("SELECT 2")


def commit_of_a_connection(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_connection("limited") as connection:
        connection.cursor().execute("SELECT 1")
        swallow()
        connection.commit()


WAYS = [execute, execute_watched, commit, commit_of_sqlalchemy, execute_on_a_cursor, commit_of_a_connection]


@pytest.mark.fault(13)
@on_servers
@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_is_swallowed_ends_and_says_so(
    limited: Any, hole: FaultProxy, way: Callable[[Any, Callable[[], None]], None]
) -> None:
    what = "COMMIT|a call" if "commit" in way.__name__ else "a statement"
    errors = limited.get_engine("limited").dialect.loaded_dbapi
    begin = time.monotonic()
    with pytest.raises((exc.DBAPIError, errors.Error), match=f"no answer to ({what}) within") as caught:
        way(limited, hole.swallow)
    assert time.monotonic() - begin < 10
    if isinstance(caught.value, exc.DBAPIError):
        assert caught.value.connection_invalidated
    assert hole.fired["swallow"] >= 1
    # who comes next has a connection that works
    with limited.get_session("limited") as session:
        assert session.execute("SELECT 3").scalar_one() == 3
    stats = limited.get_pool_stats("limited")
    assert (stats.checked_out, stats.disconnects) == (0, 1)


@pytest.mark.fault(13)
@on_servers
def test_a_rollback_that_is_swallowed_hides_no_error_and_ends(limited: Any, hole: FaultProxy) -> None:
    with pytest.raises(ZeroDivisionError) as caught, limited.get_session("limited") as session:
        session.execute("SELECT 1")
        hole.swallow()
        _ = 1 / 0
    assert "no answer to" in "\n".join(caught.value.__notes__)
    with limited.get_session("limited") as session:
        assert session.execute("SELECT 3").scalar_one() == 3


@pytest.mark.fault(13)
@on_servers
def test_a_stream_that_is_swallowed_ends(spec: SQLSpec, database: Database, hole: FaultProxy) -> None:
    spec.register_config(database.config(port=hole.port, command_timeout=0.3), "limited")
    with (
        pytest.raises(exc.DBAPIError, match="no answer to a request for rows"),
        spec.get_session("limited") as session,
    ):
        for number, _ in enumerate(session.stream(ROWS[database.name], chunk_size=10)):
            if number == 15:
                hole.swallow()


ROWS_OF_USERS = [(number, f"user {number}") for number in range(1000, 3500)]


def insert_many(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute("SELECT 1")
        swallow()
        session.execute_many("INSERT INTO users VALUES (?, ?)", ROWS_OF_USERS)


def update_many(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute("SELECT 1")
        swallow()
        session.execute_many("UPDATE users SET name = ? WHERE id = ?", [(name, key) for key, name in ROWS_OF_USERS])


def load(spec: Any, swallow: Callable[[], None]) -> None:
    def rows() -> Iterator[tuple[int, str]]:
        yield from ROWS_OF_USERS[:2000]
        swallow()
        yield from ROWS_OF_USERS[2000:]

    with spec.get_session("limited") as session:
        session.load_rows("users", rows())


def load_none(spec: Any, swallow: Callable[[], None]) -> None:
    with spec.get_session("limited") as session:
        session.execute("SELECT 1")
        swallow()
        session.load_rows("users", ROWS_OF_USERS)


@on_servers
@pytest.mark.parametrize("way", [insert_many, update_many, load, load_none])
def test_many_rows_that_are_swallowed_end(
    limited: Any, hole: FaultProxy, way: Callable[[Any, Callable[[], None]], None]
) -> None:
    begin = time.monotonic()
    with pytest.raises((exc.DBAPIError, LoadError)) as caught:
        way(limited, hole.swallow)
    assert time.monotonic() - begin < 10
    failure = caught.value.__cause__ if isinstance(caught.value, LoadError) else caught.value
    assert "the server gave no answer to" in str(failure)
    assert hole.fired["swallow"] >= 1
    with limited.get_session("limited") as session:
        assert session.execute("SELECT COUNT(*) FROM users").scalar_one() == 0
    stats = limited.get_pool_stats("limited")
    assert (stats.checked_out, stats.disconnects) == (0, 1)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("kind", ["cursor", "sqlalchemy"])
def test_of_many_rows_sent_one_by_one_each_has_the_limit(
    spec: SQLSpec, database: Database, hole: FaultProxy, kind: str
) -> None:
    spec.register_config(database.config(port=hole.port, command_timeout=0.3), "limited")
    users = sa.table("users", sa.column("id"), sa.column("name"))
    change = sa.update(users).where(users.c.id == sa.bindparam("key")).values(name=sa.bindparam("new"))
    errors = spec.get_engine("limited").dialect.loaded_dbapi
    with (
        pytest.raises((exc.DBAPIError, errors.Error), match="no answer to a statement within"),
        spec.get_connection("limited") if kind == "cursor" else spec.get_session("limited") as open_one,
    ):
        cursor = open_one.cursor() if kind == "cursor" else open_one
        cursor.execute("SELECT 1")
        hole.swallow()
        if kind == "cursor":
            cursor.executemany("UPDATE users SET name = ? WHERE id = ?", [(name, key) for key, name in ROWS_OF_USERS])
        else:
            open_one.execute_many(change, [{"key": key, "new": name} for key, name in ROWS_OF_USERS])


@on_servers
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_many_rows_may_take_longer_together(any_spec: Any, database: Database, autocommit: bool) -> None:
    any_spec.register_config(database.config(command_timeout=0.3), "limited")
    pause = "DO SLEEP(?)" if database.name == "mariadb" else "SELECT pg_sleep(?)"
    begin = time.monotonic()
    with any_spec.get_session("limited", autocommit=autocommit) as session:
        session.execute_many(pause, [(0.05,)] * 20)
    assert time.monotonic() - begin > 0.8
    assert any_spec.get_pool_stats("limited").disconnects == 0


@on_servers
def test_many_rows_that_are_sent_in_steps_are_counted_together(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(command_timeout=10), "limited")
    with any_spec.get_session("limited") as session:
        session.execute_many("INSERT INTO users VALUES (?, ?)", ROWS_OF_USERS)
        changed = session.execute_many(
            "UPDATE users SET name = ? WHERE id = ?", [(f"new {k}", k) for k, _ in ROWS_OF_USERS]
        )
        assert changed.rowcount in {len(ROWS_OF_USERS), -1}
        assert session.execute("SELECT COUNT(*) FROM users WHERE name LIKE 'new%'").scalar_one() == len(ROWS_OF_USERS)


def check_in_with_a_cursor_on_the_server(spec: Any, kind: str, swallow: Callable[[], None]) -> None:
    with spec.get_connection("limited") as connection:
        cursor = connection.cursor(SSCursor) if kind == "mariadb" else connection.cursor("on_the_server")
        cursor.execute(ROWS[kind])
        cursor.fetchone()
        swallow()


def roll_two_phases_back(spec: Any, kind: str, swallow: Callable[[], None]) -> None:
    with spec.get_engine("limited").connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(sa.text("SELECT 1"))
        swallow()
        transaction.rollback()


def change_the_isolation_level(spec: Any, kind: str, swallow: Callable[[], None]) -> None:
    with spec.get_engine("limited").connect() as connection:
        swallow()
        connection.execution_options(isolation_level="SERIALIZABLE").execute(sa.text("SELECT 1"))


# psycopg's cursors warn where they could not be closed
@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize(
    "way", [check_in_with_a_cursor_on_the_server, roll_two_phases_back, change_the_isolation_level]
)
def test_what_is_asked_beside_statements_ends_as_well(
    spec: SQLSpec, database: Database, hole: FaultProxy, way: Callable[[Any, str, Callable[[], None]], None]
) -> None:
    spec.register_config(database.config(port=hole.port, command_timeout=0.3), "limited")
    errors = spec.get_engine("limited").dialect.loaded_dbapi
    begin = time.monotonic()
    with pytest.raises((exc.DBAPIError, errors.Error), match="no answer to"):
        way(spec, database.name, hole.swallow)
    assert time.monotonic() - begin < 10
    assert hole.fired["swallow"] >= 1


@on_servers
def test_closing_an_idle_connection_waits_for_no_server(limited: Any, hole: FaultProxy) -> None:
    with limited.get_session("limited") as session:
        session.execute("SELECT 1")
    pool = limited._get_pool("limited")
    hole.swallow()
    limited.register_config(limited.get_config("primary"), "limited", replace=True)
    wait_until(lambda: pool.total() == 0)


@pytest.mark.fault(12)
@on_servers
def test_an_idle_connection_that_is_swallowed_costs_a_ping_and_a_connect(limited: Any, hole: FaultProxy) -> None:
    with limited.get_session("limited") as session:
        session.execute("SELECT 1")
    limited._get_pool("limited")._ping_after = 0.0
    hole.swallow()
    begin = time.monotonic()
    with limited.get_session("limited", timeout=5) as session:
        assert session.execute("SELECT 2").scalar_one() == 2
    assert 1 <= time.monotonic() - begin < 5
    assert limited.get_pool_stats("limited").created == 2


@pytest.mark.fault(12, 14)
@on_servers
@pytest.mark.parametrize("timeout", [0.3, 1.4])
def test_one_deadline_goes_over_ping_and_connect(limited: Any, hole: FaultProxy, timeout: float) -> None:
    with limited.get_session("limited") as session:
        session.execute("SELECT 1")
    limited._get_pool("limited")._ping_after = 0.0
    hole.swallow(later_ones=True)
    begin = time.monotonic()
    with pytest.raises(ConnectionTimeout) as caught, limited.get_session("limited", timeout=timeout) as session:
        session.execute("SELECT 2")
    assert caught.value.phase == ("ping" if timeout < 1 else "connect")
    assert time.monotonic() - begin < timeout + 3
    hole.heal()
    with limited.get_session("limited") as session:
        assert session.execute("SELECT 2").scalar_one() == 2


@pytest.mark.fault(14)
@on_servers
def test_connecting_may_take_less_than_a_second(any_spec: Any, database: Database, hole: FaultProxy) -> None:
    hole.swallow(later_ones=True)
    any_spec.register_config(database.config(port=hole.port, connect_timeout=0.2), "short")
    with (
        pytest.raises(exc.OperationalError, match=r"took longer than 0\.2 s"),
        any_spec.get_session("short") as session,
    ):
        session.execute("SELECT 1")
    assert any_spec.get_pool_stats("short").failed_connects == 1


@on_servers
def test_what_connects_too_late_is_closed(spec: SQLSpec, database: Database, hole: FaultProxy) -> None:
    def slow_password() -> str:
        is_asked.set()
        go_on.wait(20)
        return database.config().reveal_password() or ""

    is_asked, go_on = threading.Event(), threading.Event()
    # those of the tests before are gone
    spec._get_pool("primary").dispose()
    wait_until(lambda: not database.server.connections())
    with SQLSpec() as registry:
        registry.register_config(database.config(password=slow_password, connect_timeout=0.2))
        with pytest.raises(exc.OperationalError, match="took longer"), registry.get_session() as session:
            session.execute("SELECT 1")
        assert is_asked.is_set()
        go_on.set()
        with registry.get_session() as session:
            assert session.execute("SELECT 1").scalar_one() == 1
        wait_until(lambda: len(database.server.connections()) == 1)


# -- the watch itself


class Line:
    """Be a connection whose calls wait for the other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def fileno(self) -> int:
        return self.ours.fileno()

    def wait(self) -> str:
        if not self.ours.recv(1):
            raise OSError("the line is dead")
        return "answered"

    def answer(self) -> None:
        # the other end may be gone
        with contextlib.suppress(OSError):
            self.theirs.send(b"x")

    def close(self) -> None:
        for end in (self.ours, self.theirs):
            end.close()


def test_a_call_is_cut_or_answered_and_never_both() -> None:
    outcomes: list[str] = []
    for seed in range(150):
        line = Line()
        answers = threading.Timer(random.Random(seed).uniform(0.0, 0.08), line.answer)  # noqa: S311  # no secret
        answers.start()
        try:
            outcomes.append(within(line, 0.04, line.wait))
        except OSError as error:
            outcomes.append(str(error))
        answers.join()
        if outcomes[-1] == "answered" and is_alive(line):
            # it may have been cut at the same moment; if not, nobody cuts it afterwards
            line.answer()
            assert line.wait() == "answered"
        line.close()
    assert {"answered"} < set(outcomes)
    assert all(outcome == "answered" or "no answer to a call within 0.04 s" in outcome for outcome in outcomes)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def test_of_things_that_are_sent_one_by_one_each_has_its_own_time(line: Line) -> None:
    def slow() -> Iterator[int]:
        for number in range(4):
            # what they take to come is not the server's time
            time.sleep(1.2 if number == 1 else 0.0)
            yield number

    def send(things: Iterable[int]) -> list[int]:
        return [thing for thing in things if not time.sleep(0.3)]

    def send_and_wait(things: Iterable[int]) -> str:
        send(things)
        return line.wait()

    assert within_each(line, 1.0, send, slow()) == [0, 1, 2, 3]
    assert is_alive(line)
    begin = time.monotonic()
    with pytest.raises(OSError, match="no answer to a call within 1 s"):
        within_each(line, 1.0, send_and_wait, [1])
    assert time.monotonic() - begin < 10


def is_alive(line: Line) -> bool:
    try:
        line.ours.settimeout(0)
        return line.ours.recv(1) != b""
    except BlockingIOError:
        return True
    finally:
        line.ours.settimeout(None)


def test_a_socket_that_another_has_by_now_is_left_alone(line: Line) -> None:
    other: list[socket.socket] = []

    def lose_it() -> None:
        number = line.ours.detach()
        socket.close(number)
        other.extend(socket.socketpair())
        assert number in {end.fileno() for end in other}
        time.sleep(0.5)

    within(line, 0.1, lose_it)
    other[0].send(b"z")
    assert other[1].recv(1) == b"z"
    for end in other:
        end.close()


def test_an_interrupt_leaves_no_call_behind(line: Line) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(line, 0.1, interrupt)
    time.sleep(0.5)
    assert is_alive(line)


def test_what_is_called_aside_returns_and_raises_as_called() -> None:
    assert call_aside(5, lambda: 7, print) == 7
    with pytest.raises(ZeroDivisionError):
        call_aside(5, lambda: 1 // 0, print)
    undone: list[int] = []
    go_on = threading.Event()
    with pytest.raises(TimeoutError):
        call_aside(0.05, lambda: go_on.wait(20) and 8, undone.append)
    go_on.set()
    wait_until(lambda: undone == [8])


def wait_for_cut(line: Line) -> None:
    """Have a call cut that another thread makes; this one waits no longer than ten seconds."""
    said: list[str] = []

    def call() -> None:
        try:
            within(line, 0.1, line.wait)
        except OSError as error:
            said.append(str(error))

    threading.Thread(target=call, daemon=True).start()
    wait_until(lambda: bool(said), seconds=10)
    assert "no answer to a call within 0.1 s" in said[0]


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let the process have no more descriptors than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDWR))
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_calls_are_cut_where_no_descriptor_is_left(line: Line) -> None:
    other = Line()
    # as every connection, which is opened before
    assert sockets.socket_of(line) is not None
    try:
        with no_descriptor_left():
            wait_for_cut(line)
            wait_for_cut(other)
            # nobody has kept it open
            line.close()
            os.close(os.dup(0))
    finally:
        other.close()


def test_a_child_leaves_connections_to_its_parent_where_no_descriptor_is_left(line: Line) -> None:
    ours = sockets.socket_of(line)
    assert ours is not None
    with no_descriptor_left():
        assert ours.lead_nowhere()
        assert line.ours.fileno() > 0
        assert os.read(line.ours.fileno(), 1) == b""
        assert line.theirs.recv(1) == b""
    assert not ours.lead_nowhere()


def test_spare_descriptors_that_others_have_by_now_are_left_alone(line: Line) -> None:
    assert sockets.socket_of(line) is not None
    numbers = list(sockets._spares)
    # as a daemon does that closes all it has inherited
    for number in numbers:
        os.close(number)
    others = [socket.socketpair() for _ in range(2)]
    assert set(numbers) & {end.fileno() for pair in others for end in pair}
    wait_for_cut(line)
    for here, there in others:
        here.send(b"z")
        assert there.recv(1) == b"z"
        here.close()
        there.close()


def test_what_housekeeping_waits_for_makes_no_deadline_late(line: Line) -> None:
    class Slow:
        def keep_house(self) -> None:
            is_slow.set()
            go_on.wait(20)

    slow, is_slow, go_on = Slow(), threading.Event(), threading.Event()
    look_after(slow, 0.0)
    assert is_slow.wait(10)
    wait_for_cut(line)
    go_on.set()


@on_servers
def test_a_report_of_a_leak_may_be_stored_in_a_database_that_hangs(
    spec: SQLSpec, database: Database, hole: FaultProxy
) -> None:
    class Store(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_logged.set()
            with contextlib.suppress(Exception), spec.get_session("limited", timeout=5) as session:
                session.execute("SELECT 1")

    is_logged, store = threading.Event(), Store()
    spec.register_config(database.config(port=hole.port, command_timeout=0.3, pool_leak_seconds=0.1), "limited")
    logger = logging.getLogger("sqlspec.pool")
    logger.addHandler(store)
    try:
        with spec.get_session("limited") as other:
            other.execute("SELECT 1")
        with pytest.raises(exc.DBAPIError, match="no answer to a statement"), spec.get_session("limited") as session:
            session.execute("SELECT 1")
            hole.swallow(later_ones=True)
            assert is_logged.wait(10)
            session.execute("SELECT 2")
    finally:
        logger.removeHandler(store)


@on_servers
@pytest.mark.parametrize("has_limit", [True, False], ids=["limited", "unlimited"])
def test_what_the_garbage_collector_gives_back_makes_no_deadline_late(
    spec: SQLSpec,
    database: Database,
    hole: FaultProxy,
    line: Line,
    monkeypatch: pytest.MonkeyPatch,
    has_limit: bool,
) -> None:
    collected: list[str] = []

    def collect(call: Any) -> None:
        # as Python may at any time, in any thread
        if not collected:
            collected.append(threading.current_thread().name)
            gc.collect()
        cut(call)

    cut = deadlines._cut
    limit = {"command_timeout": 0.3} if has_limit else {}
    spec.register_config(database.config(port=hole.port, **limit), "dropped")
    connection = spec._get_pool("dropped").connect()
    connection.cursor().execute("SELECT 1")
    gc.disable()
    try:
        cycle = [connection]
        cycle.append(cycle)
        hole.swallow()
        monkeypatch.setattr(deadlines, "_cut", collect)
        del connection, cycle
        wait_for_cut(line)
    finally:
        gc.enable()
    assert collected == ["sqlspec-deadlines"]
    # who waits without a limit is let go
    hole.cut()
    wait_until(lambda: spec.get_pool_stats("dropped").checked_out == 0)


IDLE = """
import threading, time
from sqlspec import SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig

def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sqlspec-")]

def wait_for(names):
    deadline = time.monotonic() + 20
    while ours() != names:
        assert time.monotonic() < deadline, ours()
        time.sleep(0.01)

with SQLSpec() as registry:
    for name in ("one", "other"):
        options = dict(command_timeout=5, pool_idle_timeout=60, min_pool_size=1, pool_leak_seconds=60)
        registry.register_config({config}.model_copy(update=options), name)
        with registry.get_session(name) as session:
            session.execute("SELECT 1")
            assert "sqlspec-deadlines" in ours()
    # deadlines have a thread while there are calls, and a moment longer
    wait_for(["sqlspec-housekeeping"])
wait_for([])
"""


@on_servers
def test_an_idle_process_has_one_thread_of_ours_at_most_and_none_after_close(database: Database) -> None:
    # in a process of its own: here other tests may have left pools that are looked after
    command = [sys.executable, "-W", "error", "-c", IDLE.format(config=database.as_code())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.fault(81)
@pytest.mark.parametrize("failure", [None, KeyboardInterrupt], ids=["no threads left", "an interrupt"])
def test_a_watch_that_could_not_begin_begins_with_the_next_call(
    line: Line, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException] | None
) -> None:
    def start_none(*_: object) -> bool:
        tried.append(1)
        if failure is not None:
            raise failure
        return False

    tried: list[int] = []
    wait_until(lambda: deadlines._watch._watcher is None, seconds=10)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(deadlines, "start_thread", start_none)
        within(line, 5.0, int)
    assert tried
    wait_for_cut(line)
