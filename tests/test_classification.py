"""What errors mean: each kind is provoked from the real databases, on every driver."""

from __future__ import annotations

import signal
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.resilience import ErrorKind, classify, is_unavailable
from tests.conftest import Database
from tests.faults import assert_nothing_is_lost
from tests.servers import PostgreSQLServer, free_port, wait_until

SERVERS = ["postgresql", "psycopg", "mariadb"]
_NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
_LONG = {
    "postgresql": "SELECT pg_sleep(20)",
    "mariadb": "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b",
}
on_servers = pytest.mark.parametrize("database", SERVERS, indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)


def met(work: Callable[[], object]) -> ErrorKind:
    """Return the kind of the error that this raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one, is the question
        work()
    return classify(caught.value)


def ask(spec: Any, name: str = "primary", statement: str = "SELECT 1", **options: Any) -> Any:
    with spec.get_session(name, **options) as session:
        return session.execute(statement).all()


@pytest.fixture
def other(any_spec: Any, database: Database) -> Callable[..., Any]:
    """Return what asks a database that differs by some options."""

    def ask_other(statement: str = "SELECT 1", **options: Any) -> Any:
        any_spec.register_config(database.config(**options), "other", replace=True)
        return ask(any_spec, "other", statement)

    return ask_other


# -- connecting


@pytest.mark.fault(25)
@on_servers
def test_a_port_where_nobody_listens_and_an_unknown_host(other: Any) -> None:
    assert met(lambda: other(port=free_port())) is ErrorKind.CONNECT
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each driver has its own
        other(host="nowhere.invalid")
    assert classify(caught.value) is ErrorKind.CONNECT
    # asyncpg raises what the system does, which names no host
    assert "nowhere.invalid" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.fault(10)
@on_servers
def test_a_server_that_does_not_answer(other: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        assert met(lambda: other(port=deaf.getsockname()[1], connect_timeout=0.3)) is ErrorKind.CONNECT


@pytest.mark.fault(21)
@on_servers
def test_what_no_repetition_would_mend(other: Any) -> None:
    assert met(lambda: other(password="wrong")) is ErrorKind.CONFIGURATION
    assert met(lambda: other(username="nobody")) is ErrorKind.CONFIGURATION
    assert met(lambda: other(database="nothing")) is ErrorKind.CONFIGURATION
    assert met(lambda: other(tls="require")) is ErrorKind.CONFIGURATION


@on_servers
def test_a_user_who_has_no_connection_left(spec: SQLSpec, other: Any, database: Database) -> None:
    with spec.get_session("primary") as session:
        if database.name == "postgresql":
            session.execute("DROP ROLE IF EXISTS few")
            session.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 0 PASSWORD 'few'")
        else:
            session.execute("CREATE OR REPLACE USER few@'127.0.0.1' IDENTIFIED BY 'few' WITH MAX_USER_CONNECTIONS 1")
            session.execute("GRANT ALL ON app.* TO few@'127.0.0.1'")
    spec.register_config(database.config(username="few", password="few"), "few")
    if database.name == "postgresql":
        assert met(lambda: other(username="few", password="few")) is ErrorKind.CAPACITY
    else:
        with spec.get_session("few") as session:
            session.execute("SELECT 1")
            assert met(lambda: other(username="few", password="few")) is ErrorKind.CAPACITY


@pytest.fixture
def closing_server() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL that waits for the end of its last session before it stops."""
    import psycopg2

    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        server = PostgreSQLServer(Path(folder) / "server")
        server.start()
        last = psycopg2.connect(**server.parameters())
        assert server._process is not None
        server._process.send_signal(signal.SIGTERM)
        try:
            wait_until(lambda: not server.is_ready())
            yield server
        finally:
            last.close()
            server._process.wait(30)
            server._process = None


@on_postgresql
def test_a_server_that_is_shutting_down(other: Any, closing_server: PostgreSQLServer) -> None:
    assert met(lambda: other(port=closing_server.port)) is ErrorKind.RESTART


# -- connections that end


@on_servers
def test_a_connection_that_is_ended_under_a_transaction(any_spec: Any, database: Database) -> None:
    number = _NUMBER[database.name]

    def lose() -> None:
        with any_spec.get_session("primary") as session:
            database.server.end_connection(session.execute(number).scalar())
            session.execute("SELECT 1")

    assert met(lose) in {ErrorKind.DISCONNECT, ErrorKind.RESTART}


@pytest.mark.fault(6)
@on_servers
def test_a_connection_that_is_ended_under_a_statement(any_spec: Any, database: Database) -> None:
    assert met(lambda: _end_while_it_sleeps(any_spec, database)) in {ErrorKind.DISCONNECT, ErrorKind.RESTART}


