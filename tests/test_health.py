"""health_check and check_health: the right word about each database, in time, from real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlspec import CircuitOpenError, ConfigError, HealthReport, SQLSpec, check_health, health_check
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.health import _state_after
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import PASSWORD, free_port, wait_until
from tests.tasks import Loop

SERVERS = ["postgresql", "psycopg", "mariadb"]
ALL = ["sqlite", *SERVERS]
on_servers = pytest.mark.parametrize("database", SERVERS, indirect=True)
# Seconds by which a verdict may come after its deadline: the bar is 0.2, for machines that do nothing else.
LATE = 2.0
Check = Callable[..., HealthReport]


@pytest.fixture(params=["threads", "tasks"])
def check(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Return check_health, or what asks health_check in the loop of another thread."""
    if request.param == "threads":
        yield check_health
        return
    loop = Loop()
    yield lambda *arguments, **options: loop.run(health_check(*arguments, **options))
    loop.end()


@pytest.fixture
def registry(database: Database) -> Iterator[SQLSpec]:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=2, max_overflow=0), name="primary")
        yield spec
        assert spec.get_pool_stats("primary").checked_out == 0


def state(report: HealthReport, name: str = "primary") -> str:
    assert report[name] is (report.details[name].state != "down")
    return report.details[name].state


@pytest.mark.parametrize("database", ALL, indirect=True)
def test_a_pool_that_nobody_has_used_is_up_and_nothing_stays_open(
    registry: SQLSpec, check: Check, database: Database
) -> None:
    report = check(registry)
    assert report == {"primary": True}
    health = report.details["primary"]
    assert (health.state, health.reason, health.age_seconds) == ("up", "", 0.0)
    assert 0 < health.latency_seconds < 20
    assert json.loads(json.dumps(report)) == {"primary": True}
    assert registry.get_pool_stats("primary").created == 0
    if database.server is not None:
        wait_until(lambda: not database.server.connections())


@on_servers
def test_an_idle_connection_is_asked_and_no_other_opened(registry: SQLSpec, database: Database) -> None:
    with registry.get_connection("primary"):
        pass
    (before,) = database.server.connections()
    assert state(check_health(registry)) == "up"
    assert database.server.connections() == [before]
    assert registry.get_pool_stats("primary").created == 1


@on_servers
def test_an_idle_connection_of_a_loop_is_asked_in_the_loop(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with registry.get_async_session("primary") as session:
            await session.execute("SELECT 1")
        before = database.server.connections()
        assert state(await health_check(registry)) == "up"
        assert database.server.connections() == before
        assert registry.get_pool_stats("primary").created == 1

    asyncio.run(main())


@pytest.mark.fault(78)
@pytest.mark.parametrize("database", ALL, indirect=True)
def test_a_pool_that_is_in_use_as_a_whole_is_degraded(registry: SQLSpec, check: Check, database: Database) -> None:
    held = [registry.create_connection("primary") for _ in range(2)]
    report = check(registry)
    assert state(report) == "degraded"
    assert report.details["primary"].reason == "every connection of the pool is in use"
    for connection in held:
        connection.close()
    assert state(check(registry)) == "up"
    assert registry.get_pool_stats("primary").total == 2
    if database.server is not None:
        wait_until(lambda: len(database.server.connections()) == 2)


@on_servers
def test_a_loops_pool_that_is_in_use_as_a_whole_is_degraded(registry: SQLSpec) -> None:
    async def main() -> None:
        async with registry.get_async_connection("primary"), registry.get_async_connection("primary"):
            assert state(await health_check(registry)) == "degraded"
            # asked by a thread, it is no other
            assert state(await asyncio.to_thread(check_health, registry)) == "degraded"
        assert state(await health_check(registry)) == "up"

    asyncio.run(main())


@on_servers
def test_a_server_that_was_stopped_is_down_and_one_that_is_back_is_up(
    registry: SQLSpec, check: Check, database: Database
) -> None:
    with registry.get_connection("primary"):
        pass
    database.server.stop()
    try:
        report = check(registry)
        assert state(report) == "down"
        assert report.details["primary"].reason == "the server cannot be reached"
    finally:
        database.server.start()
    # what was idle has died; callers get another one, and so does the check
    assert state(check(registry)) == "up"


@on_servers
@pytest.mark.parametrize("is_warm", [False, True], ids=["lazy", "warm"])
def test_a_server_that_is_frozen_is_down_at_the_deadline(
    registry: SQLSpec, check: Check, database: Database, is_warm: bool
) -> None:
    if is_warm:
        with registry.get_connection("primary"):
            pass
    database.server.freeze()
    try:
        begin = time.monotonic()
        report = check(registry, timeout=0.5)
        assert time.monotonic() - begin < 0.5 + LATE
        assert state(report) == "down"
        assert report.details["primary"].reason == "no answer within 0.5 s"
    finally:
        database.server.thaw()
    assert state(check(registry, timeout=10.0)) == "up"
    wait_until(lambda: len(database.server.connections()) <= 1)


def test_databases_are_asked_at_the_same_time(postgresql_server: Any) -> None:
    with FaultProxy(postgresql_server.port) as hole, SQLSpec() as spec:
        hole.swallow(later_ones=True)
        names = [f"database {number}" for number in range(8)]
        for name in names:
            spec.register_config(PostgreSQLConfig(**_place(hole.port)), name)
        begin = time.monotonic()
        report = check_health(spec, timeout=0.5)
        assert time.monotonic() - begin < 0.5 + LATE < 8 * 0.5
        assert report == dict.fromkeys(names, False)
        assert check_health(spec, names[:2], timeout=0.1) == dict.fromkeys(names[:2], False)
        assert hole.fired["swallow"]


def _place(port: int) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "username": "app", "password": PASSWORD, "database": "postgres"}


