"""Which connections are closed and replaced because they are worn, and when."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from sqlspec import ConfigError, ConnectionFacts, RecyclingStrategy, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool, follow_statements
from sqlspec.testing import ScriptedDriver
from tests.callers import Caller, line_up
from tests.conftest import Database
from tests.faults import assert_nothing_is_lost, assert_whole
from tests.servers import wait_until


class Always(RecyclingStrategy):
    def should_recycle(self, facts: ConnectionFacts) -> bool:
        return True


class Noting(RecyclingStrategy):
    """Keep every connection, and remember what was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[ConnectionFacts] = []

    def should_recycle(self, facts: ConnectionFacts) -> bool:
        self.facts.append(facts)
        return False


def make(driver: ScriptedDriver, **options: Any) -> FairQueuePool:
    return FairQueuePool(driver.connect, **{**BEYOND_QUEUEPOOL, "pool_size": 1, "max_overflow": 0, **options})


def make_engine(driver: ScriptedDriver, strategy: RecyclingStrategy) -> sa.Engine:
    engine = driver.engine(**BEYOND_QUEUEPOOL, pool_size=1, recycling=strategy)
    # as the engines of configs and of the plugin
    follow_statements(engine)
    return engine


# -- the rule


@pytest.mark.parametrize(
    ("facts", "is_worn"),
    [
        (ConnectionFacts(age=59.9, query_count=9, error_count=2), False),
        (ConnectionFacts(age=60.0), True),
        (ConnectionFacts(query_count=10), True),
        (ConnectionFacts(error_count=3), True),
        (ConnectionFacts(idle_seconds=1000.0), False),
    ],
)
def test_a_connection_is_worn_when_it_reaches_a_limit(facts: ConnectionFacts, is_worn: bool) -> None:
    assert RecyclingStrategy(60, 10, 3, jitter=0).should_recycle(facts) is is_worn


def test_without_limits_nothing_is_worn() -> None:
    assert not RecyclingStrategy().should_recycle(ConnectionFacts(1e9, 10**9, 10**9, 1e9, 1.0))


def test_jitter_lowers_the_limits_of_each_connection_by_a_share_of_its_own() -> None:
    strategy = RecyclingStrategy(max_age=100, jitter=0.2)
    for spread, limit in {0.0: 100.0, 0.5: 90.0, 1.0: 80.0}.items():
        assert strategy.should_recycle(ConnectionFacts(age=limit, spread=spread))
        assert not strategy.should_recycle(ConnectionFacts(age=limit - 0.1, spread=spread))


@pytest.mark.parametrize(
    "options", [{"max_age": 0}, {"max_queries": -1}, {"max_errors": "3"}, {"jitter": 1}, {"jitter": -0.1}]
)
def test_a_limit_that_means_nothing_is_refused_with_its_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RecyclingStrategy(**options)


def test_a_config_takes_a_strategy_or_a_mapping_of_its_limits() -> None:
    strategy = RecyclingStrategy(max_age=60)
    assert SyncDatabaseConfig(pool_recycling=strategy).pool_recycling is strategy
    made = SyncDatabaseConfig.model_validate({"pool_recycling": {"max_queries": 10, "jitter": 0}}).pool_recycling
    assert repr(made) == "RecyclingStrategy(max_age=None, max_queries=10, max_errors=None, jitter=0)"
    for wrong in ({"max_agee": 1}, {"max_age": 0}, "60"):
        with pytest.raises(ConfigError, match="pool_recycling"):
            SyncDatabaseConfig.model_validate({"pool_recycling": wrong})


# -- when it is asked for, and what follows


def test_a_worn_connection_is_replaced_by_the_next_checkout(driver: ScriptedDriver) -> None:
    engine = make_engine(driver, RecyclingStrategy(max_queries=3, jitter=0))
    opened = []
    for _ in range(7):
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            opened.append(driver.opened)
    assert opened == [1, 1, 1, 2, 2, 2, 3]
    pool: Any = engine.pool
    assert pool.stats().closed == {"recycled": 2}
    engine.dispose()


def test_a_connection_in_use_is_not_recycled_however_worn_it_is(driver: ScriptedDriver) -> None:
    engine = make_engine(driver, RecyclingStrategy(max_queries=2, jitter=0))
    with engine.connect() as connection:
        for _ in range(10):
            connection.exec_driver_sql("SELECT 1")
        assert (driver.opened, driver.closed) == (1, 0)
    engine.dispose()


