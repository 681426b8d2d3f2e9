"""What servers do to connections."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import exc

from sqlspec import ConnectionTimeout, SQLSpec
from tests.conftest import Database
from tests.servers import PASSWORD, wait_until

pytestmark = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)


def kill(spec: SQLSpec, database: Database, pid: Any) -> None:
    spec.register_config(database.config(), name="killer", replace=True)
    with spec.get_session("killer", autocommit=True) as session:
        if database.name == "postgresql":
            session.execute("SELECT pg_terminate_backend(?)", (pid,))
        else:
            session.execute(f"KILL {int(pid)}")
    # the server says good-bye before it forgets the connection
    wait_until(lambda: pid not in database.server.connections())


def backend(session: Any, database: Database) -> Any:
    return session.execute(
        "SELECT pg_backend_pid()" if database.name == "postgresql" else "SELECT CONNECTION_ID()"
    ).scalar()


@pytest.mark.fault(4)
def test_an_idle_connection_that_was_killed_is_replaced_at_checkout(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        pid = backend(session, database)
    kill(spec, database, pid)
    for _ in range(3):
        with spec.get_session("primary") as session:
            assert backend(session, database) != pid
    assert spec.get_pool_stats("primary").total == 1


@pytest.mark.fault(5)
def test_a_connection_killed_in_use_is_invalidated_and_the_error_is_sqlalchemys(
    spec: SQLSpec, database: Database
) -> None:
    with pytest.raises(exc.OperationalError) as caught, spec.get_session("primary") as session:
        pid = backend(session, database)
        kill(spec, database, pid)
        session.execute("SELECT 1")
    assert caught.value.connection_invalidated
    with spec.get_session("primary") as session:
        assert backend(session, database) != pid


def test_the_server_has_as_many_connections_as_the_pool_says(database: Database) -> None:
    wait_until(lambda: not database.server.connections())
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=2, max_overflow=3), name="primary")
        held = [spec.create_connection("primary") for _ in range(4)]
        assert len(database.server.connections()) == spec.get_pool_stats("primary").total == 4
        for connection in held:
            connection.close()
        # what is not needed lingers for ten seconds
        wait_until(lambda: len(database.server.connections()) == 2, seconds=30)
        assert spec.get_pool_stats("primary").total == 2
    wait_until(lambda: not database.server.connections())


@pytest.mark.fault(29)
def test_command_timeout_ends_a_statement_and_keeps_the_connection(
    spec: SQLSpec, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a server that is busy ends it late: ours is not to come first
    monkeypatch.setattr("sqlspec.adapters.driver._LATER", 20.0)
    spec.register_config(database.config(command_timeout=0.2, pool_reset_on_return="discard"), name="limited")
    sleep = (
        "SELECT pg_sleep(10)"
        if database.name == "postgresql"
        else "SELECT count(*) FROM seq_1_to_100000 a, seq_1_to_100000 b"
    )
    for _ in range(2):
        with pytest.raises(exc.OperationalError) as caught, spec.get_session("limited") as session:
            session.execute(sleep)
        assert not caught.value.connection_invalidated


def test_discard_clears_the_state_of_a_session(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(pool_reset_on_return="discard", pool_size=1, max_overflow=0), name="clean")
    postgresql = database.name == "postgresql"
    before = "SELECT current_setting('search_path')" if postgresql else "SELECT @@sql_mode, @tenant"
    with spec.get_session("clean") as session:
        wanted = session.execute(before).all()
        session.execute("SET search_path = 'x'" if postgresql else "SET @tenant = 1, sql_mode = ''")
        pid = backend(session, database)
    with spec.get_session("clean") as session:
        assert session.execute(before).all() == wanted
        assert backend(session, database) == pid
    with spec.get_connection("clean") as conn:
        conn.cursor().execute("SELECT 1")


def test_a_wrong_password_is_the_databases_error(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(password="wrong"))
        with pytest.raises(exc.OperationalError, match=r"password|denied"), spec.get_session() as session:
            session.execute("SELECT 1")


def test_a_password_has_any_letters_from_threads_and_from_tasks(any_spec: Any, database: Database) -> None:
    user = "letters@'127.0.0.1'" if database.name == "mariadb" else "letters"
    password = "ünïcödé 密码 🔑"
    with any_spec.get_session("primary", autocommit=True) as session:
        session.execute(f"DROP {'USER' if database.name == 'mariadb' else 'ROLE'} IF EXISTS {user}")
        how = "IDENTIFIED BY" if database.name == "mariadb" else "PASSWORD"
        session.execute(f"CREATE USER {user} {how} '{password}'")
        if database.name == "mariadb":
            session.execute(f"GRANT SELECT ON app.* TO {user}")
    for given in (password, lambda: password):
        any_spec.register_config(database.config(username="letters", password=given), name="letters", replace=True)
        with any_spec.get_session("letters") as session:
            assert session.execute("SELECT 1").scalar_one() == 1


def test_a_password_is_asked_for_at_every_connect(database: Database) -> None:
    asked: list[int] = []

    def password() -> str:
        asked.append(1)
        return PASSWORD

    with SQLSpec() as spec:
        spec.register_config(database.config(password=password))
        with spec.get_connection() as first, spec.get_connection() as second:
            assert first is not second
    assert len(asked) == 2


@pytest.mark.fault(10)
def test_connecting_to_a_frozen_server_ends_in_the_connect_phase(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(), name="late")
    database.server.freeze()
    try:
        with pytest.raises(ConnectionTimeout) as caught:
            spec.get_connection("late", timeout=1.0)
    finally:
        database.server.thaw()
    assert caught.value.phase == "connect"


@pytest.mark.fault(26)
def test_tls_is_never_silently_plain(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(tls="require"), name="secure")
    with pytest.raises(exc.OperationalError, match=r"TLS|SSL"), spec.get_session("secure") as session:
        session.execute("SELECT 1")
    assert spec.get_pool_stats("secure").checked_out == 0


def test_plain_text_to_another_machine_is_warned_of_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    def warnings_of(**options: Any) -> list[str]:
        caplog.clear()
        with SQLSpec() as spec:
            spec.register_config(database.config(**options))
            with spec.get_connection(), spec.get_connection():
                return [message for message in caplog.messages if "plain text" in message]

    # 127.0.0.1, written so that it does not look like this machine
    assert len(warnings_of(host="127.1")) == 1
    assert warnings_of(host="127.1", tls="disable") == []
    assert warnings_of() == []


@pytest.mark.fault(2)
def test_after_a_restart_every_connection_is_replaced(spec: SQLSpec, database: Database) -> None:
    connections = [spec.create_connection("primary") for _ in range(4)]
    for connection in connections:
        connection.close()
    database.server.restart()
    wait_until(database.server.is_ready)
    for _ in range(6):
        with spec.get_session("primary") as session:
            session.execute("SELECT 1")
