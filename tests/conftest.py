from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqlspec import SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.testing import ScriptedDriver
from tests.faults import assert_nothing_is_lost, no_thread_left
from tests.servers import PASSWORD, MariaDBServer, PgBouncer, PostgreSQLServer, Server, ServerMissing, wait_until
from tests.tasks import Loop, RegistryInTasks


@dataclass
class Database:
    """One of the three databases, or another driver for it, for the tests that run on each."""

    name: str
    key: str
    make: Callable[..., SyncDatabaseConfig]
    server: Any = None

    def config(self, **options: Any) -> SyncDatabaseConfig:
        return self.make(**options)

    def as_code(self) -> str:
        """Return its config as Python code, for other processes."""
        config: Any = self.config()
        if self.name == "sqlite":
            return f"SQLiteConfig(database={config.database!r})"
        values = {name: getattr(config, name) for name in ("host", "port", "username", "database", "url")}
        values["password"] = config.reveal_password()
        return f"{type(config).__name__}(**{values!r})"


def _served(kind: Callable[[Path], Server]) -> Iterator[Server]:
    # not in pytest's own folder, which another run of pytest makes unreadable for the servers' users
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        try:
            server = kind(Path(folder) / "server")
        except ServerMissing as error:
            if os.environ.get("CI"):
                pytest.fail(f"{error}, and these tests must not be skipped in CI")
            pytest.skip(reason=str(error))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    yield from _served(PostgreSQLServer)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    yield from _served(MariaDBServer)


# its connections would be those that no pool knows of in the tests of faults
@pytest.fixture(scope="module")
def pgbouncer(postgresql_server: Any) -> Iterator[Server]:
    yield from _served(functools.partial(PgBouncer, behind=postgresql_server))


@pytest.fixture(params=["sqlite", "postgresql", "psycopg", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        path = str(tmp_path / "app.db")
        return Database(
            "sqlite", "INTEGER PRIMARY KEY", lambda **options: SQLiteConfig(**{"database": path, **options})
        )
    server = request.getfixturevalue("mariadb_server" if request.param == "mariadb" else "postgresql_server")
    place = {"host": "127.0.0.1", "port": server.port, "username": "app", "password": PASSWORD}
    if request.param in {"postgresql", "psycopg"}:
        if request.param == "psycopg":
            place["url"] = "postgresql+psycopg://"
        return Database(
            "postgresql",
            "SERIAL PRIMARY KEY",
            lambda **options: PostgreSQLConfig(**{**place, "database": "postgres", **options}),
            server,
        )
    return Database(
        "mariadb",
        "INTEGER PRIMARY KEY AUTO_INCREMENT",
        lambda **options: MySQLConfig(**{**place, "database": "app", **options}),
        server,
    )


@pytest.fixture
def driver() -> Iterator[ScriptedDriver]:
    """A driver that breaks on command, of which no connection may be closed twice."""
    driver = ScriptedDriver()
    yield driver
    driver.heal()
    assert driver.double_closes == 0


@pytest.fixture(autouse=True)
def after_a_fault(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Tell whether this test is of a fault; if so, no thread of it may be left."""
    is_of_a_fault = request.node.get_closest_marker("fault") is not None
    with no_thread_left() if is_of_a_fault else contextlib.nullcontext():
        yield is_of_a_fault


@pytest.fixture
def spec(database: Database, after_a_fault: bool) -> Iterator[SQLSpec]:
    """A registry with the database as "primary", and an empty table of users."""
    # after a fault, all that a pool may have are asked for
    size = {"pool_size": 3, "max_overflow": 2} if after_a_fault else {}
    with SQLSpec() as registry:
        registry.register_config(database.config(**size), name="primary")
        with registry.get_session("primary") as session:
            session.execute("DROP TABLE IF EXISTS users")
            session.execute(f"CREATE TABLE users (id {database.key}, name VARCHAR(100) UNIQUE)")
        yield registry
        assert registry.get_pool_stats("primary").checked_out == 0
        if after_a_fault:
            assert_nothing_is_lost(registry, database.server)
    if after_a_fault and database.server is not None:
        try:
            wait_until(lambda: not database.server.connections())
        except TimeoutError:
            known = "; ".join(database.server.activity())
            pytest.fail(f"the server has connections that no pool knows of: {known}")


@pytest.fixture(params=["threads", "tasks"])
def any_spec(spec: SQLSpec, database: Database, after_a_fault: bool, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The registry, or one whose sessions and connections are the asynchronous ones."""
    if request.param == "threads":
        yield spec
        return
    # the statistics of the threads' pool would be added
    spec._get_pool("primary").dispose()
    registry = SQLSpec()
    registry.register_config(spec.get_config("primary"), name="primary")
    loop = Loop()
    try:
        in_tasks = RegistryInTasks(loop, registry)
        yield in_tasks
        assert registry.get_pool_stats("primary").checked_out == 0
        if after_a_fault:
            assert_nothing_is_lost(in_tasks, database.server)
    finally:
        loop.end()
        registry.close()
