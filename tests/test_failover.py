"""After a failover: no connection to a server that takes no writes any more is lent to who writes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ErrorKind, SQLSpec, classify, with_retry
from sqlspec.adapters import PostgreSQLConfig
from sqlspec.resilience import failover, is_safe_to_repeat
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import PASSWORD, PostgreSQLServer, PostgreSQLStandby, ServerMissing, wait_until
from tests.tasks import Loop, RegistryInTasks

SERVERS = ["postgresql", "psycopg", "mariadb"]
on_servers = pytest.mark.parametrize("database", SERVERS, indirect=True)
WRITE = "INSERT INTO users (name) VALUES (NULL)"
Write = Callable[[Any], object]


def write_in_session(spec: Any) -> None:
    with spec.get_session("written") as session:
        session.execute(WRITE)


def write_in_connection(spec: Any) -> None:
    with spec.get_connection("written") as connection:
        connection.cursor().execute(WRITE)
        connection.commit()


def write_in_engine(spec: Any) -> None:
    def write(connection: sa.Connection) -> None:
        connection.execute(sa.text(WRITE))

    if not isinstance(spec, RegistryInTasks):
        with spec.get_engine("written").begin() as connection:
            write(connection)
        return

    async def main() -> None:
        async with spec._registry.get_async_engine("written").begin() as connection:
            await connection.run_sync(write)

    spec._loop.run(main())


ways = pytest.mark.parametrize("write", [write_in_session, write_in_connection, write_in_engine])


@contextmanager
def read_only(spec: SQLSpec, written: Any, database: Database) -> Iterator[None]:
    """Have the server take no writes, as one that is not the primary any more."""
    on = {
        "postgresql": ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"],
        "mariadb": ["SET GLOBAL read_only = 1"],
    }[database.name]
    off = {
        "postgresql": ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"],
        "mariadb": ["SET GLOBAL read_only = 0"],
    }[database.name]
    try:
        _run_all(spec, on)
        if database.name == "postgresql":
            _wait_for(written, "on")
        yield
    finally:
        _run_all(spec, off)
    if database.name == "postgresql":
        _wait_for(written, "off")


def _wait_for(written: Any, setting: str) -> None:
    """Wait until all three sessions of PostgreSQL's have heard of it."""
    asked = "SELECT current_setting('default_transaction_read_only')"
    with ExitStack() as held:
        sessions = [held.enter_context(written.get_session("written", autocommit=True)) for _ in range(3)]
        wait_until(lambda: all(session.execute(asked).scalar() == setting for session in sessions))


def _run_all(spec: SQLSpec, statements: list[str]) -> None:
    with spec.get_session("primary", autocommit=True) as session:
        for statement in statements:
            session.execute(statement)


@pytest.fixture
def written(spec: SQLSpec, any_spec: Any, database: Database) -> Any:
    """The registry with a user that a read-only server refuses, as "written", and three idle connections."""
    options: dict[str, Any] = {}
    if database.name == "mariadb":
        with spec.get_session("primary") as session:
            session.execute("CREATE OR REPLACE USER plain@'127.0.0.1' IDENTIFIED BY 'plain'")
            session.execute("GRANT SELECT, INSERT ON app.* TO plain@'127.0.0.1'")
        options = {"username": "plain", "password": "plain"}
    any_spec.register_config(database.config(pool_size=3, max_overflow=0, **options), "written")
    warm(any_spec)
    return any_spec


def warm(spec: Any) -> None:
    """Have three idle connections, none of which has just been opened."""
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(spec.get_connection("written"))
    slots = spec._get_pool("written")._pool
    wait_until(lambda: all(time.monotonic() - slot.opened_at > failover._SETTLED for slot in slots.all()))


def refused(write: Write, spec: Any) -> BaseException:
    with pytest.raises(Exception, match=r"(?i)read.?only") as caught:
        write(spec)
    return caught.value