def test_an_idle_connection_that_becomes_worn_is_closed_and_not_replaced(driver: ScriptedDriver) -> None:
    pool = make(driver, recycling=RecyclingStrategy(max_age=0.2))
    pool.connect().close()
    wait_until(lambda: driver.open_connections == 0)
    assert driver.opened == 1
    assert pool.stats().closed == {"recycled": 1}
    pool.connect().close()
    assert driver.opened == 2
    pool.close()


def test_a_strategy_that_always_says_yes_costs_one_connect_a_checkout(driver: ScriptedDriver) -> None:
    pool = make(driver, recycling=Always(), pool_size=2)
    for checkouts in range(1, 6):
        pool.connect().close()
        assert driver.opened == checkouts
    held = [pool.connect(), pool.connect()]
    callers = line_up(pool, 4)
    for connection in held:
        connection.close()
    for caller in callers:
        caller.answer()
        caller.give_back()
    assert driver.opened == 5 + 2 + 4
    pool.close()
    assert driver.open_connections == 0


def test_a_connection_opened_for_a_waiter_is_not_recycled_before_its_first_use(driver: ScriptedDriver) -> None:
    pool = make(driver, recycling=Always(), pool_size=2)
    held = pool.connect()
    caller = Caller(pool)
    caller.answer()
    assert driver.opened == 2
    caller.give_back()
    held.close()


