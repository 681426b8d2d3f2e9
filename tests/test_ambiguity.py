"""What is told of a lost connection: whether something may stay of what was under way."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import exc, text

from sqlspec import ConnectionLost, SQLSpec, classify, with_retry
from sqlspec.adapters.commits import commits
from sqlspec.resilience import ErrorKind, is_ambiguous, is_safe_to_repeat
from tests.conftest import Database
from tests.proxy import LosingProxy
from tests.servers import free_port

on_servers = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
INSERT = "INSERT INTO users (name) VALUES ('once')"


@pytest.fixture
def far(any_spec: Any, database: Database) -> Iterator[LosingProxy]:
    """A proxy, and the database behind it as "far", and as "autocommit"."""
    with LosingProxy(database.server.port) as proxy:
        for name, enabled in {"far": False, "autocommit": True}.items():
            config = database.config(port=proxy.port, pool_size=1, max_overflow=0, autocommit=enabled)
            any_spec.register_config(config, name)
        yield proxy
        for name in ("far", "autocommit"):
            assert any_spec.get_pool_stats(name).checked_out == 0


def names(spec: Any) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users").scalars())


@pytest.mark.fault(75)
@on_servers
@pytest.mark.parametrize("way", ["a string", "sqlalchemy"])
def test_a_session_whose_commit_has_no_answer_says_that_nobody_knows(any_spec: Any, far: LosingProxy, way: str) -> None:
    with any_spec.get_session("far") as session:
        session.execute(INSERT if way == "a string" else text(INSERT))
        far.swallow_answer("COMMIT")
        with pytest.raises(exc.OperationalError, match="COMMIT, and nobody knows whether it was carried out") as caught:
            session.commit()
        error = caught.value
        assert isinstance(error, ConnectionLost)
        assert error.ambiguous
        assert error.connection_invalidated
        assert isinstance(error.__cause__, exc.DBAPIError)
        assert error.orig is error.__cause__.orig
        assert is_ambiguous(error.__cause__)
        assert not is_safe_to_repeat(error)
        # what remains is a session to go on with, after a rollback
        session.rollback()
        assert session.execute("SELECT COUNT(*) FROM users").scalar() == 1
    assert far.fired == {"swallow_answer": 1}


@on_servers
@pytest.mark.parametrize("statement", [INSERT, "SELECT 1"])
@pytest.mark.parametrize("way", ["a string", "sqlalchemy"])
def test_a_statement_that_is_lost_under_autocommit_may_have_taken_place(
    any_spec: Any, far: LosingProxy, database: Database, way: str, statement: str
) -> None:
    """A query as well: functions change things, and views call them."""
    for name, options in {"far": {"autocommit": True}, "autocommit": {}}.items():
        with any_spec.get_session(name, **options) as session:
            session.execute("SELECT 2").all()
            far.swallow_answer(statement)
            with pytest.raises(ConnectionLost, match="a statement that commits") as caught:
                session.execute(statement if way == "a string" else text(statement))
            assert caught.value.ambiguous
            session.rollback()
        if statement == INSERT:
            # asyncpg had not come further than to prepare it
            asyncpg = not isinstance(any_spec, SQLSpec) and database.config().driver().name == "psycopg2"
            assert names(any_spec) == ([] if asyncpg else ["once"])
            with any_spec.get_session("primary") as session:
                session.execute("DELETE FROM users")
    assert far.fired == {"swallow_answer": 2}


@on_servers
@pytest.mark.parametrize("name", ["far", "autocommit"])
def test_of_a_connection_and_an_engine_the_errors_stay_and_mean_the_same(
    any_spec: Any, far: LosingProxy, name: str
) -> None:
    is_autocommit = name == "autocommit"
    with any_spec.get_connection(name) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        far.swallow_answer("SELECT 2")
        with pytest.raises(Exception) as caught:  # noqa: PT011  # the driver's
            cursor.execute("SELECT 2")
        assert not isinstance(caught.value, exc.SQLAlchemyError)
        assert is_ambiguous(caught.value) is is_autocommit
        assert is_safe_to_repeat(caught.value) is not is_autocommit
    if isinstance(any_spec, SQLSpec):
        with any_spec.get_engine(name).connect() as own:
            own.exec_driver_sql("SELECT 1")
            far.swallow_answer("SELECT 2")
            with pytest.raises(exc.OperationalError) as lost:
                own.exec_driver_sql("SELECT 2")
            assert not isinstance(lost.value, ConnectionLost)
            assert is_ambiguous(lost.value) is is_autocommit
        with any_spec.get_engine(name).connect().execution_options(isolation_level="AUTOCOMMIT") as own:
            own.exec_driver_sql("SELECT 1")
            far.swallow_answer("SELECT 3")
            with pytest.raises(exc.OperationalError) as lost:
                own.exec_driver_sql("SELECT 3")
            assert is_ambiguous(lost.value)


@on_servers
def test_an_engine_for_tasks_tells_it_as_well(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        for level, expected in {"AUTOCOMMIT": True, "READ COMMITTED": False}.items():
            engine = registry.get_async_engine("far").execution_options(isolation_level=level)
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
                proxy.swallow_answer("SELECT 2")
                with pytest.raises(exc.DBAPIError) as caught:
                    await connection.exec_driver_sql("SELECT 2")
                assert is_ambiguous(caught.value) is expected
        await registry.aclose()

    registry = SQLSpec()
    with LosingProxy(database.server.port) as proxy:
        registry.register_config(database.config(port=proxy.port), "far")
        asyncio.run(main())


@on_servers
@pytest.mark.parametrize("statement", [INSERT, "SELECT 1", "UPDATE users SET name = 'commit'"])
def test_a_statement_that_is_lost_in_a_transaction_leaves_nothing(
    any_spec: Any, far: LosingProxy, statement: str
) -> None:
    def work() -> None:
        with any_spec.get_session("far") as session:
            session.execute("SELECT 2")
            session.execute(statement)

    far.swallow_answer(statement)
    with pytest.raises(exc.DBAPIError) as caught, any_spec.get_session("far") as session:
        session.execute("SELECT 2")
        session.execute(statement)
    assert not isinstance(caught.value, ConnectionLost)
    assert is_safe_to_repeat(caught.value)
    far.swallow_answer(statement)
    with_retry(work)
    assert far.fired == {"swallow_answer": 2}


@on_servers
def test_a_transaction_begun_by_hand_under_autocommit_is_one(any_spec: Any, far: LosingProxy) -> None:
    for lost, is_known in {INSERT: True, "COMMIT": False}.items():
        with any_spec.get_session("autocommit") as session:
            session.execute("BEGIN")
            session.execute("SELECT 1")
            far.swallow_answer(lost)
            with pytest.raises(exc.DBAPIError) as caught:
                session.execute(lost)
            assert is_ambiguous(caught.value) is not is_known
            session.rollback()


@on_mariadb
@pytest.mark.parametrize("way", ["a string", "sqlalchemy"])
def test_a_statement_that_commits_by_the_way_may_have_done_so(any_spec: Any, far: LosingProxy, way: str) -> None:
    create = "CREATE OR REPLACE TABLE other (id INTEGER)"
    with any_spec.get_session("far") as session:
        session.execute(INSERT)
        far.swallow_answer("CREATE")
        with pytest.raises(ConnectionLost) as caught:
            session.execute(create if way == "a string" else text(create))
        assert caught.value.ambiguous
        session.rollback()
    assert names(any_spec) == ["once"]


@on_servers
def test_what_was_not_sent_is_not_ambiguous(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(port=free_port(), autocommit=True), "nobody")
    with pytest.raises((exc.DBAPIError, OSError)) as caught, any_spec.get_session("nobody") as session:
        session.execute(INSERT)
    assert is_safe_to_repeat(caught.value)


@on_servers
def test_a_commit_of_what_only_read_may_be_repeated(any_spec: Any, far: LosingProxy) -> None:
    def read() -> Any:
        with any_spec.get_session("far", read_only=True) as session:
            return session.execute("SELECT COUNT(*) FROM users").scalar()

    far.swallow_answer("COMMIT")
    assert with_retry(read) == 0
    assert far.fired == {"swallow_answer": 1}


@on_servers
def test_a_timeout_that_hits_a_commit_is_ambiguous_and_before_it_is_not(spec: SQLSpec, database: Database) -> None:
    async def write(autocommit: bool) -> bool:
        """Tell whether the timeout is ambiguous."""
        async with registry.get_async_session("far", autocommit=autocommit) as session:
            await session.execute("SELECT 1")
            proxy.delay(30)
            try:
                async with asyncio.timeout(0.1):
                    await (session.execute(INSERT) if autocommit else session.commit())
            except TimeoutError as error:
                return is_ambiguous(error)
            finally:
                proxy.cut()
                proxy.heal()
                await session.rollback()
        raise AssertionError("it was not delayed")

    async def main() -> None:
        assert await write(True)
        assert await write(False)
        with pytest.raises(TimeoutError) as caught:
            async with registry.get_async_session("far") as session, asyncio.timeout(0.1):
                await session.execute("SELECT 1")
                await asyncio.sleep(20)
        assert not is_ambiguous(caught.value)
        await registry.aclose()

    registry = SQLSpec()
    with LosingProxy(database.server.port) as proxy:
        registry.register_config(database.config(port=proxy.port), "far")
        asyncio.run(main())


def test_a_lost_connection_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ConnectionLost("lost in COMMIT", ambiguous=True, orig=ValueError())))  # noqa: S301  # our own
    assert (str(error), error.ambiguous, classify(error)) == ("lost in COMMIT", True, ErrorKind.DISCONNECT)


@pytest.mark.parametrize(
    ("sql", "everywhere", "on_mysql"),
    [
        ("COMMIT", True, True),
        (" -- really\n /* yes */ commit and chain", True, True),
        ("END", True, False),
        ("ROLLBACK", False, False),
        ("INSERT INTO commits VALUES (1)", False, False),
        ("SELECT 'COMMIT'", False, False),
        ("CREATE TABLE x (i int)", False, True),
        ("CREATE TEMPORARY TABLE x (i int)", False, False),
        ("DROP TEMPORARY TABLE x", False, False),
        ("TRUNCATE x", False, True),
        ("SET autocommit = 1", False, True),
        ("SET @a = 1", False, False),
        ("SET STATEMENT max_statement_time = 1 FOR SELECT 1", False, False),
        ("SET STATEMENT max_statement_time = 1 FOR DROP TABLE x", False, True),
        ("CALL anything()", False, True),
        ("/*! COMMIT */", False, True),
    ],
)
def test_statements_that_commit_are_told_by_their_text(sql: str, everywhere: bool, on_mysql: bool) -> None:
    assert commits(sql, "postgresql") is commits(sql, "sqlite") is everywhere
    assert commits(sql, "mysql") is on_mysql