@pytest.mark.fault(61)
@on_servers
@ways
def test_a_write_that_is_refused_has_no_other_connection_lent_any_more(
    spec: SQLSpec, written: Any, database: Database, write: Write
) -> None:
    with read_only(spec, written, database):
        error = refused(write, written)
        assert classify(error) is ErrorKind.READ_ONLY
        # nothing of it stays
        assert is_safe_to_repeat(error)
        stats = written.get_pool_stats("written")
        assert (stats.closed, stats.checked_out) == ({"disconnect": 1}, 0)
    for _ in range(3):
        write(written)
    stats = written.get_pool_stats("written")
    assert stats.closed["disconnect"] + stats.closed["recycled"] == stats.created - stats.total == 3
    with spec.get_session("primary") as session:
        assert session.execute("SELECT COUNT(*) FROM users").scalar() == 3


@on_servers
def test_a_refused_write_is_tried_again_until_there_is_a_primary(
    spec: SQLSpec, written: Any, database: Database
) -> None:
    attempts = []
    with ExitStack() as demoted:
        demoted.enter_context(read_only(spec, written, database))

        def attempt() -> None:
            attempts.append(1)
            if len(attempts) == 4:
                demoted.close()
            write_in_session(written)

        with_retry(attempt, max_attempts=10, initial_delay=0.01)
    assert len(attempts) == 4
    with spec.get_session("primary") as session:
        assert session.execute("SELECT COUNT(*) FROM users").scalar() == 1


@on_servers
def test_under_autocommit_nothing_is_tried_again(spec: SQLSpec, written: Any, database: Database) -> None:
    def write(spec: Any) -> None:
        with spec.get_session("written", autocommit=True) as session:
            session.execute("SELECT 1")
            session.execute(WRITE)

    with read_only(spec, written, database):
        error = refused(write, written)
        assert classify(error) is ErrorKind.READ_ONLY
        # nobody knows what the statements before have left
        assert not is_safe_to_repeat(error)
        assert written.get_pool_stats("written").closed == {"disconnect": 1}