def test_the_loop_goes_on_while_a_driver_of_threads_blocks(mariadb_server: Any) -> None:
    config = MySQLConfig(**{**_place(mariadb_server.port), "url": "mysql+mysqldb://", "database": "app"})
    pauses = []

    async def main() -> None:
        asked = asyncio.ensure_future(health_check(spec, timeout=1.0))
        while not asked.done():
            begin = time.monotonic()
            await asyncio.sleep(0.01)
            pauses.append(time.monotonic() - begin)
        assert state(await asked) == "down"

    with FaultProxy(mariadb_server.port) as hole, SQLSpec() as spec:
        hole.swallow(later_ones=True)
        spec.register_config(config.model_copy(update={"port": hole.port}), name="primary")
        asyncio.run(main())
        assert hole.fired["swallow"]
    # blocked for the whole second, it would have gone round once
    assert len(pauses) > 10


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg2"])
def test_a_driver_of_one_kind_serves_both_forms(postgresql_server: Any, check: Check, driver: str) -> None:
    config = PostgreSQLConfig(**_place(postgresql_server.port), url=f"postgresql+{driver}://")
    with SQLSpec() as spec:
        spec.register_config(config, name="primary")
        assert state(check(spec)) == "up"
        wait_until(lambda: not postgresql_server.connections())
        spec.register_config(config.model_copy(update={"port": free_port()}), name="primary", replace=True)
        assert state(check(spec)) == "down"


def test_a_config_without_a_pool_is_asked_as_well(tmp_path: Path, check: Check) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "app.db")), name="primary")
        spec.register_config(SQLiteConfig(database=str(tmp_path / "nowhere" / "app.db")), name="missing")
        spec.register_config(SQLiteConfig(database=":memory:"), name="memory")
        assert check(spec) == {"primary": True, "missing": False, "memory": True}


# -- words


@on_servers
def test_a_reason_names_no_host_and_no_user(registry: SQLSpec, check: Check, database: Database) -> None:
    registry.register_config(database.config(password="wrong"), "wrong")
    registry.register_config(database.config(port=free_port()), "away")
    report = check(registry, ["wrong", "away"])
    assert report == {"wrong": False, "away": False}
    assert report.details["wrong"].reason == "the config is refused, by the server or the driver"
    told = repr(report.details)
    assert not [word for word in ("127.0.0.1", "app", PASSWORD, "wrong'@", str(database.server.port)) if word in told]


def test_a_server_that_has_no_connection_left_is_degraded(postgresql_server: Any, check: Check) -> None:
    with SQLSpec() as spec:
        spec.register_config(PostgreSQLConfig(**_place(postgresql_server.port)))
        with spec.get_session() as session:
            session.execute("DROP ROLE IF EXISTS few")
            session.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 1 PASSWORD 'few'")
        config = PostgreSQLConfig(**{**_place(postgresql_server.port), "username": "few", "password": "few"})
        spec.register_config(config.model_copy(update={"pool_size": 5}), "few")
        with spec.get_connection("few"):
            report = check(spec, ["few"])
        assert state(report, "few") == "degraded"
        assert report.details["few"].reason == "the server has no connections, memory or disk left"