@pytest.mark.fault(53)
def test_a_strategy_that_fails_keeps_the_connection_and_is_told_once(
    driver: ScriptedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(RecyclingStrategy):
        def should_recycle(self, facts: ConnectionFacts) -> bool:
            raise RuntimeError("it was not meant to happen")

    pool = make(driver, recycling=Broken())
    with caplog.at_level(logging.ERROR, "sqlspec.pool"):
        for _ in range(3):
            pool.connect().close()
    assert driver.opened == 1
    (record,) = caplog.records
    assert "connections are kept" in record.message
    assert "it was not meant to happen" in str(record.exc_info)
    assert_whole(pool, driver)
    pool.close()


def test_an_interrupt_in_a_strategy_loses_no_connection(driver: ScriptedDriver) -> None:
    class Interrupted(RecyclingStrategy):
        def should_recycle(self, facts: ConnectionFacts) -> bool:
            raise KeyboardInterrupt

    pool = make(driver, recycling=Interrupted())
    connection = pool.connect()
    with pytest.raises(KeyboardInterrupt):
        connection.close()
    assert (pool.checkedout(), pool.checkedin()) == (0, 1)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    assert pool.checkedout() == 0
    pool.close()
    assert driver.open_connections == 0


def test_a_strategy_of_ones_own_gets_the_facts_of_the_connection(driver: ScriptedDriver) -> None:
    strategy = Noting()
    engine = make_engine(driver, strategy)
    begin = time.monotonic()
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    (facts,) = strategy.facts[:1]
    assert (facts.query_count, facts.error_count, facts.idle_seconds) == (1, 0, 0.0)
    assert 0.0 < facts.age <= time.monotonic() - begin
    assert 0.0 <= facts.spread <= 1.0
    driver.fail("execute", driver.ProgrammingError, times=1)
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
        connection.exec_driver_sql("SELECT 1")
    facts = strategy.facts[-1]
    assert (facts.query_count, facts.error_count) == (2, 1)
    assert facts.spread == strategy.facts[0].spread
    assert any(seen.idle_seconds > 0 for seen in strategy.facts)
    engine.dispose()


def test_a_commit_that_fails_is_an_error_of_the_connection(driver: ScriptedDriver) -> None:
    strategy = Noting()
    engine = make_engine(driver, strategy)
    driver.fail("commit", driver.IntegrityError, times=1)
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO users VALUES (1)")
    assert strategy.facts[-1].error_count == 1
    engine.dispose()


def test_counts_begin_anew_with_each_connection(driver: ScriptedDriver) -> None:
    strategy = Noting()
    engine = make_engine(driver, strategy)
    for _ in range(2):
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
    assert strategy.facts[-1].query_count == 2
    with engine.connect() as connection:
        connection.invalidate()
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert strategy.facts[-1].query_count == 1
    engine.dispose()


def test_pools_without_a_strategy_count_nothing(driver: ScriptedDriver) -> None:
    pool = make(driver)
    connection: Any = pool.connect()
    assert not hasattr(connection._connection_record, "query_count")
    connection.close()
    pool.close()


def test_connections_opened_together_do_not_all_expire_together(driver: ScriptedDriver) -> None:
    pool = make(driver, recycle=1000, pool_size=20)
    begin = time.monotonic()
    held: list[Any] = [pool.connect() for _ in range(20)]
    end = time.monotonic()
    expire = sorted(connection._connection_record.expires_at for connection in held)
    assert begin + 750 <= expire[0] < expire[-1] <= end + 1000
    # twenty draws of a quarter of 1000 seconds
    assert expire[-1] - expire[0] > 50
    for connection in held:
        connection.close()
    pool.close()


# -- on databases


def test_statements_and_errors_count_whichever_way_they_run(any_spec: Any, database: Database) -> None:
    strategy = Noting()
    any_spec.register_config(
        database.config(pool_size=1, max_overflow=0, pool_recycling=strategy, autocommit=True), name="counted"
    )

    def last() -> tuple[int, int]:
        return strategy.facts[-1].query_count, strategy.facts[-1].error_count

    with any_spec.get_session("counted") as session:
        session.execute("SELECT 1")
    assert last() == (1, 0)
    with any_spec.get_session("counted") as session:
        session.execute(sa.text("SELECT 1"))
    assert last() == (2, 0)
    with any_spec.get_connection("counted") as connection:
        connection.cursor().execute("SELECT 1")
    assert last() == (3, 0)
    with pytest.raises(sa.exc.DBAPIError), any_spec.get_session("counted") as session:
        session.execute("SELECT * FROM nowhere")
    assert last() == (4, 1)
    with pytest.raises(sa.exc.DBAPIError), any_spec.get_session("counted") as session:
        session.execute(sa.text("SELECT * FROM nowhere"))
    assert last() == (5, 2)
    with any_spec.get_connection("counted") as connection, pytest.raises(Exception, match=r"nowhere|no such table"):
        connection.cursor().execute("SELECT * FROM nowhere")
    assert last() == (6, 3)
    # a mistake of the caller's is none of the driver's
    with pytest.raises(sa.exc.SQLAlchemyError), any_spec.get_session("counted") as session:
        session.execute("SELECT ?", ())
    assert last()[1] == 3


@pytest.mark.fault(54)
@pytest.mark.parametrize(
    "limits", [{"max_age": 0.1}, {"max_queries": 20}, {"max_errors": 3}], ids=lambda limits: next(iter(limits))
)
def test_connections_are_recycled_under_load_and_never_in_use(database: Database, limits: dict[str, Any]) -> None:
    in_use_at_close, work_until = [], time.monotonic() + 1.5
    with SQLSpec() as spec:
        config = database.config(pool_size=4, max_overflow=0, pool_recycling=RecyclingStrategy(**limits))
        spec.register_config(config, name="worn")
        engine = spec.get_engine("worn")

        @event.listens_for(engine.pool, "close")
        def note(connection: Any, record: Any) -> None:
            in_use_at_close.append(record.in_use)

        def work() -> None:
            while time.monotonic() < work_until:
                with spec.get_session("worn") as session:
                    assert session.execute("SELECT 1").scalar() == 1
                    if "max_errors" in limits:
                        with pytest.raises(sa.exc.DBAPIError):
                            session.execute("SELECT * FROM nowhere")
                        session.rollback()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        stats = spec.get_pool_stats("worn")
        assert stats.closed["recycled"] >= 4
        assert set(stats.closed) == {"recycled"}
        # one connect at most for each that was recycled
        assert stats.created <= 4 + stats.closed["recycled"]
        assert stats.failed_connects == stats.timeouts == 0
        assert in_use_at_close == [False] * len(in_use_at_close)
        assert_nothing_is_lost(spec)


def test_a_database_in_memory_is_never_recycled() -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:", pool_recycling=Always()))
        with spec.get_session() as session:
            session.execute("CREATE TABLE users (name TEXT)")
        with spec.get_session() as session:
            assert session.execute("SELECT * FROM users").all() == []
