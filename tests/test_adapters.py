"""Every option of a config, as the database itself sees it."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ConfigError, ConnectionTimeout, InstrumentationConfig, PoolClosed, PoolStats, SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.adapters.driver import whole_seconds
from sqlspec.config import NoPoolSyncConfig
from tests.conftest import Database
from tests.faults import assert_nothing_is_lost
from tests.servers import PASSWORD

on_postgresql = pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def ask(config: NoPoolSyncConfig, *statements: str) -> list[Any]:
    """Return the first value of each statement, all on one connection."""
    with SQLSpec() as spec:
        spec.register_config(config)
        with spec.get_session(autocommit=True) as session:
            return [session.execute(statement).scalar() for statement in statements]


# -- PostgreSQL


@on_postgresql
def test_postgresqls_options_are_settings_of_the_session(database: Database) -> None:
    config = database.config(
        application_name="shop's \\ best", client_encoding="latin1", jit=False, command_timeout=2.5
    )
    settings = ("application_name", "client_encoding", "jit", "statement_timeout")
    assert ask(config, *(f"SHOW {name}" for name in settings)) == ["shop's \\ best", "LATIN1", "off", "2500ms"]
    assert ask(database.config(jit=True), "SHOW jit", "SHOW client_encoding") == ["on", "UTF8"]


@on_postgresql
def test_postgresqls_options_survive_rollback_and_discard(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(
            database.config(jit=False, command_timeout=2.5, pool_size=1, max_overflow=0, pool_reset_on_return="discard")
        )
        for _ in range(3):
            with pytest.raises(RuntimeError), spec.get_session() as session:
                assert session.execute("SHOW jit").scalar() == "off"
                assert session.execute("SHOW statement_timeout").scalar() == "2500ms"
                session.execute("SET jit = on")
                raise RuntimeError


@on_postgresql
def test_options_in_the_url_are_options(database: Database) -> None:
    scheme = "postgresql+psycopg" if "psycopg" in str(database.config().url) else "postgresql"
    config = database.config(url=f"{scheme}://?application_name=shop&connect_timeout=3&options=-c%20geqo%3Doff")
    assert (config.application_name, config.connect_timeout) == ("shop", 3.0)
    assert ask(config, "SHOW application_name", "SHOW geqo") == ["shop", "off"]


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
@pytest.mark.parametrize(("threshold", "prepared"), [(0, 1), (None, 0)])
def test_psycopg_prepares_after_the_threshold(database: Database, threshold: int | None, prepared: int) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(prepare_threshold=threshold))
        with spec.get_session() as session:
            session.execute("SELECT ? + 1", (1,)).scalar()
            count = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1 + 1'"
            assert session.execute(count).scalar() == prepared


# -- MySQL


@on_mariadb
def test_mysqls_options_are_settings_of_the_session(database: Database) -> None:
    config = database.config(charset="latin1", sql_mode="ANSI_QUOTES,NO_ZERO_DATE", command_timeout=2.5)
    settings = ("@@character_set_client", "@@sql_mode", "@@max_statement_time")
    answers = ask(config, *(f"SELECT {name}" for name in settings))
    assert answers == ["latin1", "ANSI_QUOTES,NO_ZERO_DATE", 2.5]
    assert ask(database.config(), "SELECT @@character_set_client", "SELECT @@sql_mode LIKE '%TRADITIONAL%'") == [
        "utf8mb4",
        1,
    ]
    assert ask(database.config(command_timeout=1e-7), "SELECT @@max_statement_time") == [0.001]


@on_mariadb
def test_mysqls_options_survive_discard(database: Database) -> None:
    url = "mysql://?charset=latin1"
    with SQLSpec() as spec:
        spec.register_config(
            database.config(url=url, pool_size=1, max_overflow=0, pool_reset_on_return="discard", command_timeout=2.5)
        )
        for _ in range(2):
            with spec.get_session() as session:
                assert session.execute("SELECT @@character_set_client").scalar() == "latin1"
                assert session.execute("SELECT @@max_statement_time, @@autocommit").one() == (2.5, 0)
                assert session.execute("SELECT ?", ("é",)).scalar() == "é"


@on_mariadb
def test_one_string_is_one_statement_and_no_file_is_sent(database: Database, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("1\n")
    with SQLSpec() as spec:
        spec.register_config(database.config())
        with spec.get_session() as session:
            with pytest.raises(exc.ProgrammingError, match="syntax"):
                session.execute("SELECT 1; SELECT 2")
            session.execute("CREATE TEMPORARY TABLE files (x INTEGER)")
            with pytest.raises(exc.DBAPIError, match=r"(?i)local"):
                session.execute(f"LOAD DATA LOCAL INFILE '{tmp_path / 'rows'}' INTO TABLE files")


@on_mariadb
def test_a_mode_that_changes_how_text_is_written_is_refused(database: Database) -> None:
    with pytest.raises(ConfigError, match="NO_BACKSLASH_ESCAPES"):
        database.config(sql_mode="NO_BACKSLASH_ESCAPES")
    with SQLSpec() as spec:
        spec.register_config(database.config(sql_mode=""), name="servers own")
        spec.register_config(database.config(autocommit=True), name="admin")
        with spec.get_session("admin") as session:
            before = session.execute("SELECT @@GLOBAL.sql_mode").scalar()
            session.execute("SET GLOBAL sql_mode = 'NO_BACKSLASH_ESCAPES'")
            try:
                with pytest.raises(exc.ProgrammingError, match="with sql_mode="):
                    spec.get_session("servers own").execute("SELECT 1")
            finally:
                session.execute("SET GLOBAL sql_mode = ?", (before,))


@on_mariadb
def test_recycling_above_the_servers_wait_timeout_is_warned_of(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ask(database.config(), "SELECT 1")
    assert "wait_timeout" not in caplog.text
    ask(database.config(pool_recycle=30_000), "SELECT 1")
    ask(database.config(pool_recycle=-1), "SELECT 1")
    assert [record.levelno for record in caplog.records if "wait_timeout" in record.message] == [logging.WARNING] * 2


# -- SQLite


@on_sqlite
def test_sqlites_options_are_pragmas(database: Database) -> None:
    config = database.config(journal_mode="TRUNCATE", synchronous="EXTRA", cache_size=-1234, connect_timeout=1.5)
    pragmas = ("journal_mode", "synchronous", "cache_size", "busy_timeout")
    assert ask(config, *(f"PRAGMA {name}" for name in pragmas)) == ["truncate", 3, -1234, 1500]
    assert ask(database.config(), *(f"PRAGMA {name}" for name in pragmas)) == ["wal", 1, -64000, 10_000]


@on_sqlite
@pytest.mark.parametrize("options", [{}, {"pool_reset_on_return": "discard"}])
@pytest.mark.parametrize("name", [":memory:", "", "file::memory:"])
def test_a_database_in_memory_is_one_connection(database: Database, name: str, options: Any) -> None:
    url = "sqlite:///file::memory:?uri=true" if name.startswith("file") else None
    config = SQLiteConfig(url=url, **options) if url else SQLiteConfig(database=name, pool_size=5, **options)
    with SQLSpec() as spec:
        spec.register_config(config)
        with spec.get_session() as session:
            session.execute("CREATE TABLE t (x)")
            session.execute("CREATE TEMPORARY TABLE own (x)")
            with pytest.raises(ConnectionTimeout):
                spec.get_connection(timeout=0.01)
        with spec.get_session() as session:
            assert session.execute("SELECT count(*) FROM t").scalar() == 0
            temporary = session.execute("SELECT count(*) FROM sqlite_temp_master").scalar()
            assert temporary == (0 if options else 1)
    with pytest.raises(ConfigError, match="use SQLiteConfig"), SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(url=url) if url else SQLiteConnectionConfig(database=name))


@on_sqlite
def test_a_discarded_connection_to_a_file_leaves_nothing(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=1, max_overflow=0, pool_reset_on_return="discard"))
        for _ in range(2):
            with spec.get_session() as session:
                assert session.execute("PRAGMA foreign_keys").scalar() == 0
                assert session.execute("SELECT count(*) FROM sqlite_temp_master").scalar() == 0
            with spec.get_session(autocommit=True) as session:
                session.execute("PRAGMA foreign_keys = ON")
                session.execute("CREATE TEMPORARY VIEW v AS SELECT 1")
        assert spec.get_pool_stats().checked_out == 0


@on_sqlite
def test_a_statement_that_computes_too_long_is_stopped(database: Database) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with SQLSpec() as spec:
        spec.register_config(database.config(command_timeout=0.05))
        with pytest.raises(exc.OperationalError, match="interrupted"), spec.get_session() as session:
            session.execute(endless).all()
        with spec.get_session() as session:
            assert session.execute("SELECT 1").scalar() == 1


@pytest.mark.fault(57)
@on_sqlite
def test_the_deadline_of_a_checkout_bounds_the_wait_for_a_lock(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(), name="holder")
        spec.register_config(database.config(connect_timeout=30.0, journal_mode="DELETE"), name="waiter")
        with spec.get_session("holder", isolation_level="EXCLUSIVE") as session:
            session.execute("CREATE TABLE t (x)")
            begin = time.monotonic()
            with (
                pytest.raises((ConnectionTimeout, exc.OperationalError)),
                spec.get_session("waiter", timeout=0.2) as other,
            ):
                other.execute("SELECT 1")
            assert time.monotonic() - begin < 15.0
        assert_nothing_is_lost(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "sqlite://app.db"}, "three slashes"),
        ({"url": "sqlite:///file:app.db?mode=ro"}, "uri=true"),
        ({"url": "sqlite:///app.db?timeout=3"}, "connect_timeout"),
        ({"database": "app.db", "password": ""}, "SQLite is a file"),
    ],
)
def test_a_sqlite_url_that_means_something_else_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SQLiteConfig(**options)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_that_cannot_be_opened_is_told_with_its_folder(
    any_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, told in (
        ("nowhere/app.db", f"there is no folder {tmp_path / 'nowhere'}"),
        (str(tmp_path), str(tmp_path)),
    ):
        any_spec.register_config(SQLiteConfig(database=file), "other", replace=True)
        for what in (any_spec.get_session, any_spec.get_connection):
            with pytest.raises(Exception, match="unable to open") as caught, what("other") as opened:
                opened.execute("SELECT 1")
            assert str(caught.value).splitlines()[0].endswith(f"unable to open database file: {told}")


# -- TLS and passwords


@pytest.mark.parametrize("kind", [PostgreSQLConfig, MySQLConfig])
@pytest.mark.parametrize("tls", [None, "disable", "require"])
def test_trusted_certificates_that_nobody_would_look_at_are_refused(kind: Any, tls: str | None) -> None:
    with pytest.raises(ConfigError, match="tls_ca is used by"):
        kind(host="h", tls=tls, tls_ca="/ca.pem")


def test_tls_on_a_unix_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="Unix socket"):
        PostgreSQLConfig(host="/var/run/postgresql", tls="require")


@pytest.mark.parametrize("returned", [None, 5, b"secret", ["secret"]])
def test_a_password_function_must_return_a_string(returned: Any) -> None:
    config = PostgreSQLConfig(host="h", password=lambda: returned)
    with pytest.raises(ConfigError, match=f"returned {type(returned).__name__}"):
        config.reveal_password()


@pytest.mark.parametrize("password", ["a\0b", "\ud800"])
def test_a_password_that_cannot_be_sent_is_refused_without_showing_it(password: str) -> None:
    for make in (
        lambda: PostgreSQLConfig(password=password),
        PostgreSQLConfig(password=lambda: password).reveal_password,
    ):
        with pytest.raises(ConfigError, match="password") as caught:
            make()
        assert password not in str(caught.value)


def test_a_listener_may_give_the_password(database: Database) -> None:
    if database.server is None:
        pytest.skip("SQLite has no passwords")
    with SQLSpec() as spec:
        spec.register_config(database.config(password="wrong"))

        def connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["passwd" if database.name == "mariadb" else "password"] = PASSWORD

        sa.event.listen(spec.get_engine(), "do_connect", connect)
        with spec.get_session() as session:
            assert session.execute("SELECT 1").scalar() == 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_an_option_of_the_url_that_the_driver_does_not_take_is_told(database: Database) -> None:
    scheme = "mysql" if database.name == "mariadb" else "postgresql"
    with SQLSpec() as spec:
        spec.register_config(database.config(url=f"{scheme}://?nonsense=1"))
        with pytest.raises((ConfigError, exc.DBAPIError), match="nonsense"), spec.get_session() as session:
            session.execute("SELECT 1")


@pytest.mark.fault(10)
@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_connect_timeout_ends_the_wait_for_a_silent_server(database: Database) -> None:
    with socket.socket() as silent, SQLSpec() as spec:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        spec.register_config(database.config(port=silent.getsockname()[1], connect_timeout=0.5))
        begin = time.monotonic()
        with pytest.raises(exc.OperationalError), spec.get_session() as session:
            session.execute("SELECT 1")
        # the default would be ten seconds
        assert time.monotonic() - begin < 8.0


# -- instrumentation


def test_instrumentation_decides_what_is_logged(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="sqlalchemy.pool")
    instrumentation = InstrumentationConfig(pool_name="shop-pool", log_statements=True, log_parameters=True)
    for name, options in {"loud": {"instrumentation": instrumentation}, "quiet": {}}.items():
        caplog.clear()
        with SQLSpec() as spec:
            spec.register_config(database.config(**options), name=name)
            with spec.get_session(name) as session:
                session.execute("SELECT ? AS x", ("a visible value",)).all()
                with pytest.raises(exc.DBAPIError) as caught:
                    session.execute("SELECT nowhere + ?", ("a visible value",))
                session.rollback()
        assert ("a visible value" in caplog.text) == (name == "loud")
        assert ("[parameters: " in str(caught.value)) == (name == "loud")
        assert any(record.name.endswith("shop-pool" if name == "loud" else name) for record in caplog.records)


# -- the pool


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
@pytest.mark.parametrize("switch", ["pool_pre_ping", "ping_on_checkout"])
def test_without_a_ping_a_dead_connection_is_handed_out(database: Database, switch: str) -> None:
    if switch == "ping_on_checkout" and database.name != "mariadb":
        pytest.skip("it is an option of MySQL")
    with SQLSpec() as spec:
        spec.register_config(database.config(**{switch: False}))
        spec.create_connection().close()
        database.server.end_connections()
        with pytest.raises(exc.OperationalError), spec.get_session() as session:
            session.execute("SELECT 1")


def test_pool_timeout_bounds_the_wait_for_a_connection(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=1, max_overflow=0, pool_timeout=0.05))
        with spec.get_connection(), pytest.raises(ConnectionTimeout, match=r"timeout 0\.05"):
            spec.get_connection()


@on_mariadb
def test_autocommit_needs_no_rollback_at_checkin(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(autocommit=True, pool_size=1, max_overflow=0))
        count = "SHOW SESSION STATUS LIKE 'Com_rollback'"
        for _ in range(3):
            with spec.get_engine().connect() as connection:
                assert connection.exec_driver_sql(count).one()[1] == "0"


def test_what_is_still_out_when_a_registry_closes_is_warned_of(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    spec = SQLSpec()
    spec.register_config(database.config(), name="shop")
    held = spec.create_connection("shop")
    spec.close()
    assert "shop: 1 connections are still checked out" in caplog.text
    held.close()
    with pytest.raises(PoolClosed), spec:
        pytest.fail("a closed registry was entered")


def test_a_config_without_a_pool_has_empty_statistics(tmp_path: Path) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "a.db")))
        assert spec.get_pool_stats() == PoolStats(0, 0, 0, 0, 0)
        assert spec.get_pool_stats().usage == 0.0


def test_old_connections_are_replaced_and_the_last_used_comes_first(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_recycle=0), name="recycling")
        spec.register_config(database.config(pool_use_lifo=True), name="lifo")
        spec.register_config(database.config(), name="fifo")
        live = []
        for _ in range(2):
            with spec.get_connection("recycling") as connection:
                live.append(connection.driver_connection)
            time.sleep(0.002)  # its age is measured by a clock
        assert live[0] is not live[1]
        for name, position in {"lifo": 1, "fifo": 0}.items():
            held = [spec.create_connection(name) for _ in range(2)]
            drivers = [connection.driver_connection for connection in held]
            for connection in held:
                connection.close()
            with spec.get_connection(name) as connection:
                assert connection.driver_connection is drivers[position]


@pytest.mark.parametrize(("seconds", "whole"), [(0.001, 1), (1.0, 1), (1.001, 2), (9.5, 10)])
def test_timeouts_of_drivers_are_rounded_up(seconds: float, whole: int) -> None:
    assert whole_seconds(seconds) == whole


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
@pytest.mark.parametrize(("ping_after", "pings"), [(60.0, 0), (0.0, 1)])
def test_a_quiet_connection_is_asked_only_after_it_was_idle(database: Database, ping_after: float, pings: int) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config())
        pool: Any = spec.get_engine().pool
        dialect = spec.get_engine().dialect
        asked: list[Any] = []
        original = dialect.do_ping
        dialect.do_ping = lambda connection: asked.append(connection) or original(connection)  # type: ignore[method-assign]  # counts
        spec.create_connection().close()
        pool._ping_after = ping_after
        spec.create_connection().close()
        assert len(asked) == pings


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_a_closed_connection_is_replaced_though_its_socket_number_is_anothers(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=1, max_overflow=0))
        pool = spec.get_engine().pool
        for _ in range(2):
            pool.connect().close()
        proxy: Any = pool.connect()
        number = proxy.dbapi_connection.fileno()
        proxy.dbapi_connection.close()
        # not rolled back, which would find out
        proxy._close_special(transaction_reset=True)
        left, right = socket.socketpair()
        with left, right:
            assert number in (left.fileno(), right.fileno())
            with spec.get_session() as session:
                assert session.execute("SELECT 1").scalar() == 1


def test_registries_close_what_was_registered_last_first(tmp_path: Path) -> None:
    closed: list[str] = []
    spec = SQLSpec()
    for name in ("first", "second"):
        spec.register_config(SQLiteConfig(database=str(tmp_path / name)), name=name)
        spec.get_session(name).execute("SELECT 1").all()
        manager = spec._manager(name)
        original = manager.close
        manager.close = lambda timeout=None, name=name, original=original: closed.append(name) or original(timeout)  # type: ignore[method-assign]  # records
    spec.close()
    assert closed == ["second", "first"]