def test_an_open_breaker_says_what_has_opened_it() -> None:
    def opened_by(cause: BaseException) -> tuple[str, str]:
        error = CircuitOpenError("open", 7.0)
        error.__cause__ = cause
        return _state_after(error)

    full = type("OperationalError", (type("DatabaseError", (Exception,), {}),), {})
    told = "; its circuit breaker probes again in 7 s"
    assert opened_by(ConnectionRefusedError()) == ("down", f"the server cannot be reached{told}")
    assert opened_by(full(1040, "Too many connections"))[0] == "degraded"
    assert _state_after(CircuitOpenError("open", 7.0))[0] == "down"


def test_a_change_is_logged_once(registry_of_sqlite: SQLSpec, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sqlspec.health"):
        assert state(check_health(registry_of_sqlite)) == "up"
        held = registry_of_sqlite.create_connection("primary")
        for _ in range(3):
            assert state(check_health(registry_of_sqlite)) == "degraded"
        held.close()
        assert state(check_health(registry_of_sqlite)) == "up"
        # after the answer
        wait_until(lambda: len(caplog.records) >= 2)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "primary is degraded: every connection of the pool is in use"),
        ("INFO", "primary is up"),
    ]


@pytest.fixture
def registry_of_sqlite(tmp_path: Path) -> Iterator[SQLSpec]:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db"), pool_size=1, max_overflow=0), "primary")
        yield spec


# -- verdicts that are told again


@on_servers
def test_many_who_ask_at_the_same_time_share_one_check(registry: SQLSpec, database: Database) -> None:
    with FaultProxy(database.server.port) as network:
        registry.register_config(database.config(port=network.port), "far")
        network.delay(0.1)
        barrier, reports = threading.Barrier(32), []

        def ask() -> None:
            barrier.wait(20)
            reports.append(check_health(registry, ["far"], timeout=20.0, max_age=30.0))

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert reports == [{"far": True}] * 32
        assert len({report.details["far"].latency_seconds for report in reports}) == 1
        assert network.fired["delay"]
        # kept for as long as it was asked for, and no longer
        database.server.freeze()
        try:
            assert check_health(registry, ["far"], max_age=30.0).details["far"].age_seconds > 0.0
            assert state(check_health(registry, ["far"], timeout=0.3), "far") == "down"
            again = check_health(registry, ["far"], timeout=0.3, max_age=30.0).details["far"]
            assert (again.state, again.age_seconds > 0.0) == ("down", True)
        finally:
            database.server.thaw()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_who_has_patience_is_not_told_what_others_did_not_wait_for(registry: SQLSpec, database: Database) -> None:
    with FaultProxy(database.server.port) as network:
        registry.register_config(database.config(port=network.port), "far")
        network.swallow(later_ones=True)
        impatient = threading.Thread(
            target=check_health, args=(registry, ["far"]), kwargs={"timeout": 3.0, "max_age": 30.0}
        )
        impatient.start()
        wait_until(lambda: network.fired["swallow"] == 1)
        network.heal()
        # under way, and afterwards
        assert check_health(registry, ["far"], timeout=20.0, max_age=30.0) == {"far": True}
        impatient.join()
        network.refuse()
        assert check_health(registry, ["far"], timeout=2.0) == {"far": False}
        network.heal()
        assert check_health(registry, ["far"], timeout=1.0, max_age=30.0) == {"far": False}
        assert check_health(registry, ["far"], timeout=20.0, max_age=30.0) == {"far": True}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_check_that_ends_late_says_nothing_about_a_database_that_was_asked_after_it(
    registry: SQLSpec, database: Database
) -> None:
    with FaultProxy(database.server.port) as network:
        registry.register_config(database.config(port=network.port), "far")
        network.swallow(later_ones=True)
        late = threading.Thread(target=check_health, args=(registry, ["far"]), kwargs={"timeout": 3.0})
        late.start()
        wait_until(lambda: network.fired["swallow"] == 1)
        network.heal()
        assert check_health(registry, ["far"], timeout=20.0) == {"far": True}
        late.join()
        # what is known by then is told
        network.refuse()
        assert check_health(registry, ["far"], timeout=1.0, max_age=30.0) == {"far": True}