@on_servers
def test_writes_that_keep_failing_do_not_replace_connections_all_the_time(
    spec: SQLSpec, written: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(spec, written, database):
        refused(write_in_session, written)
        # as long as they count as just opened
        monkeypatch.setattr(failover, "_SETTLED", 3600.0)
        created = written.get_pool_stats("written").created
        for _ in range(12):
            assert is_safe_to_repeat(refused(write_in_session, written))
        stats = written.get_pool_stats("written")
        assert stats.created <= created + 3
        assert stats.closed["disconnect"] == 1


_ASKED = {
    "postgresql": ["SET TRANSACTION READ ONLY"],
    "mariadb": ["START TRANSACTION READ ONLY"],
}


@on_servers
def test_who_asked_to_read_only_loses_no_connection(written: Any, database: Database) -> None:
    def in_session(spec: Any) -> None:
        with spec.get_session("written", read_only=True) as session:
            session.execute(WRITE)

    def by_statement(spec: Any) -> None:
        with spec.get_session("written") as session:
            for statement in _ASKED[database.name]:
                session.execute(statement)
            session.execute(WRITE)

    def by_statement_in_connection(spec: Any) -> None:
        with spec.get_connection("written") as connection:
            for statement in _ASKED[database.name]:
                connection.cursor().execute(statement)
            connection.cursor().execute(WRITE)

    for write in (in_session, by_statement, by_statement_in_connection):
        error = refused(write, written)
        assert classify(error) is ErrorKind.READ_ONLY
        assert not is_safe_to_repeat(error)
    assert written.get_pool_stats("written").closed == {}


@on_servers
def test_who_asked_to_read_only_loses_none_on_a_replica_either(spec: SQLSpec, written: Any, database: Database) -> None:
    def write(spec: Any) -> None:
        with spec.get_session("written", read_only=True) as session:
            session.execute(WRITE)

    with read_only(spec, written, database):
        refused(write, written)
        assert written.get_pool_stats("written").closed == {}


# -- a real failover


class Pair:
    """Be a PostgreSQL, its replica, and the address under which applications know the primary."""

    def __init__(self, folder: Path) -> None:
        self.primary = PostgreSQLServer(folder / "primary")
        self.primary.start()
        self.replica: Any = None
        try:
            with SQLSpec() as spec:
                spec.register_config(self.config(self.primary.port))
                with spec.get_session() as session:
                    session.execute("CREATE TABLE users (id SERIAL PRIMARY KEY, name VARCHAR(100))")
            self.replica = PostgreSQLStandby(folder / "replica", self.primary)
            self.replica.start()
        except BaseException:
            self.stop()
            raise
        self.address = FaultProxy(self.primary.port)

    def config(self, port: int, **options: Any) -> PostgreSQLConfig:
        place = {"host": "127.0.0.1", "port": port, "username": "app", "password": PASSWORD, "database": "postgres"}
        return PostgreSQLConfig(**place, pool_size=3, max_overflow=0, **options)

    def switch(self) -> None:
        """Promote the replica, have the primary take no writes any more, and move the address."""
        _run_on(self.primary, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        self.replica.promote()
        self.address.redirect(self.replica.port)

    def fail_over(self) -> None:
        """Kill the primary, promote the replica, and move the address."""
        self.primary.kill()
        self.address.redirect(self.replica.port)
        self.replica.promote()

    def stop(self) -> None:
        for server in filter(None, (self.replica, self.primary)):
            server.stop()


def _run_on(server: PostgreSQLServer, *statements: str) -> None:
    import psycopg2

    connection = psycopg2.connect(**server.parameters())
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        try:
            pair = Pair(Path(folder) / "pair")
        except ServerMissing as error:
            pytest.skip(reason=str(error))
        try:
            with pair.address:
                yield pair
        finally:
            pair.stop()


@pytest.fixture(params=["psycopg2", "psycopg", "asyncpg"])
def client(pair: Pair, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A registry that knows the primary by its address, with three idle connections."""
    with SQLSpec() as spec:
        spec.register_config(pair.config(pair.address.port, url=f"postgresql+{request.param}://"), "written")
        if request.param == "psycopg2":
            warm(spec)
            yield spec
            return
        loop = Loop()
        try:
            tasks = RegistryInTasks(loop, spec)
            warm(tasks)
            yield tasks
            tasks.close()
        finally:
            loop.end()


@pytest.mark.fault(61)
def test_a_switch_of_the_primary_costs_one_refused_write(pair: Pair, client: Any) -> None:
    write_in_session(client)
    pair.switch()
    assert is_safe_to_repeat(refused(write_in_session, client))
    for _ in range(6):
        write_in_session(client)
    assert pair.address.fired["redirect"] == 1
    assert pair.replica._ask("SELECT COUNT(*) FROM users") == [7]
    # nobody is left at the old one but its replica
    wait_until(lambda: not pair.primary.connections())


@pytest.mark.fault(61)
@pytest.mark.parametrize("client", ["psycopg2"], indirect=True)
def test_a_primary_that_dies_is_followed_to_the_one_that_is_promoted(pair: Pair, client: Any) -> None:
    write_in_session(client)
    wait_until(lambda: pair.replica._ask("SELECT COUNT(*) FROM users") == [1])
    pair.fail_over()
    with_retry(lambda: write_in_session(client), max_attempts=50, initial_delay=0.01, max_delay=0.2)
    assert pair.replica._ask("SELECT COUNT(*) FROM users") == [2]


@pytest.mark.parametrize("client", ["asyncpg"], indirect=True)
def test_a_connection_to_a_replica_that_is_promoted_serves_on(pair: Pair, client: Any) -> None:
    pair.address.redirect(pair.replica.port)
    pair.address.cut()
    error = refused(_write_with_retry, client)
    assert classify(error) is ErrorKind.READ_ONLY
    assert isinstance(error, exc.DBAPIError)
    pair.replica.promote()
    _write_with_retry(client)
    assert pair.replica._ask("SELECT COUNT(*) FROM users") == [1]


def _write_with_retry(spec: Any) -> None:
    with_retry(lambda: write_in_session(spec), max_attempts=3, initial_delay=0.01)