def _end_while_it_sleeps(spec: Any, database: Database) -> None:
    number = _NUMBER[database.name]
    sleep = _LONG[database.name]
    with spec.get_session("primary") as session:
        pid = session.execute(number).scalar()
        timer = threading.Timer(0.3, database.server.end_connection, [pid])
        timer.start()
        try:
            session.execute(sleep)
        finally:
            timer.join()


@pytest.mark.fault(1)
@on_servers
def test_a_server_that_was_killed(any_spec: Any, database: Database) -> None:
    def lose() -> None:
        with any_spec.get_session("primary") as session:
            session.execute("SELECT 1")
            database.server.kill()
            # its processes end one after the other
            for _ in range(1000):
                session.execute("SELECT 1")
                time.sleep(0.01)

    try:
        assert is_unavailable(_error_of(lose))
    finally:
        database.server.start()


def _error_of(work: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one, is the question
        work()
    return caught.value


# -- statements that end


@pytest.mark.fault(29)
@on_servers
def test_a_statement_that_takes_too_long(other: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # a server that is busy ends it late: ours is not to come first
    monkeypatch.setattr("sqlspec.adapters.driver._LATER", 20.0)
    sleep = (
        "SELECT pg_sleep(20)"
        if database.name == "postgresql"
        else "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b"
    )
    assert met(lambda: other(sleep, command_timeout=0.2)) is ErrorKind.TIMEOUT


@on_servers
def test_a_lock_that_is_not_given_in_time(spec: SQLSpec, any_spec: Any, database: Database) -> None:
    limit = "SET lock_timeout = '100ms'" if database.name == "postgresql" else "SET innodb_lock_wait_timeout = 1"
    ask_for = "INSERT INTO users (id, name) VALUES (1, 'x')"

    def wait() -> None:
        with any_spec.get_session("primary") as session:
            session.execute(limit)
            session.execute(ask_for)

    with spec.get_session("primary") as holder:
        holder.execute(ask_for)
        assert met(wait) is ErrorKind.TIMEOUT
        holder.rollback()


@on_servers
def test_a_statement_that_somebody_cancels(spec: SQLSpec, any_spec: Any, database: Database) -> None:
    number = _NUMBER[database.name]
    sleep = (
        "SELECT pg_sleep(20)"
        if database.name == "postgresql"
        else "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b"
    )
    cancel = "SELECT pg_cancel_backend({})" if database.name == "postgresql" else "KILL QUERY {}"

    def be_cancelled() -> None:
        with any_spec.get_session("primary") as session:
            pid = session.execute(number).scalar()
            timer = threading.Timer(0.3, lambda: _run(spec, cancel.format(pid)))
            timer.start()
            try:
                session.execute(sleep)
            finally:
                timer.join()

    assert met(be_cancelled) is ErrorKind.CANCELLED


def _run(spec: SQLSpec, statement: str) -> None:
    with spec.get_session("primary") as session:
        session.execute(statement)


@pytest.mark.fault(76)
@on_servers
def test_a_deadlock(any_spec: Any, database: Database) -> None:
    with any_spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (id, name) VALUES (?, ?)", [(1, "a"), (2, "b")])
    met_once, locked = [], threading.Barrier(2)

    def lock(first: int, second: int) -> None:
        try:
            with any_spec.get_session("primary") as session:
                session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (first,))
                locked.wait(20)
                session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (second,))
        except Exception as error:
            met_once.append(classify(error))

    threads = [threading.Thread(target=lock, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert met_once == [ErrorKind.CONFLICT]


@on_postgresql
def test_transactions_that_cannot_be_put_in_an_order(any_spec: Any) -> None:
    ask(any_spec, statement="INSERT INTO users (id, name) VALUES (1, 'a') RETURNING id")

    def change() -> None:
        with any_spec.get_session("primary", isolation_level="REPEATABLE READ") as late:
            late.execute("SELECT * FROM users").all()
            with any_spec.get_session("primary") as early:
                early.execute("UPDATE users SET name = 'b'")
            late.execute("UPDATE users SET name = 'c'")

    assert met(change) is ErrorKind.CONFLICT


@on_servers
def test_a_write_where_nothing_may_be_written(any_spec: Any, database: Database) -> None:
    write = "INSERT INTO users (name) VALUES ('x')"
    if database.name == "postgresql":
        assert met(lambda: ask(any_spec, statement=write, read_only=True)) is ErrorKind.READ_ONLY
        return
    _run(any_spec, "CREATE OR REPLACE USER plain@'127.0.0.1' IDENTIFIED BY 'plain'")
    _run(any_spec, "GRANT SELECT, INSERT ON app.* TO plain@'127.0.0.1'")
    any_spec.register_config(database.config(username="plain", password="plain"), "plain")
    _run(any_spec, "SET GLOBAL read_only = 1")
    try:
        assert met(lambda: ask(any_spec, "plain", write)) is ErrorKind.READ_ONLY
    finally:
        _run(any_spec, "SET GLOBAL read_only = 0")


@pytest.mark.parametrize("database", ["sqlite", *SERVERS], indirect=True)
def test_what_the_database_refuses(any_spec: Any) -> None:
    ask_for = "INSERT INTO users (id, name) VALUES (1, 'x')"
    _run(any_spec, ask_for)
    assert met(lambda: _run(any_spec, ask_for)) is ErrorKind.INTEGRITY
    assert met(lambda: ask(any_spec, statement="SELEC 1")) is ErrorKind.PROGRAMMING
    assert met(lambda: ask(any_spec, statement="SELECT * FROM nothing")) is ErrorKind.PROGRAMMING


@on_servers
def test_an_error_of_the_driver_means_what_sqlalchemys_does(any_spec: Any) -> None:
    def refuse() -> None:
        with any_spec.get_connection("primary") as connection:
            connection.cursor().execute("SELECT * FROM nothing")

    assert met(refuse) is ErrorKind.PROGRAMMING


@pytest.mark.fault(78)
@pytest.mark.parametrize("database", ["sqlite", *SERVERS], indirect=True)
def test_a_pool_in_which_everything_is_in_use_is_no_database_that_is_down(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=1, max_overflow=0, pool_timeout=0.1), "small")
    with any_spec.get_session("small") as session:
        session.execute("SELECT 1")
        error = _error_of(lambda: ask(any_spec, "small"))
    assert classify(error) is ErrorKind.EXHAUSTED
    assert not is_unavailable(error)


# -- SQLite


@pytest.mark.fault(57, 58)
def test_sqlites_locks_and_snapshots(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=path, connect_timeout=0.1, pool_nested_checkout="allow"))
        _default(spec, "CREATE TABLE users (id INTEGER)")
        with spec.get_session() as holder:
            holder.execute("INSERT INTO users VALUES (1)")
            assert met(lambda: _default(spec, "INSERT INTO users VALUES (2)")) is ErrorKind.TIMEOUT
        reader = sqlite3.connect(path)
        reader.execute("PRAGMA journal_mode = WAL")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        _default(spec, "INSERT INTO users VALUES (3)")
        assert met(lambda: reader.execute("INSERT INTO users VALUES (4)")) is ErrorKind.CONFLICT
        reader.close()
        assert_nothing_is_lost(spec)