def test_a_kept_verdict_is_told_while_another_check_is_under_way(registry_of_sqlite: SQLSpec, tmp_path: Path) -> None:
    spec, entered, go_on = registry_of_sqlite, threading.Event(), threading.Event()
    assert state(check_health(spec)) == "up"

    def password() -> str:
        entered.set()
        go_on.wait(20)
        return "x"

    spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=free_port(), password=password), "slow")
    first = threading.Thread(target=check_health, args=(spec, ["slow"]), kwargs={"timeout": 20.0})
    first.start()
    assert entered.wait(20)
    # who asks for a kept one and finds none waits for the check under way, no longer than it may
    late = check_health(spec, ["slow"], timeout=0.1, max_age=5.0)
    assert late.details["slow"].reason == "no answer within 0.1 s"
    assert check_health(spec, ["primary"], timeout=0.1, max_age=30.0) == {"primary": True}
    go_on.set()
    first.join(20)
    assert check_health(spec, ["slow"], max_age=30.0).details["slow"].reason == "the server cannot be reached"


def test_a_check_that_hangs_is_given_up_and_another_one_begun(registry_of_sqlite: SQLSpec) -> None:
    spec, hangs, go_on = registry_of_sqlite, threading.Event(), threading.Event()
    asked = []

    def password() -> str:
        asked.append(1)
        if not hangs.is_set():
            hangs.set()
            go_on.wait(20)
        return "x"

    spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=free_port(), password=password), "slow")
    for age in (0.0, 5.0):
        health = check_health(spec, ["slow"], timeout=0.2, max_age=age).details["slow"]
        assert (health.state, health.reason) == ("down", "no answer within 0.2 s")
    assert len(asked) == 1
    assert check_health(spec, ["slow"]).details["slow"].reason == "the server cannot be reached"
    go_on.set()


@on_servers
def test_who_is_cancelled_leaves_the_check_to_the_others(registry: SQLSpec, database: Database) -> None:
    async def main() -> None:
        with FaultProxy(database.server.port) as network:
            registry.register_config(database.config(port=network.port), "far")
            network.delay(0.2)
            one, other = (
                asyncio.ensure_future(health_check(registry, ["far"], timeout=20.0, max_age=5.0)) for _ in range(2)
            )
            await asyncio.sleep(0.1)
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
            assert await other == {"far": True}
            assert network.fired["delay"]

    asyncio.run(main())
    wait_until(lambda: not database.server.connections())


@on_servers
def test_a_loop_that_ends_under_a_check_leaves_nothing_open(registry: SQLSpec, database: Database) -> None:
    with FaultProxy(database.server.port) as network:
        registry.register_config(database.config(port=network.port), "far")
        network.delay(0.2)

        async def main() -> None:
            asked = asyncio.ensure_future(health_check(registry, ["far"], timeout=20.0))
            await asyncio.sleep(0.1)
            asked.cancel()

        asyncio.run(main())
        assert network.fired["delay"] or network.fired == {}
        network.heal()
        assert state(check_health(registry, ["far"]), "far") == "up"
    wait_until(lambda: not database.server.connections())


# -- the end, and forks


def test_after_close_all_are_down(check: Check, tmp_path: Path) -> None:
    spec = SQLSpec()
    spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")), "primary")
    assert check(spec, max_age=30.0) == {"primary": True}
    spec.close()
    report = check(spec, max_age=30.0)
    assert report.details["primary"].reason == "the registry, or this config, is closed"
    assert check(SQLSpec()) == {}


def test_a_name_that_is_replaced_is_asked_anew(check: Check, registry_of_sqlite: SQLSpec, tmp_path: Path) -> None:
    assert state(check(registry_of_sqlite, max_age=30.0)) == "up"
    away = SQLiteConfig(database=str(tmp_path / "nowhere" / "app.db"))
    registry_of_sqlite.register_config(away, "primary", replace=True)
    assert state(check(registry_of_sqlite, max_age=30.0)) == "down"


@on_servers
def test_a_forked_child_asks_by_itself(registry: SQLSpec, database: Database) -> None:
    with registry.get_connection("primary"):
        pass
    (before,) = database.server.connections()
    assert state(check_health(registry, max_age=30.0)) == "up"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            health = check_health(registry, timeout=20.0, max_age=30.0).details["primary"]
            os.write(writing, f"{health.state} {health.age_seconds}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as told:
        assert told.read() == "up 0.0"
    assert state(check_health(registry)) == "up"
    wait_until(lambda: database.server.connections() == [before])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": ["other"]}, "did you mean"),
        ({"names": "primary"}, "give a list of names"),
        ({"timeout": 0}, "give seconds above 0"),
        ({"max_age": -1.0}, "or 0 to ask anew"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    registry_of_sqlite: SQLSpec, check: Check, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check(registry_of_sqlite, **options)
