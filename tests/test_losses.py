"""Whatever happens to a session or a connection, nothing of it reaches the next borrower, and nothing is lost."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ConfigError, ConnectionTimeout, PoolClosed, SQLSpec, SQLSpecWarning
from sqlspec.adapters import SQLiteConfig
from tests.conftest import Database
from tests.servers import PASSWORD, wait_until

USERS = sa.table("users", sa.column("id"), sa.column("name"))
INSERT = "INSERT INTO users (name) VALUES (?)"

on_servers = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(params=["unwatched", "watched"])
def watched(request: pytest.FixtureRequest, spec: SQLSpec) -> bool:
    """Run with and without somebody who listens to statements: it must make no difference."""
    if request.param == "watched":
        sa.event.listen(spec.get_engine("primary"), "before_cursor_execute", lambda *_: None)
    return bool(request.param == "watched")


def names(spec: SQLSpec, name: str = "primary") -> list[str]:
    with spec.get_session(name) as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


def one_connection(spec: SQLSpec, database: Database, **options: Any) -> None:
    """Register "single": who comes after gets the same connection."""
    spec.register_config(database.config(pool_size=1, max_overflow=0, pool_timeout=5.0, **options), name="single")


def lose(session: Any, database: Database) -> None:
    """End the connection of a session on the server, and wait until it is gone."""
    query = "SELECT pg_backend_pid()" if database.name == "postgresql" else "SELECT CONNECTION_ID()"
    pid = session.execute(query).scalar()
    database.server.end_connections()
    wait_until(lambda: pid not in database.server.connections())


# -- a lost connection


@pytest.mark.fault(5)
@on_servers
def test_after_a_loss_the_session_goes_on_with_another_connection(
    spec: SQLSpec, database: Database, watched: bool
) -> None:
    with spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        lose(session, database)
        with pytest.raises(exc.OperationalError) as caught:
            session.execute("SELECT 1")
        assert caught.value.connection_invalidated
        with pytest.raises(exc.PendingRollbackError):
            session.execute("SELECT 2")
        session.rollback()
        for name in ("kept", "kept as well"):
            session.execute(INSERT, (name,))
    assert names(spec) == ["kept", "kept as well"]


@on_servers
def test_after_a_loss_the_options_of_the_session_still_hold(spec: SQLSpec, database: Database, watched: bool) -> None:
    with pytest.raises(RuntimeError), spec.get_session("primary", autocommit=True) as session:
        lose(session, database)
        with pytest.raises(exc.OperationalError):
            session.execute("SELECT 1")
        session.execute(INSERT, ("kept",))
        raise RuntimeError
    assert names(spec) == ["kept"]
    with spec.get_session("primary", read_only=True) as session:
        lose(session, database)
        with pytest.raises(exc.OperationalError):
            session.execute("SELECT 1")
        session.rollback()
        with pytest.raises(exc.DBAPIError):
            session.execute(INSERT, ("forbidden",))
        session.rollback()
    assert names(spec) == ["kept"]


@on_servers
def test_a_loss_that_was_swallowed_comes_out_at_the_end(spec: SQLSpec, database: Database) -> None:
    with pytest.raises(exc.PendingRollbackError), spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        lose(session, database)
        with pytest.raises(exc.OperationalError):
            session.execute("SELECT 1")
    assert names(spec) == []


@on_servers
def test_who_is_asked_for_a_password_meanwhile_gets_its_own_autocommit(spec: SQLSpec, database: Database) -> None:
    def password() -> str:
        with spec.get_connection("primary") as connection:
            connection.cursor().execute("INSERT INTO users (name) VALUES ('x')")
            connection.rollback()
        return PASSWORD

    spec.register_config(database.config(password=password), name="asking")
    with spec.get_session("asking", autocommit=True) as session:
        session.execute("SELECT 1")
    assert names(spec) == []


@on_servers
@pytest.mark.parametrize("autocommit", [False, True])
def test_closing_after_a_loss_gives_the_place_back(spec: SQLSpec, database: Database, autocommit: bool) -> None:
    session = spec.get_session("primary", autocommit=autocommit)
    result = session.execute("SELECT 1")
    lose(session, database)
    try:
        session.close()
    except exc.OperationalError:
        assert not autocommit
    assert result.closed
    assert spec.get_pool_stats("primary").checked_out == 0
    connection = spec.create_connection("primary")
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    cursor.fetchall()
    database.server.end_connections()
    for _ in range(2):
        with pytest.raises(Exception, match=r"(?i)terminat|closed|lost|gone"):
            cursor.execute("SELECT 1")
    connection.close()
    assert spec.get_pool_stats("primary").checked_out == 0


@on_servers
# psycopg warns of a cursor that could not be closed
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cursor_that_cannot_be_closed_does_not_keep_the_connection(spec: SQLSpec, database: Database) -> None:
    connection = spec.create_connection("primary")
    if database.name == "postgresql":
        cursor = connection.cursor("named")
    else:
        from MySQLdb.cursors import SSCursor

        cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT * FROM information_schema.columns")
    cursor.fetchone()
    database.server.end_connections()
    with contextlib.suppress(Exception):
        connection.close()
    assert spec.get_pool_stats("primary").checked_out == 0


def test_a_refused_connection_reaches_handle_error(database: Database, tmp_path: Any) -> None:
    wrong = {"database": str(tmp_path / "no" / "folder")} if database.name == "sqlite" else {"port": 9}
    with SQLSpec() as spec:
        spec.register_config(database.config(**wrong))
        seen: list[Any] = []
        sa.event.listen(spec.get_engine(), "handle_error", lambda context: seen.append(context.original_exception))
        with pytest.raises(exc.OperationalError), spec.get_session() as session:
            session.execute("SELECT 1")
        assert len(seen) == 1


# -- transactions


@pytest.mark.fault(57)
@on_sqlite
def test_a_begin_that_fails_is_one_error(spec: SQLSpec, database: Database, watched: bool) -> None:
    spec.register_config(database.config(connect_timeout=0.1), name="hasty")
    if watched:
        sa.event.listen(spec.get_engine("hasty"), "before_cursor_execute", lambda *_: None)
    with spec.get_session("primary", isolation_level="IMMEDIATE") as holder:
        holder.execute(INSERT, ("held",))
        with spec.get_session("hasty", isolation_level="IMMEDIATE") as session:
            with pytest.raises(exc.OperationalError, match="locked"):
                session.execute("SELECT 1")
            holder.commit()
            session.execute(INSERT, ("late",))
    assert names(spec) == ["held", "late"]


def test_read_only_holds_for_every_transaction_of_the_session(spec: SQLSpec, watched: bool) -> None:
    for statement in (INSERT, sa.insert(USERS)):
        with spec.get_session("primary", read_only=True) as session:
            session.execute(sa.select(USERS.c.name)).all()
            session.commit()
            with pytest.raises(exc.DBAPIError):
                session.execute(statement, ("x",) if isinstance(statement, str) else {"name": "x"})
            session.rollback()
            connection = session.connection()
            connection.execute(sa.select(USERS.c.name)).all()
            connection.commit()
            with pytest.raises(exc.DBAPIError):
                session.execute(INSERT, ("x",))
            session.rollback()
    assert names(spec) == []


def test_read_only_refuses_tables_as_well(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary", read_only=True) as session:
        for _ in range(2):
            with pytest.raises(exc.DBAPIError):
                session.execute("CREATE TABLE forbidden (x INTEGER)")
            session.rollback()
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS allowed")
        session.execute("CREATE TABLE allowed (x INTEGER)")
        session.execute("DROP TABLE allowed")


@pytest.mark.parametrize("options", [{"read_only": True}, {"isolation_level": "SERIALIZABLE"}])
def test_options_of_transactions_do_not_go_with_autocommit(spec: SQLSpec, options: Any) -> None:
    with pytest.raises(ConfigError, match="autocommit=True has none"):
        spec.get_session("primary", autocommit=True, **options)


def test_a_commit_of_the_sqlalchemy_connection_is_known_to_the_session(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary") as session:
        session.execute(INSERT, ("kept",))
        session.connection().commit()
        assert not session.in_transaction
        session.execute(INSERT, ("undone",))
        assert session.in_transaction
        session.rollback()
    assert names(spec) == ["kept"]


def test_a_session_whose_sqlalchemy_connection_was_closed_refuses_to_go_on(spec: SQLSpec, watched: bool) -> None:
    with pytest.raises(exc.ResourceClosedError), spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        with session.connection() as connection:
            connection.execute(sa.select(USERS.c.name)).all()
        with spec.get_session("primary") as other:
            other.execute("SELECT 1")
            session.execute(INSERT, ("nowhere",))
    assert names(spec) == []


def test_a_transaction_that_a_string_begins_or_ends_is_known(spec: SQLSpec, database: Database, watched: bool) -> None:
    one_connection(spec, database)
    with pytest.raises(RuntimeError), spec.get_session("single", autocommit=True) as session:
        session.execute("BEGIN")
        session.execute(INSERT, ("undone",))
        raise RuntimeError
    assert names(spec, "single") == []
    one = database.config(pool_size=1, max_overflow=0, autocommit=True)
    spec.register_config(one, name="autocommit")
    if watched:
        sa.event.listen(spec.get_engine("autocommit"), "before_cursor_execute", lambda *_: None)
    with pytest.raises(RuntimeError), spec.get_session("autocommit") as session:
        session.execute("BEGIN")
        session.execute(INSERT, ("undone",))
        raise RuntimeError
    assert names(spec, "autocommit") == []
    with pytest.raises(RuntimeError), spec.get_session("single") as session:
        session.execute(INSERT, ("kept",))
        session.execute("COMMIT")
        session.execute(INSERT, ("undone",))
        raise RuntimeError
    assert names(spec, "single") == ["kept"]


def test_a_savepoint_whose_transaction_has_ended_says_so(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary") as session:
        with pytest.raises(exc.InvalidRequestError, match="has ended"), session.begin_nested():
            session.commit()
        savepoint = session.begin_nested()
        savepoint.rollback()
        savepoint.rollback()
        with pytest.raises(exc.InvalidRequestError, match="already"):
            savepoint.commit()


@on_sqlite
def test_what_runs_outside_transactions_does_so_with_and_without_listeners(
    spec: SQLSpec, database: Database, watched: bool
) -> None:
    with spec.get_session("primary") as session:
        assert session.execute("PRAGMA user_version").scalar() == 0
        with pytest.raises(exc.DBAPIError):
            session.execute("PRAGMA nowhere(")
        session.execute("VACUUM")
        session.execute("CREATE TABLE other (x)")
        session.rollback()
        assert session.execute("SELECT count(*) FROM sqlite_master WHERE name = 'other'").scalar() == 0


@pytest.mark.fault(36)
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "psycopg"], indirect=True)
def test_a_commit_that_fails_comes_out(spec: SQLSpec, database: Database, watched: bool) -> None:
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS children")
        session.execute("CREATE TABLE children (parent INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)")
    session = spec.get_session("primary")
    if database.name == "sqlite":
        session.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(exc.IntegrityError) as caught, session:
        session.execute("INSERT INTO children VALUES (99)")
    assert not hasattr(caught.value, "__notes__")
    assert spec.get_pool_stats("primary").checked_out == 0
    with spec.get_session("primary") as session:
        assert session.execute("SELECT count(*) FROM children").scalar() == 0
        if database.name == "sqlite":
            session.rollback()
            session.execute("PRAGMA foreign_keys = ON")
        session.execute("INSERT INTO children VALUES (99)")
        with pytest.raises(exc.IntegrityError):
            session.commit()
        for use in (lambda: session.execute("SELECT 1"), session.commit):
            with pytest.raises((exc.PendingRollbackError, exc.InvalidRequestError)):
                use()
        session.rollback()
        assert session.execute("SELECT count(*) FROM children").scalar() == 0
        session.execute("DROP TABLE children")


@on_servers
def test_a_commit_on_a_lost_connection_comes_out(spec: SQLSpec, database: Database, watched: bool) -> None:
    with pytest.raises(exc.OperationalError) as caught, spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        database.server.end_connections()
    assert caught.value.connection_invalidated
    assert names(spec) == []


@pytest.mark.fault(35)
@on_servers
def test_a_rollback_that_fails_is_a_note_on_the_error_that_caused_it(spec: SQLSpec, database: Database) -> None:
    with pytest.raises(RuntimeError, match="the first error") as caught, spec.get_session("primary") as session:
        session.execute(INSERT, ("lost",))
        database.server.end_connections()
        raise RuntimeError("the first error")
    assert "the rollback failed as well" in caught.value.__notes__[0]
    assert names(spec) == []


def test_what_a_signal_raises_in_a_statement_comes_as_it_is(spec: SQLSpec, database: Database, watched: bool) -> None:
    class TimeIsUp(Exception):
        pass

    def end(*_: object) -> None:
        raise TimeIsUp

    long = {
        "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3e6) SELECT max(x) FROM n",
        "postgresql": "SELECT 1 FROM pg_sleep(0.5)",
        "mariadb": "SELECT SLEEP(0.5)",
    }
    before = signal.signal(signal.SIGALRM, end)
    try:
        with pytest.raises(TimeIsUp), spec.get_session("primary") as session:
            session.execute("INSERT INTO users (name) VALUES ('Alice')")
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            session.execute(long[database.name])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with spec.get_session("primary") as session:
        assert session.execute("SELECT count(*) FROM users").scalar() == 0


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_the_last_generated_key_is_known(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        assert [session.execute(INSERT, (name,)).lastrowid for name in "ab"] == [1, 2]


def test_begin_nested_under_autocommit_is_refused(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary", autocommit=True) as session:
        session.execute("SELECT 1")
        with pytest.raises(exc.InvalidRequestError, match="autocommits"):
            session.begin_nested()


def test_a_long_session_does_not_keep_the_results_it_has_read(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary") as session:
        kept = [session.execute("SELECT 1") for _ in range(50)]
        for _ in range(3000):
            session.execute("SELECT 1").all()
        session.execute(sa.select(sa.literal(1))).all()
        assert len(session._results) <= 1050
    assert all(result.closed for result in kept)


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN"])
def test_the_driver_knows_of_a_transaction_that_a_string_ended(
    spec: SQLSpec, database: Database, watched: bool, word: str
) -> None:
    if "CHAIN" in word and database.name == "sqlite":
        pytest.skip("SQLite has no chained transactions")
    one_connection(spec, database)
    if database.name != "sqlite":
        with pytest.raises(RuntimeError), spec.get_session("single") as session:
            session.execute(word)
            session.execute(INSERT, ("undone",))
            raise RuntimeError
    with spec.get_connection("single") as connection:
        cursor = connection.cursor()
        cursor.execute("DELETE FROM users")
        cursor.execute(word)
        cursor.execute(INSERT, ("undone",))
        connection.rollback()
        cursor.execute("DELETE FROM users")
        cursor.execute(word)
    with pytest.raises(RuntimeError), spec.get_session("single") as session:
        session.execute(INSERT, ("undone",))
        raise RuntimeError
    assert names(spec, "single") == []


def test_a_rollback_to_a_savepoint_in_a_string_ends_no_transaction(
    spec: SQLSpec, database: Database, watched: bool
) -> None:
    word = "WORK" if database.name == "mariadb" else "TRANSACTION"
    with pytest.raises(RuntimeError), spec.get_session("primary") as session:
        session.execute(INSERT, ("undone",))
        session.execute("SAVEPOINT a")
        session.execute(f"ROLLBACK {word} TO SAVEPOINT a")
        raise RuntimeError
    assert names(spec) == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_temporary_table_of_mysql_ends_no_transaction(spec: SQLSpec, database: Database, watched: bool) -> None:
    one_connection(spec, database)
    connection = spec.create_connection("single")
    connection.cursor().execute(INSERT, ("undone",))
    connection.cursor().execute("CREATE OR REPLACE TEMPORARY TABLE t (x INTEGER)")
    connection.close()
    with pytest.raises(RuntimeError), spec.get_session("single") as session:
        session.execute(INSERT, ("undone",))
        session.execute("CREATE OR REPLACE TEMPORARY TABLE t (x INTEGER)")
        raise RuntimeError
    assert names(spec, "single") == []


def test_options_end_with_a_connection_that_is_lost(spec: SQLSpec, database: Database, watched: bool) -> None:
    one_connection(spec, database)
    session = spec.get_session("single", read_only=True)
    session.execute("SELECT 1").all()
    session.connection().invalidate()
    session.close()
    with spec.get_engine("single").begin() as connection:
        connection.execute(sa.insert(USERS), {"name": "kept"})
    assert names(spec, "single") == ["kept"]


def test_a_string_cannot_begin_what_the_options_would_not_hold_for(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary", read_only=True) as session:
        with pytest.raises(exc.InvalidRequestError, match="leave it out"):
            session.execute("BEGIN")
        session.rollback()


def test_a_listener_on_the_connection_of_a_session_sees_its_strings(spec: SQLSpec) -> None:
    seen: list[str] = []
    with spec.get_session("primary") as session:
        sa.event.listen(session.connection(), "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
        session.execute("SELECT 1")
    assert seen == ["SELECT 1"]
    with pytest.raises(exc.ResourceClosedError, match="session is closed"):
        session.execute("SELECT 1")


@on_servers
def test_a_lost_connection_says_so(spec: SQLSpec, database: Database) -> None:
    connection = spec.create_connection("primary")
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    cursor.fetchall()
    database.server.end_connections()
    with contextlib.suppress(Exception):
        cursor.execute("SELECT 1")
    for use in (lambda: connection.driver_connection, lambda: connection.fileno()):
        with pytest.raises(connection._dialect.loaded_dbapi.InterfaceError, match="is lost"):
            use()
    connection.close()


# -- parameters


ARGUMENTS: list[tuple[str, Callable[[Any], Any]]] = [
    ("rows as lists", lambda s: s.execute_many(INSERT, [["a"], ["b"]]) and names_in(s)),
    ("a row as parameters", lambda s: s.execute("SELECT ?", s.execute("SELECT 'a'").one()).one()),
    ("a range", lambda s: s.execute("SELECT ?", range(1)).one()),
    ("a mapping that is no dict", lambda s: s.execute("SELECT :name", MappingProxyType({"name": "c"})).one()),
    ("mappings that are no dicts", lambda s: s.execute_many(
        INSERT.replace("?", ":name"), [MappingProxyType({"name": n}) for n in "de"]) and names_in(s)),
]  # fmt: skip


def names_in(session: Any) -> list[str]:
    return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


@pytest.mark.parametrize(("what", "use"), ARGUMENTS)
def test_parameters_mean_the_same_to_every_driver(
    spec: SQLSpec, watched: bool, what: str, use: Callable[[Any], Any]
) -> None:
    wanted = {
        "rows as lists": ["a", "b"],
        "a row as parameters": ("a",),
        "a range": (0,),
        "a mapping that is no dict": ("c",),
        "mappings that are no dicts": ["d", "e"],
    }
    with spec.get_session("primary") as session:
        assert use(session) == wanted[what]


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_a_list_can_be_one_value(spec: SQLSpec, database: Database, watched: bool) -> None:
    with spec.get_session("primary") as session:
        assert session.execute("SELECT ?", ([1, 2],)).scalar() == [1, 2]
        assert session.execute("SELECT ?", [[1, 2]]).scalar() == [1, 2]


def test_no_rows_run_nothing(spec: SQLSpec, watched: bool) -> None:
    with spec.get_session("primary") as session:
        assert session.execute_many(INSERT, []).rowcount == 0
        assert session.execute_many(sa.insert(USERS), []).rowcount == 0
        session.execute_many(sa.insert(USERS), [{"name": "a"}, {"name": "b"}])
        assert spec.get_pool_stats("primary").checked_out == 1
        with pytest.raises(exc.ProgrammingError, match="takes rows"):
            session.execute_many(INSERT, {"name": "a"})
        with pytest.raises(exc.ResourceClosedError):
            session.execute_many(INSERT, []).all()
    with spec.get_connection("primary") as connection:
        cursor = connection.cursor()
        cursor.executemany(INSERT, [])
        with pytest.raises(connection._dialect.loaded_dbapi.ProgrammingError, match="takes rows"):
            cursor.executemany(INSERT, "ab")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("fetch", ["all", "first", "fetchmany", "scalar"])
def test_an_error_while_fetching_is_sqlalchemys(spec: SQLSpec, database: Database, fetch: str) -> None:
    class Broken:
        """A cursor whose rows cannot be had; a client-side cursor of a driver has them all, and never fails."""

        description = (("id", None),)
        rowcount = -1

        def fetchone(self, *_: Any) -> Any:
            raise psycopg2.OperationalError("no more")

        fetchall = fetchmany = fetchone

        def close(self) -> None:
            raise psycopg2.InterfaceError("closed already")

    import psycopg2

    with spec.get_session("primary") as session:
        result = session.execute("SELECT id FROM users")
        result._cursor = Broken()
        with pytest.raises(exc.OperationalError, match="no more"):
            getattr(result, fetch)()


def test_reprs_say_what_and_in_which_state(spec: SQLSpec) -> None:
    with spec.get_session("primary") as session:
        result = session.execute("SELECT 1 AS one")
        assert repr(result) == "<DriverResult: one>"
        assert repr(session).endswith("in transaction>")
        assert "active" in repr(session.begin_nested())
    assert repr(session).endswith("closed>")
    with spec.get_connection("primary") as connection:
        cursor = connection.cursor()
        assert repr(cursor).startswith("<Cursor of <Connection on ")
        assert {"description", "rowcount", "fetchall"} <= set(dir(cursor))
        assert {"cursor", "age", "commit"} <= set(dir(connection))
        for object_ in (session, connection, cursor):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                copy.copy(object_)
    assert "0 checked out, 1 checked in" in repr(spec._get_pool("primary"))
    assert "1 checked in" in repr(spec._manager("primary"))
    assert repr(spec) == "<SQLSpec primary>"


# -- what the next borrower gets


def test_a_dropped_session_leaves_nothing_behind(spec: SQLSpec, database: Database, watched: bool) -> None:
    one_connection(spec, database)
    for options in ({"autocommit": True}, {"read_only": True}):
        session = spec.get_session("single", **options)
        session.execute("SELECT 1").all()
        del session
        gc.collect()
        with pytest.raises(RuntimeError), spec.get_session("single") as session:
            session.execute(INSERT, ("undone",))
            raise RuntimeError
        assert names(spec, "single") == []


def test_a_dropped_connection_leaves_nothing_behind(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database, autocommit=True)
    connection = spec.create_connection("single")
    connection.begin()
    connection.cursor().execute(INSERT, ("undone",))
    del connection
    gc.collect()
    with pytest.raises(RuntimeError), spec.get_session("single") as session:
        session.execute(INSERT, ("kept",))
        raise RuntimeError
    assert names(spec) == ["kept"]


def test_a_begin_by_hand_under_autocommit_is_rolled_back(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database, autocommit=True)
    with spec.get_connection("single") as connection:
        connection.cursor().execute("BEGIN")
        connection.cursor().execute(INSERT, ("undone",))
    with spec.get_connection("single") as connection:
        connection.begin()
        connection.cursor().execute(INSERT, ("kept",))
        connection.commit()
    assert names(spec) == ["kept"]


def test_work_done_by_the_drivers_own_methods_is_rolled_back_with_a_warning(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database)
    connection = spec.create_connection("single")
    cursor = connection.cursor()
    if database.key == "SERIAL PRIMARY KEY":
        if hasattr(cursor, "copy_expert"):
            cursor.copy_expert("COPY users (name) FROM STDIN", io.StringIO("undone\n"))
        else:
            with cursor.copy("COPY users (name) FROM STDIN") as copying:
                copying.write("undone\n")
    elif database.name == "sqlite":
        cursor.executescript("BEGIN; INSERT INTO users (name) VALUES ('undone')")
    else:
        with contextlib.suppress(Exception):
            cursor.execute("CREATE PROCEDURE fill() INSERT INTO users (name) VALUES ('undone')")
        cursor.callproc("fill")
    with pytest.warns(SQLSpecWarning, match="rolled back"):
        connection.__exit__(None, None, None)
    assert names(spec, "single") == []


@pytest.mark.parametrize("reset", ["rollback", "discard", "commit", "none"])
def test_a_block_without_commit_is_rolled_back_with_a_warning(spec: SQLSpec, database: Database, reset: str) -> None:
    one_connection(spec, database, pool_reset_on_return=reset)
    with pytest.warns(SQLSpecWarning, match="was rolled back"), spec.get_connection("single") as connection:
        connection.cursor().execute(INSERT, ("undone",))
    assert names(spec, "single") == []
    with spec.get_connection("single") as connection:
        connection.cursor().execute(INSERT, ("kept",))
        connection.cursor().execute("COMMIT")
    assert names(spec, "single") == ["kept"]


@pytest.mark.parametrize(("reset", "left"), [("rollback", []), ("discard", []), ("commit", ["x"])])
def test_at_checkin_the_config_decides_what_becomes_of_a_transaction(
    spec: SQLSpec, database: Database, reset: str, left: list[str]
) -> None:
    one_connection(spec, database, pool_reset_on_return=reset)
    connection = spec.create_connection("single")
    connection.cursor().execute(INSERT, ("x",))
    connection.close()
    assert names(spec, "single") == left


def test_what_is_set_on_a_connection_reaches_the_drivers(spec: SQLSpec, database: Database) -> None:
    with spec.get_connection("primary") as connection:
        if database.name == "sqlite":
            connection.row_factory = lambda cursor, row: list(row)
            assert connection.cursor().execute("SELECT 1").fetchone() == [1]
            connection.row_factory = None
        with pytest.raises(Exception, match="autocommit belongs to the config"):
            connection.autocommit = True


def test_begin_is_refused_inside_a_transaction_and_not_after_a_harmless_call(spec: SQLSpec, database: Database) -> None:
    with spec.get_connection("primary") as connection:
        harmless = {"sqlite": "interrupt", "postgresql": "fileno", "mariadb": "get_server_info"}[database.name]
        getattr(connection, harmless)()
        connection.begin()
        with pytest.raises(Exception, match="inside an open transaction"):
            connection.begin()
        connection.rollback()


@on_sqlite
def test_sqlalchemys_isolation_levels_leave_the_connection_as_it_was(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database, isolation_level="IMMEDIATE")
    with spec.get_engine("single").connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("INSERT INTO users (name) VALUES ('a')")
    with spec.get_connection("single") as live:
        assert live.driver_connection.isolation_level == "IMMEDIATE"
    one = database.config(pool_size=1, max_overflow=0, autocommit=True)
    spec.register_config(one, name="autocommit")
    with spec.get_engine("autocommit").connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        connection.exec_driver_sql("INSERT INTO users (name) VALUES ('undone')")
        connection.rollback()
    with pytest.raises(RuntimeError), spec.get_session("autocommit") as session:
        session.execute(INSERT, ("b",))
        raise RuntimeError
    assert names(spec) == ["a", "b"]


# -- replacing


def test_who_comes_late_to_a_replaced_config_is_served_by_the_new_one(spec: SQLSpec, database: Database) -> None:
    early = spec.get_session("primary")
    spec.register_config(database.config(), name="primary", replace=True)
    with early:
        early.execute(INSERT, ("kept",))
    assert names(spec) == ["kept"]


def test_a_replacement_keeps_the_autocommit_of_the_sessions_there_are(spec: SQLSpec, database: Database) -> None:
    early, manager = spec.get_session("primary"), spec._manager("primary")
    spec.register_config(database.config(autocommit=True), name="primary", replace=True)
    with pytest.raises(RuntimeError), early:
        early.execute(INSERT, ("undone",))
        raise RuntimeError
    assert names(spec) == []
    with manager.get_session() as late:
        assert late.execute("SELECT 1").scalar() == 1


def test_an_engine_of_a_closed_registry_stays_closed(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config())
        engine = spec.get_engine()
    engine.dispose()
    with pytest.raises(PoolClosed):
        engine.connect()


def test_who_waits_while_a_config_is_replaced_is_served_by_the_new_one(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database)
    held = spec.create_connection("single")
    served: list[Any] = []

    def wait() -> None:
        with spec.get_connection("single", timeout=20) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            served.append(cursor.fetchone())

    waiting = threading.Thread(target=wait)
    waiting.start()
    pool: Any = spec._get_pool("single")
    wait_until(lambda: pool.stats().waiters == 1)
    spec.register_config(database.config(), name="single", replace=True)
    waiting.join(20)
    assert served == [(1,)]
    held.close()


@pytest.mark.parametrize("asks_for", ["connection", "session"])
def test_the_deadline_goes_on_while_a_config_is_replaced(tmp_path: Path, asks_for: str) -> None:
    config = SQLiteConfig(database=str(tmp_path / "app.db"), pool_size=1, max_overflow=0)
    waited: list[float] = []
    with SQLSpec() as spec, SQLSpec() as other:
        spec.register_config(config)
        other.register_config(config)
        held = [spec.create_connection(), other.create_connection()]

        def wait() -> None:
            begin = time.monotonic()
            with pytest.raises(ConnectionTimeout):
                if asks_for == "connection":
                    spec.get_connection(timeout=2.0)
                else:
                    spec.get_session(timeout=2.0).execute("SELECT 1")
            waited.append(time.monotonic() - begin)

        waiting = threading.Thread(target=wait)
        waiting.start()
        pool: Any = spec._get_pool()
        wait_until(lambda: pool.stats().waiters == 1)
        time.sleep(1.0)
        # what register_config(replace=True) does, with a pool that is full already
        spec._manager("default").successor = other._manager("default")
        spec._manager("default").close()
        waiting.join(20)
        assert 1.9 < waited[0] < 2.9
        for connection in held:
            connection.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e12, "1"])
def test_a_timeout_that_is_none_is_refused(spec: SQLSpec, timeout: Any) -> None:
    with pytest.raises(ValueError, match="give seconds above 0"):
        spec.get_connection("primary", timeout=timeout)


def test_a_waiter_gives_up_at_its_deadline_and_loses_nothing(spec: SQLSpec, database: Database) -> None:
    one_connection(spec, database)
    with spec.get_connection("single"), pytest.raises(ConnectionTimeout):
        spec.get_connection("single", timeout=0.05)
    with spec.get_connection("single"):
        assert spec.get_pool_stats("single").checked_out == 1


@pytest.mark.parametrize("how", ["session", "watched session", "session of a config", "connection"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_transaction_that_a_procedure_leaves_open_takes_nothing_of_the_next_one(
    spec: SQLSpec, database: Database, how: str, fails: bool
) -> None:
    if database.name != "mariadb":
        pytest.skip(reason="only MySQL's procedures begin transactions")
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('Alice')")
        session.execute("DROP PROCEDURE IF EXISTS leave_open")
        session.execute(
            "CREATE PROCEDURE leave_open(newcomer TEXT) BEGIN START TRANSACTION;"
            " INSERT INTO users (name) VALUES ('Mallory'); INSERT INTO users (name) VALUES (newcomer); END"
        )
    in_config = how in {"session of a config", "connection"}
    spec.register_config(database.config(pool_size=1, max_overflow=0, autocommit=in_config), name="autocommit")
    if how == "watched session":
        sa.event.listen(spec.get_engine("autocommit"), "before_cursor_execute", lambda *_: None)
    call, newcomer = "CALL leave_open(?)", ("Alice" if fails else "Trent",)
    with contextlib.suppress(exc.IntegrityError, spec.get_engine("primary").dialect.loaded_dbapi.IntegrityError):
        if how == "connection":
            with spec.get_connection("autocommit") as connection:
                connection.cursor().execute(call, newcomer)
        else:
            with spec.get_session("autocommit", autocommit=True) as session:
                session.execute(call, newcomer)
    with spec.get_session("autocommit", autocommit=True) as session:
        session.execute("INSERT INTO users (name) VALUES ('Bob')")
    found = names(spec)
    assert found[0] == "Alice"
    assert found[-1] == "Bob"
    assert fails is ("Mallory" not in found) or how == "connection"


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
@pytest.mark.parametrize("way", ["a string", "an executable", "its connection"])
def test_a_commit_that_would_undo_what_an_error_has_aborted_raises(any_spec: Any, way: str) -> None:
    insert = "INSERT INTO users (name) VALUES ('kept?')"

    def fail(session: Any) -> None:
        with pytest.raises(exc.DBAPIError):
            session.execute("SELECT 1 / 0" if way == "a string" else sa.text("SELECT 1 / 0"))

    with pytest.raises(exc.DBAPIError, match="aborted"), any_spec.get_session("primary") as session:
        if way == "its connection":
            session.connection()
        session.execute(insert)
        fail(session)
    with any_spec.get_session("primary") as session:
        session.execute(insert)
        fail(session)
        with pytest.raises(exc.DBAPIError, match="aborted"):
            session.commit()
        with pytest.raises(exc.PendingRollbackError, match="the transaction could not be committed: call rollback"):
            session.execute(insert)
        session.rollback()
        assert session.execute("SELECT count(*) FROM users").scalar() == 0
        # a savepoint brings it back to life
        session.execute(insert)
        with contextlib.suppress(exc.DBAPIError), session.begin_nested():
            session.execute("SELECT 1 / 0")
    with any_spec.get_session("primary") as session:
        assert session.execute("SELECT count(*) FROM users").scalar() == 1
    assert any_spec.get_pool_stats("primary").created == 1


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_a_commit_of_what_was_begun_by_hand_and_aborted_raises_sqlalchemys_error(any_spec: Any) -> None:
    with any_spec.get_session("primary", autocommit=True) as session:
        session.execute("BEGIN")
        with pytest.raises(exc.DBAPIError):
            session.execute("SELECT 1 / 0")
        with pytest.raises(exc.DBAPIError, match="aborted"):
            session.commit()
        session.rollback()
        assert session.execute("SELECT 3").scalar() == 3


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_a_commit_on_a_connection_or_an_engine_that_would_undo_it_raises(any_spec: Any) -> None:
    insert = "INSERT INTO users (name) VALUES ('kept?')"
    errors = any_spec.get_engine("primary").dialect.loaded_dbapi
    with any_spec.get_connection("primary") as connection:
        connection.cursor().execute(insert)
        with pytest.raises(errors.Error):
            connection.cursor().execute("SELECT 1 / 0")
        with pytest.raises(errors.Error, match="aborted"):
            connection.commit()
        connection.rollback()
        connection.cursor().execute(insert)
        connection.commit()
    if not any_spec.get_engine("primary").dialect.is_async:
        with any_spec.get_engine("primary").connect() as connection:
            with pytest.raises(exc.DBAPIError):
                connection.exec_driver_sql("SELECT 1 / 0")
            with pytest.raises(exc.DBAPIError, match="aborted"):
                connection.commit()
    with any_spec.get_session("primary") as session:
        assert session.execute("SELECT count(*) FROM users").scalar() == 1


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
# psycopg's, of a cursor that it could not close
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stream_whose_cursor_somebody_has_closed_loses_no_work_in_silence(any_spec: Any) -> None:
    is_told = False
    try:
        with any_spec.get_session("primary") as session:
            session.execute("INSERT INTO users (name) VALUES ('kept?')")
            rows = session.execute(sa.text("SELECT generate_series(1, 500)").execution_options(yield_per=10))
            assert rows.fetchone() == (1,)
            session.execute("CLOSE ALL")
    except exc.InternalError:
        is_told = True
    rows = None
    gc.collect()
    with any_spec.get_session("primary") as session:
        kept = session.execute("SELECT count(*) FROM users").scalar()
    assert kept == (0 if is_told else 1)
    # asyncpg ends its cursors without asking the server
    assert is_told == (any_spec.get_engine("primary").dialect.driver != "asyncpg")