def _default(spec: SQLSpec, statement: str) -> None:
    with spec.get_session() as session:
        session.execute(statement)


@pytest.mark.fault(59)
def test_sqlites_files(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, and long enough to be looked at as one" * 20)
    with closing(sqlite3.connect(tmp_path / "torn.db")) as torn:
        torn.execute("CREATE TABLE users (name)")
    with (tmp_path / "torn.db").open("r+b") as file:
        # the page of the table; the first one has the schema
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with SQLSpec() as spec:
        for name, path in {
            "missing": tmp_path / "no" / "app.db",
            "text": tmp_path / "text.db",
            "torn": tmp_path / "torn.db",
        }.items():
            spec.register_config(SQLiteConfig(database=str(path)), name)
            assert met(lambda name=name: ask(spec, name, "SELECT * FROM users")) is ErrorKind.CONFIGURATION
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        _default(spec, "CREATE TABLE users (name)")
        with spec.get_session() as session:
            session.execute("PRAGMA max_page_count = 3")
            fill = "INSERT INTO users SELECT randomblob(10000)"
            assert classify(_error_of(lambda: session.execute(fill))) is ErrorKind.CAPACITY
            session.rollback()
        assert_nothing_is_lost(spec)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_text_that_is_none_says_nothing_about_the_file(any_spec: Any) -> None:
    error = _error_of(lambda: ask(any_spec, statement="SELECT CAST(x'ff' AS TEXT)"))
    assert classify(error) is ErrorKind.PROGRAMMING
    assert not is_unavailable(error)


def test_what_is_no_error_of_a_database() -> None:
    for error in (ValueError("x"), KeyError("x"), FileExistsError("x"), ZeroDivisionError()):
        assert classify(error) is ErrorKind.OTHER
        assert not is_unavailable(error)
