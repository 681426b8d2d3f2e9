"""Warming a pool: connections are opened before anybody needs them, and nothing else changes."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from sqlspec import ConfigError, PoolClosed, SQLSpec, WarmUp, awarm_pool, warm_pool
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.servers import wait_until
from tests.tasks import RegistryInTasks

Warm = Callable[..., WarmUp]


@pytest.fixture
def warm(any_spec: Any) -> Warm:
    """Warm the pool of the threads, or that of the tasks."""
    if isinstance(any_spec, RegistryInTasks):
        return lambda *a, **o: any_spec._loop.call(awarm_pool, any_spec._registry, *a, **o)
    return lambda *a, **o: warm_pool(any_spec, *a, **o)


def test_a_pool_is_warm_with_nothing_checked_out(any_spec: Any, warm: Warm, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=6, max_overflow=0), name="cold")
    assert warm("cold") == WarmUp(opened=5, already_open=0)
    stats = any_spec.get_pool_stats("cold")
    assert (stats.total, stats.checked_out, stats.created, stats.hold.count) == (5, 0, 5, 0)
    assert warm("cold", connections=3) == WarmUp(opened=0, already_open=5)
    assert warm("cold", connections=6) == WarmUp(opened=1, already_open=5)
    with any_spec.get_session("cold") as session:
        assert session.execute("SELECT 1").scalar() == 1
    assert any_spec.get_pool_stats("cold").created == 6


def test_more_than_the_pool_may_have_are_not_waited_for(any_spec: Any, warm: Warm, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=2, max_overflow=1), name="cold")
    assert warm("cold", connections=10) == WarmUp(opened=3, already_open=0, beyond_capacity=7)
    assert any_spec.get_pool_stats("cold").total == 3


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_warm_connections_are_in_no_transaction(any_spec: Any, warm: Warm, database: Database) -> None:
    any_spec.register_config(database.config(application_name="warm"), name="cold")
    assert warm("cold", connections=3).opened == 3
    with any_spec.get_session("primary") as session:
        states = session.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'warm'").scalars().all()
    assert len(states) == 3
    assert set(states) <= {"idle", None}


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(
    any_spec: Any, warm: Warm, database: Database
) -> None:
    with FaultProxy(database.server.port) as hole:
        any_spec.register_config(database.config(port=hole.port), name="cold")
        hole.swallow(later_ones=True)
        begin = time.monotonic()
        report = warm("cold", connections=6, timeout=0.5)
        assert time.monotonic() - begin < 5
        assert (report.opened, len(report.failed)) == (0, 6)
        hole.heal()
        wait_until(lambda: any_spec.get_pool_stats("cold").connecting == 0)
        assert warm("cold", connections=6).opened == 6
        assert any_spec.get_pool_stats("cold").checked_out == 0


def test_failures_are_reported_without_secrets_and_nothing_is_left() -> None:
    def password() -> str:
        raise RuntimeError("the secret is secret")

    with SQLSpec() as spec:
        spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=9, database="no", password="secret"), name="down")
        spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=9, database="no", password=password), name="bare")
        report = warm_pool(spec, "down", connections=3)
        assert (report.opened, len(report.failed)) == (0, 3)
        assert all("OperationalError" in told and "9" in told and "secret" not in told for told in report.failed)
        assert warm_pool(spec, "bare", connections=2).failed == ("RuntimeError",) * 2
        assert spec.get_pool_stats("down").failed_connects == 3
        for name in ("down", "bare"):
            assert (spec.get_pool_stats(name).total, spec._get_pool(name).total()) == (0, 0)


def test_some_may_fail_and_the_others_stay(tmp_path: Any) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        engine, attempts = spec.get_engine(), iter(range(100))

        @event.listens_for(engine, "connect")
        def fail_twice(connection: Any, record: Any) -> None:
            if next(attempts) in {1, 3}:
                raise ValueError("this one not")

        report = warm_pool(spec, connections=5)
        assert (report.opened, report.failed) == (3, ("ValueError",) * 2)
        assert spec.get_pool_stats().total == 3


def test_all_events_of_connecting_fire(spec: SQLSpec) -> None:
    seen = []
    spec._get_pool("primary").dispose()
    event.listen(spec.get_engine("primary"), "connect", lambda *_: seen.append("connect"))
    event.listen(spec.get_engine("primary"), "checkout", lambda *_: seen.append("checkout"))
    assert warm_pool(spec, "primary", 3).opened == 3
    assert seen == ["connect"] * 3


def test_a_pool_is_warmed_four_connections_at_a_time(tmp_path: Any) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        # SQLAlchemy lets the first connection of an engine be alone
        spec.get_connection().close()
        go, begun = threading.Event(), []

        @event.listens_for(spec.get_engine(), "connect")
        def wait(connection: Any, record: Any) -> None:
            begun.append(connection)
            go.wait(20)

        reports: list[WarmUp] = []
        thread = threading.Thread(target=lambda: reports.append(warm_pool(spec, connections=8)))
        thread.start()
        wait_until(lambda: len(begun) == 4)
        assert spec.get_pool_stats().connecting == 4
        go.set()
        thread.join(20)
        assert reports == [WarmUp(opened=7, already_open=1)]


def test_connections_beyond_the_size_are_closed_when_they_were_not_needed(tmp_path: Any) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db"), pool_size=1, max_overflow=3))
        spec._get_pool()._linger_seconds = 0.2
        assert warm_pool(spec, connections=4).opened == 4
        wait_until(lambda: spec.get_pool_stats().total == 1)
        assert spec.get_pool_stats().closed == {"lingered": 3}


def test_who_waits_gets_what_is_opened(tmp_path: Any) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db"), pool_size=2, max_overflow=0))
        held = spec.create_connection()
        report = warm_pool(spec, connections=2)
        assert report == WarmUp(opened=1, already_open=1)
        with spec.get_connection(timeout=1):
            assert spec.get_pool_stats().created == 2
        held.close()


@pytest.mark.parametrize("options", [{"connections": 0}, {"connections": 2.5}, {"timeout": 0}, {"timeout": None}])
def test_arguments_that_mean_nothing_are_refused(tmp_path: Any, options: dict[str, Any]) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        with pytest.raises(ConfigError, match=next(iter(options))):
            warm_pool(spec, **options)
        with pytest.raises(ConfigError, match=next(iter(options))):
            asyncio.run(awarm_pool(spec, **options))


def test_without_a_pool_there_is_nothing_to_warm(tmp_path: Any) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "app.db")), name="direct")
        with pytest.raises(ConfigError, match="'direct' has no pool to warm"):
            warm_pool(spec, "direct")
        with pytest.raises(ConfigError, match="'direct' has no pool to warm"):
            asyncio.run(awarm_pool(spec, "direct"))
        with pytest.raises(ConfigError, match="did you mean 'direct'"):
            warm_pool(spec, "dirct")
    with pytest.raises(PoolClosed):
        warm_pool(spec, "direct")


@pytest.mark.fault(81)
def test_without_threads_the_caller_opens_by_itself(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert warm_pool(spec, connections=3).opened == 3


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_cancelled_warming_leaves_nothing(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        with FaultProxy(database.server.port) as hole, SQLSpec() as own:
            own.register_config(database.config(port=hole.port))
            hole.swallow(later_ones=True)
            task = asyncio.create_task(awarm_pool(own, connections=4))
            while hole.fired["swallow"] < 4:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            pool: Any = own.get_async_engine().pool
            assert pool.total() == 0
            hole.heal()
            assert (await awarm_pool(own, connections=4)).opened == 4
            await own.aclose()

    asyncio.run(main())


def test_a_report_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WarmUp(1, 0).opened = 2  # type: ignore[misc]  # that it cannot be done is what is tested
