"""A breaker in a config guards the opening of connections, and nothing else."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, exc

from sqlspec import (
    CircuitBreaker,
    CircuitOpenError,
    ConfigError,
    ConnectionTimeout,
    EnvironmentConfig,
    PoolTimeout,
    SQLSpec,
    WarmUp,
    warm_pool,
)
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.resilience import breaker as module
from sqlspec.resilience.classification import is_unavailable
from sqlspec.testing import FaultProxy
from tests.callers import Caller
from tests.conftest import Database
from tests.servers import PASSWORD, wait_until
from tests.test_breaker import Clock

SERVERS = pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
WHO = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
DOWN = exc.DBAPIError, OSError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def proxy(database: Database) -> Iterator[FaultProxy]:
    with FaultProxy(database.server.port) as proxy:
        yield proxy
        proxy.heal()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=3, recovery_timeout=60, name="orders")


@pytest.fixture
def register(any_spec: Any, database: Database, proxy: FaultProxy, breaker: CircuitBreaker) -> Callable[..., Any]:
    """Register a config behind the proxy with the breaker, and return the registry."""

    def register(name: str = "guarded", **options: Any) -> Any:
        usual = {"port": proxy.port, "breaker": breaker, "pool_size": 2, "max_overflow": 0}
        any_spec.register_config(database.config(**{**usual, **options}), name=name)
        return any_spec

    return register


def ask(spec: Any, name: str = "guarded", **options: Any) -> Any:
    with spec.get_session(name, **options) as session:
        return session.execute("SELECT 1").scalar_one()


def trip(breaker: CircuitBreaker) -> None:
    for _ in range(breaker.failure_threshold):
        breaker.record_failure(ConnectionRefusedError("down"))
    assert breaker.state == "open"


def fail_until_open(spec: Any, breaker: CircuitBreaker, name: str = "guarded") -> None:
    # who waits long for another to connect does so as well: both fail then
    while breaker.state != "open":
        with pytest.raises((*DOWN, CircuitOpenError)):
            ask(spec, name)


# -- on servers, in threads and tasks


@pytest.mark.fault(77)
@SERVERS
def test_while_it_is_open_nobody_connects_and_then_one_does(
    register: Any, proxy: FaultProxy, breaker: CircuitBreaker, clock: Clock
) -> None:
    spec = register()
    proxy.refuse()
    fail_until_open(spec, breaker)
    fired = proxy.fired["refuse"]
    clock.now += 20
    for _ in range(3):
        with pytest.raises(CircuitOpenError, match=r"orders is open after 3 failures in a row") as caught:
            ask(spec)
        assert caught.value.retry_after == 40
        assert caught.value.__cause__ is not None
        assert is_unavailable(caught.value.__cause__)
    assert proxy.fired["refuse"] == fired
    stats = spec.get_pool_stats("guarded")
    assert (stats.failed_connects, stats.refused, stats.total, stats.checked_out) == (3, 3, 0, 0)
    clock.now += 40
    with pytest.raises(DOWN):
        ask(spec)
    with pytest.raises(CircuitOpenError):
        ask(spec)
    proxy.heal()
    clock.now += 60
    assert ask(spec) == 1
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


@SERVERS
def test_connections_serve_on_and_only_what_would_connect_is_refused(
    register: Any, proxy: FaultProxy, breaker: CircuitBreaker
) -> None:
    spec = register()
    with spec.get_connection("guarded"):
        # later ones do not come through
        proxy.cut_after(lambda: 0)
        # opened aside, since the other might come back
        fail_until_open(spec, breaker)
        with pytest.raises(CircuitOpenError):
            ask(spec)
    for _ in range(10):
        assert ask(spec) == 1
    assert proxy.fired["cut_after"] >= 1
    assert (breaker.state, spec.get_pool_stats("guarded").created) == ("open", 1)


@SERVERS
def test_dead_idle_connections_are_not_replaced_while_it_is_open(
    register: Any, proxy: FaultProxy, breaker: CircuitBreaker, clock: Clock
) -> None:
    spec = register(pool_size=5)
    held = [spec.create_connection("guarded") for _ in range(5)]
    for connection in held:
        connection.close()
    proxy.refuse()
    trip(breaker)
    for _ in range(6):
        with pytest.raises(CircuitOpenError):
            ask(spec)
    stats = spec.get_pool_stats("guarded")
    assert (stats.created, stats.failed_connects, stats.refused, stats.total) == (5, 0, 6, 0)
    assert stats.closed == {"disconnect": 5}
    proxy.heal()
    clock.now += 60
    assert ask(spec) == 1


@SERVERS
@pytest.mark.parametrize("uses_last", [False, True])
def test_a_place_that_was_refused_is_not_in_the_way_of_living_connections(
    register: Any, database: Database, breaker: CircuitBreaker, uses_last: bool
) -> None:
    spec = register(pool_use_lifo=uses_last)
    first, second = spec.get_session("guarded"), spec.get_session("guarded")
    with first, second:
        numbers = [session.execute(WHO[database.name]).scalar_one() for session in (first, second)]
    # the one that comes next
    number = numbers[0 if uses_last else 1]
    database.server.end_connection(number)
    wait_until(lambda: number not in database.server.connections())
    trip(breaker)
    refused = 0
    for _ in range(10):
        try:
            assert ask(spec) == 1
        except CircuitOpenError:
            refused += 1
    assert refused == 1
    assert spec.get_pool_stats("guarded").checked_in == 1


@pytest.mark.fault(78)
@SERVERS
def test_an_exhausted_pool_does_not_trip_it(register: Any, breaker: CircuitBreaker) -> None:
    spec = register(pool_size=1)
    with spec.get_connection("guarded"):
        for _ in range(5):
            with pytest.raises(PoolTimeout):
                ask(spec, timeout=0.05)
    assert (breaker.state, breaker.failure_count) == ("closed", 0)
    assert ask(spec) == 1


@SERVERS
def test_a_caller_who_had_no_time_left_says_nothing_about_the_server(
    register: Any, proxy: FaultProxy, breaker: CircuitBreaker
) -> None:
    spec = register()
    proxy.delay(0.3)
    for _ in range(4):
        with pytest.raises(ConnectionTimeout) as caught:
            ask(spec, timeout=0.1)
        assert caught.value.phase == "connect"
        # nor does it to a breaker around the call
        assert not is_unavailable(caught.value)
    assert (breaker.state, breaker.failure_count) == ("closed", 0)
    proxy.heal()
    assert ask(spec) == 1


@SERVERS
def test_a_server_that_says_nothing_trips_it(register: Any, proxy: FaultProxy, breaker: CircuitBreaker) -> None:
    spec = register(connect_timeout=0.3)
    proxy.swallow(later_ones=True)
    fail_until_open(spec, breaker)
    with pytest.raises(CircuitOpenError, match="the last of them") as caught:
        ask(spec)
    assert "connecting took longer than 0.3 s" in str(caught.value.__cause__)


@pytest.mark.fault(21)
@SERVERS
def test_a_wrong_password_does_not_trip_it(register: Any, breaker: CircuitBreaker) -> None:
    spec = register(password="wrong")
    for _ in range(4):
        with pytest.raises(exc.DBAPIError):
            ask(spec)
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


@SERVERS
def test_configs_that_share_it_share_what_it_knows(
    register: Any, proxy: FaultProxy, breaker: CircuitBreaker, clock: Clock
) -> None:
    register("orders")
    spec = register("reports", pool_size=3)
    proxy.refuse()
    fail_until_open(spec, breaker, "orders")
    with pytest.raises(CircuitOpenError):
        ask(spec, "reports")
    proxy.heal()
    clock.now += 60
    assert ask(spec, "reports") == 1
    assert ask(spec, "orders") == 1


@SERVERS
def test_a_refusal_shows_no_password(register: Any, proxy: FaultProxy, breaker: CircuitBreaker) -> None:
    spec = register()
    engine = spec.get_engine("guarded")

    @event.listens_for(engine, "do_connect")
    def give_password(dialect: Any, record: Any, arguments: Any, parameters: Any) -> None:
        parameters["passwd" if dialect.driver == "mysqldb" else "password"] = PASSWORD

    proxy.refuse()
    fail_until_open(spec, breaker)
    with pytest.raises(CircuitOpenError) as caught:
        ask(spec)
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is cause.__context__ is cause.__cause__ is None
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    # SQLAlchemy's own frame has what the listener gave it
    own = [str(frame.locals) for frame in frames if "/sqlspec/" in frame.filename]
    assert any("open_connection" in frame.name for frame in frames)
    assert PASSWORD not in "".join([*own, str(caught.value), repr(cause), repr(vars(cause)), repr(breaker)])


@SERVERS
def test_a_task_that_is_cancelled_while_it_probes_frees_the_place(
    database: Database, proxy: FaultProxy, breaker: CircuitBreaker, clock: Clock
) -> None:
    async def main() -> None:
        async with SQLSpec() as spec:
            spec.register_config(database.config(port=proxy.port, breaker=breaker))

            async def use() -> Any:
                async with spec.get_async_session() as session:
                    return await session.execute("SELECT 1").scalar_one()

            trip(breaker)
            clock.now += 60
            proxy.swallow(later_ones=True)
            probe = asyncio.create_task(use())
            while breaker.state != "half-open" or not proxy.fired["swallow"]:
                await asyncio.sleep(0.01)
            with pytest.raises(CircuitOpenError):
                await use()
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe
            proxy.heal()
            assert await use() == 1
            assert breaker.state == "closed"

    asyncio.run(main())


# -- what the pool does by itself


@pytest.fixture
def sqlite(tmp_path: Path, breaker: CircuitBreaker) -> Iterator[Callable[..., SQLSpec]]:
    """Make registries of a SQLite file that the breaker guards."""
    specs: list[SQLSpec] = []

    def make(**options: Any) -> SQLSpec:
        specs.append(SQLSpec())
        specs[-1].register_config(SQLiteConfig(database=str(tmp_path / "app.db"), breaker=breaker, **options))
        return specs[-1]

    yield make
    for spec in specs:
        assert spec.get_pool_stats().checked_out == 0
        spec.close()


def test_all_who_wait_for_a_connection_that_nobody_may_open_are_told_at_once(
    sqlite: Callable[..., SQLSpec], breaker: CircuitBreaker
) -> None:
    spec = sqlite(pool_size=1, max_overflow=10)
    pool: Any = spec._get_pool()
    with spec.get_connection():
        trip(breaker)
        callers = [Caller(pool) for _ in range(20)]
        for caller in callers:
            with pytest.raises(CircuitOpenError):
                caller.answer()
            caller.give_back()
    stats = pool.stats()
    assert (stats.created, stats.failed_connects, stats.waiters, stats.timeouts) == (1, 0, 0, 0)
    assert stats.refused >= 20
    # what speaks against a larger pool
    assert pool.read(time.monotonic()).failed_connects == stats.refused
    wait_until(lambda: pool.stats().connecting == 0)
    assert ask(spec, "default") == 1


def test_who_waits_in_vain_is_told_why_connecting_failed_and_not_that_it_was_refused(
    sqlite: Callable[..., SQLSpec], breaker: CircuitBreaker
) -> None:
    spec = sqlite(pool_size=1, max_overflow=1)

    @event.listens_for(spec.get_engine(), "do_connect")
    def be_down(*_: Any) -> None:
        if spec.get_pool_stats().created:
            raise ConnectionRefusedError("nobody is there")

    with spec.get_connection():
        with pytest.raises(ConnectionRefusedError):
            ask(spec, "default")
        trip(breaker)
        event.remove(spec.get_engine(), "do_connect", be_down)
        with pytest.raises(CircuitOpenError):
            ask(spec, "default")
        spec.resize_pool(pool_size=1, max_overflow=0)
        with pytest.raises(PoolTimeout, match=r"failed .* ago: ConnectionRefusedError") as caught:
            ask(spec, "default", timeout=0.1)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_connections_that_are_kept_ready_wait_for_the_probe_and_are_it(
    sqlite: Callable[..., SQLSpec], breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    spec = sqlite(pool_size=3, min_pool_size=3)
    pool: Any = spec._get_pool()
    assert ask(spec, "default") == 1
    trip(breaker)
    caplog.clear()
    for _ in range(5):
        pool.keep_house()
        wait_until(lambda: not pool._pool.is_kept_up)
    assert 20 < pool._pool.retry_at - time.monotonic() <= 30
    assert (pool.stats().failed_connects, pool._pool.failures) == (0, 0)
    assert pool.stats().refused <= 1
    assert caplog.text == ""
    clock.now += 60
    pool._pool.retry_at = 0.0
    pool.keep_house()
    wait_until(lambda: pool.stats().total == 3)
    assert breaker.state == "closed"


def test_warming_reports_that_it_is_open(sqlite: Callable[..., SQLSpec], breaker: CircuitBreaker) -> None:
    spec = sqlite(pool_size=3)
    trip(breaker)
    report = warm_pool(spec, connections=3)
    assert isinstance(report, WarmUp)
    assert (report.opened, len(report.failed)) == (0, 3)
    assert all(told.startswith("CircuitOpenError: orders is open after 3 failures") for told in report.failed)


def test_direct_connections_and_engines_are_guarded(tmp_path: Path, breaker: CircuitBreaker, clock: Clock) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "app.db"), breaker=breaker))
        with spec.create_connection() as kept:
            trip(breaker)
            with pytest.raises(CircuitOpenError):
                spec.create_connection()
            with pytest.raises(CircuitOpenError):
                spec.get_engine().connect()
            assert kept.cursor().execute("SELECT 1").fetchone() == (1,)
        clock.now += 60
        spec.create_connection().close()
        assert breaker.state == "closed"


# -- in a config


def test_a_config_with_a_breaker_is_copied_compared_and_shown(breaker: CircuitBreaker) -> None:
    config = SQLiteConfig(database="app.db", breaker=breaker)
    copies = [copy.copy(config), copy.deepcopy(config), config.model_copy(deep=True), config.model_copy()]
    copies.append(config.model_copy(update={"pool_size": config.pool_size}))
    assert [copied.breaker is breaker for copied in copies] == [True] * 5
    assert copies == [config] * 5
    assert hash(config) == hash(copies[0])
    assert config != SQLiteConfig(database="app.db", breaker=CircuitBreaker())
    assert "breaker=<CircuitBreaker 'orders', closed: 0 of 3 failures>" in repr(config)
    with SQLSpec() as spec:
        spec.register_config(config)
        assert "<CircuitBreaker 'orders', closed: 0 of 3 failures>" in repr(spec._manager("default"))


def test_a_config_with_a_breaker_cannot_be_pickled_and_says_what_to_do(breaker: CircuitBreaker) -> None:
    with pytest.raises(TypeError, match="make one in the other process"):
        pickle.dumps(SQLiteConfig(database="app.db", breaker=breaker))


@pytest.mark.parametrize("given", ["on", True, {"failure_threshold": 3}, CircuitBreaker])
def test_what_is_no_breaker_is_refused(given: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"breaker: it is a CircuitBreaker\(\.\.\.\), an object that no text"
    ) as caught:
        SQLiteConfig(database="app.db", breaker=given)
    assert caught.value.field == "breaker"


def test_neither_the_environment_nor_a_file_nor_a_url_describes_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://h/d")
    monkeypatch.setenv("DB_BREAKER", "on")
    with pytest.raises(ConfigError, match=r"^DB_BREAKER: it is a CircuitBreaker"):
        EnvironmentConfig.from_env()
    monkeypatch.delenv("DB_BREAKER")
    config = EnvironmentConfig.from_env()
    assert config.breaker is None
    assert config.model_copy(update={"breaker": CircuitBreaker()}).breaker is not None
    path = tmp_path / "sqlspec.toml"
    path.write_text('[primary]\nurl = "sqlite:///x"\nbreaker = {failure_threshold = 3}\n')
    with pytest.raises(ConfigError, match=r"line 3, \[primary\].*it is a CircuitBreaker"):
        SQLSpec.from_toml(path)
    with pytest.raises(ConfigError, match="it is a CircuitBreaker"):
        PostgreSQLConfig(url="postgresql://h/d?breaker=on")


def test_a_probe_must_be_able_to_fail_before_it_is_given_up() -> None:
    with pytest.raises(ConfigError, match=r"probe_timeout=10 is not above connect_timeout=10"):
        PostgreSQLConfig(breaker=CircuitBreaker(probe_timeout=10))
    assert PostgreSQLConfig(breaker=CircuitBreaker()).breaker is not None
    assert PostgreSQLConfig(breaker=CircuitBreaker(probe_timeout=10), connect_timeout=9).breaker is not None
