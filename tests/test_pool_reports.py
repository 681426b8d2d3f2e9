"""What a pool says: of those who hold its connections, and of itself."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec import Holder, PoolStats, PoolTimeout, SQLSpec, SQLSpecError
from sqlspec.pool import FairQueuePool, Timing
from sqlspec.pool.places import Owner, shape
from sqlspec.testing import ScriptedDriver
from tests.callers import Caller, line_up
from tests.conftest import Database
from tests.faults import assert_whole
from tests.servers import wait_until


@pytest.fixture
def driver() -> Iterator[ScriptedDriver]:
    driver = ScriptedDriver()
    yield driver
    driver.heal()


def make(driver: ScriptedDriver, **options: Any) -> FairQueuePool:
    return FairQueuePool(driver.connect, **{"pool_size": 2, "max_overflow": 0, "timeout": 0.05, **options})


def explained(pool: Any) -> str:
    """Return what a checkout is told that nobody serves, by a thread that holds nothing."""
    caller = Caller(pool)
    with pytest.raises(PoolTimeout) as caught:
        caller.answer()
    return str(caught.value)


def list_users(engine: sa.Engine) -> sa.Connection:
    connection = engine.connect()
    connection.execute(sa.text("SELECT * FROM users WHERE name = :name"), {"name": "s3cret"})
    return connection


def export_orders(engine: sa.Engine) -> sa.Connection:
    return engine.connect()


# -- exhaustion


def test_an_exhausted_pool_names_the_places_that_hold_it_with_counts_and_ages(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=3, max_overflow=0, pool_timeout=0.05)
    from sqlspec.pool import follow_statements

    follow_statements(engine)
    held = [list_users(engine), list_users(engine), export_orders(engine)]
    text = explained(engine.pool)
    first, users, orders, hint = text.splitlines()
    assert first.startswith("QueuePool limit of size 3 overflow 0 reached, connection timed out, timeout 0.05: 3 ")
    assert f"2 held at {__file__}:" in users
    assert "in list_users for " in users
    assert users.endswith("thread MainThread; last statement: SELECT * FROM users WHERE name = ?")
    assert f"1 held at {__file__}:" in orders
    assert "in export_orders" in orders
    assert "raise pool_size or max_overflow" in hint
    assert "s3cret" not in text
    for connection in held:
        connection.close()


def test_a_caller_that_holds_a_connection_itself_is_told_so(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=1)
    with pool.connect(), pytest.raises(PoolTimeout, match="this caller holds a connection itself, checked out at "):
        pool.connect()


@pytest.mark.fault(48)
def test_holders_that_wait_for_a_second_connection_are_found_out(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=2)
    both_hold, told = threading.Barrier(2), []

    def nest() -> None:
        with pool.connect():
            both_hold.wait(20)
            try:
                pool.connect(timeout=1.0).close()
            except PoolTimeout as error:
                told.append(str(error))

    threads = [threading.Thread(target=nest) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: pool.stats().waiters == 2)
    assert "2 of the holders wait for a second connection" in explained(pool)
    for thread in threads:
        thread.join(20)
    assert told
    assert_whole(pool, driver)


@pytest.mark.fault(34)
def test_a_holder_that_has_ended_is_called_a_leak(driver: ScriptedDriver) -> None:
    pool, kept = make(driver, pool_size=1), []
    thread = threading.Thread(target=lambda: kept.append(pool.connect()), name="worker-7")
    thread.start()
    thread.join()
    text = explained(pool)
    assert "by thread worker-7 (ended)" in text
    assert "has ended without closing its connection" in text
    kept.pop().close()
    assert_whole(pool, driver)


def test_a_database_that_is_down_is_the_cause_of_a_timeout(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=2)
    held = pool.connect()
    driver.fail("connect", driver.OperationalError("connection refused"), times=1)
    with pytest.raises(driver.OperationalError):
        pool.connect()
    driver.hang("connect")
    connecting = Caller(pool)
    wait_until(lambda: pool.stats().connecting == 1)
    caller = Caller(pool)
    with pytest.raises(PoolTimeout) as caught:
        caller.answer()
    assert "1 checked out, 1 connecting" in str(caught.value)
    assert "s ago: OperationalError, the cause of this error" in str(caught.value)
    assert "see whether it is up" in str(caught.value)
    assert isinstance(caught.value.__cause__, driver.OperationalError)
    assert str(caught.value.__cause__) == "connection refused"
    assert caught.value.__cause__.__traceback__ is None
    driver.heal()
    connecting.answer()
    connecting.give_back()
    held.close()
    assert make(driver).stats().failed_connects == 0


def test_a_failure_of_long_ago_is_no_cause(driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(driver, pool_size=2)
    held = pool.connect()
    driver.fail("connect", times=1)
    with pytest.raises(driver.Error):
        pool.connect()
    pool.resize(1)
    read = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: read() + 7200)
    with pytest.raises(PoolTimeout) as caught:
        Caller(pool).answer()
    assert caught.value.__cause__ is None
    assert "all are busy" in str(caught.value) or "held for long" in str(caught.value)
    held.close()


@pytest.mark.parametrize(
    ("statement", "quote", "shown"),
    [
        ("SELECT * FROM t WHERE id = 12", '"', "SELECT * FROM t WHERE id = ?"),
        ("SELECT 'a' FROM t", '"', "SELECT …"),
        ("ALTER USER bob PASSWORD 'hush'", '"', "ALTER USER bob PASSWORD …"),
        ("SELECT $q$it$q$", '"', "SELECT …"),
        ("SELECT $1, %s, :p1", '"', "SELECT $1, %s, :p1"),
        ('SELECT "Name" FROM t', '"', 'SELECT "Name" FROM t'),
        ('SELECT "hush" FROM t', "`", "SELECT …"),
        ("SELECT `Name`\n  FROM t1", "`", "SELECT `Name` FROM t1"),
        ('SELECT a FROM t WHERE name = "hush"', "", "SELECT a FROM t WHERE name = …"),
        ("SELECT a /* hush */ FROM t -- hush\nWHERE b = 5%7", '"', "SELECT a FROM t WHERE b = ?%?"),
        ("SELECT a FROM t /* hush", '"', "SELECT a FROM t"),
        ("SELECT a /* hush\nhush */ FROM t /* hush\nhush", '"', "SELECT a FROM t"),
        ("SELECT a /* hush /* hush */ hush */ FROM t", '"', "SELECT a …"),
        ("SELECT a #>> 'hush\nhush' FROM t", '"', "SELECT a #>> …"),
        ("SELECT a # hush\nFROM t", "`", "SELECT a FROM t"),
        ("SELECT 5--'hush\nhush'", "`", "SELECT ?-- …"),
        ("SELECT \"a--b\", 'hush\nhush'", '"', 'SELECT "a--b", …'),
        ("SELECT [a] FROM t WHERE name = 'hush'", "[", "SELECT [a] FROM t WHERE name = …"),
        ("SELECT 1.5e3, 0xFF", '"', "SELECT ?, ?"),
        ("SELECT " + "a, " * 200, '"', "SELECT " + "a, " * 37 + "a …"),
    ],
)
def test_a_statement_is_shown_without_its_values(statement: str, quote: str, shown: str) -> None:
    assert shape(statement, quote) == shown


# -- holders


def test_holders_are_listed_with_place_owner_age_and_statement(spec: SQLSpec) -> None:
    assert spec.get_holders("primary") == []
    with spec.get_session("primary") as session:
        session.execute("SELECT count(*) FROM users WHERE name = ?", ("s3cret",))
        (holder,) = spec.get_holders("primary")
        assert isinstance(holder, Holder)
        assert holder.place.startswith(f"{__file__}:")
        assert holder.place.endswith(" in test_holders_are_listed_with_place_owner_age_and_statement")
        assert (holder.owner, holder.seconds < 20) == ("thread MainThread", True)
        assert str(holder.statement).startswith("SELECT count(*) FROM users WHERE name = ")
        assert "s3cret" not in repr(holder)
        session.execute(sa.select(sa.column("name")).select_from(sa.table("users")))
        assert spec.get_holders("primary")[0].statement == "SELECT name FROM users"
    with spec.get_connection("primary") as connection:
        connection.cursor().execute("SELECT 1")
        assert spec.get_holders("primary")[0].statement == "SELECT ?"


def test_a_thread_of_another_kind_is_named_as_well() -> None:
    class Greenlet:
        """What gevent gives for a thread, of which it is no subclass."""

        name = "Dummy-1"

        def is_alive(self) -> bool:
            return True

    thread: Any = Greenlet()
    assert str(Owner(thread)) == "thread Dummy-1"


def test_without_a_pool_there_are_no_holders(tmp_path: Any) -> None:
    from sqlspec.adapters import SQLiteConnectionConfig

    with SQLSpec() as spec:
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "a.db")))
        with spec.get_connection():
            assert spec.get_holders() == []


def test_a_pool_is_resized_by_its_name(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(pool_size=1, max_overflow=0, pool_nested_checkout="allow"), name="small")
    with spec.get_connection("small"):
        spec.resize_pool("small", pool_size=2)
        with spec.get_connection("small", timeout=10):
            assert spec.get_pool_stats("small").checked_out == 2
    with pytest.raises(ValueError, match="pool_size=0"):
        spec.resize_pool("small", pool_size=0)


# -- nested checkouts


def test_a_nested_checkout_is_warned_of_once_a_place(driver: ScriptedDriver, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(driver, nested_checkout="warn")
    for _ in range(3):
        with pool.connect(), pool.connect():
            pass
    (record,) = [record for record in caplog.records if record.name == "sqlspec.pool"]
    told = record.getMessage()
    assert "thread MainThread asks for another connection while it holds one, checked out at " in told
    assert told.count(__file__) == 2


def test_a_nested_checkout_may_be_refused(driver: ScriptedDriver) -> None:
    pool = make(driver, nested_checkout="refuse")
    with pool.connect(), pytest.raises(SQLSpecError, match="use that one, or close it first"):
        pool.connect()
    pool.connect().close()
    assert pool.stats().refused == 1


def test_what_another_thread_gave_back_is_not_held_any_more(driver: ScriptedDriver) -> None:
    pool = make(driver, nested_checkout="refuse")
    held = pool.connect()
    giving_back = threading.Thread(target=held.close)
    giving_back.start()
    giving_back.join()
    pool.connect().close()


def test_a_thread_that_serves_one_context_after_the_other_does_not_nest(driver: ScriptedDriver) -> None:
    # as worker threads of web frameworks do: the request before goes on elsewhere, with its connection
    pool = make(driver, nested_checkout="refuse")
    first = contextvars.copy_context().run(pool.connect)
    second = contextvars.copy_context().run(pool.connect)
    first.close()
    second.close()


# -- leaks


@pytest.mark.fault(33)
def test_a_dropped_connection_comes_back_and_is_reported_with_its_place(
    driver: ScriptedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make(driver, pool_size=1)
    connection = pool.connect()
    del connection
    gc.collect()
    assert (pool.stats().checked_in, pool.stats().dropped) == (1, 1)
    (record,) = [record for record in caplog.records if record.name == "sqlspec.pool"]
    assert "the garbage collector gave it back" in record.getMessage()
    assert f"by thread MainThread at {__file__}:" in record.getMessage()
    pool.connect().close()
    assert driver.opened == 1
    assert_whole(pool, driver)


@pytest.mark.fault(33)
def test_a_connection_in_an_unreachable_cycle_serves_who_waits_for_it(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=1, max_overflow=0, pool_timeout=20)
    gc.collect()
    gc.disable()
    try:
        connection = engine.connect()
        connection.execute(sa.text("SELECT 1"))
        # begun by itself, it refers to its transaction, and that to it
        del connection
        begin = time.monotonic()
        with engine.connect():
            assert time.monotonic() - begin < 20
    finally:
        gc.enable()
    assert_whole(engine.pool, driver)


@pytest.mark.fault(33)
def test_a_connection_in_an_unreachable_cycle_is_found_while_others_come_and_go(driver: ScriptedDriver) -> None:
    engine, over = driver.engine(pool_size=2, max_overflow=0, pool_timeout=20), threading.Event()

    def work() -> None:
        while not over.is_set():
            with engine.connect():
                time.sleep(0.01)

    gc.collect()
    gc.disable()
    threads = [threading.Thread(target=work) for _ in range(60)]
    try:
        connection = engine.connect()
        connection.execute(sa.text("SELECT 1"))
        del connection
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.pool.stats().dropped == 1, seconds=20)
    finally:
        gc.enable()
        over.set()
        for thread in threads:
            thread.join()
    assert_whole(engine.pool, driver)


def test_who_waits_for_connections_that_come_back_has_no_garbage_collected(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=1, timeout=20)
    moments: list[float] = []
    collections: list[str] = []

    def work() -> None:
        for _ in range(3):
            with pool.connect():
                moments.append(time.monotonic())
                time.sleep(0.02)

    def note(phase: str, _: dict[str, int]) -> None:
        collections.append(phase)

    threads = [threading.Thread(target=work) for _ in range(30)]
    gc.collect()
    gc.disable()
    gc.callbacks.append(note)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    longest = max(after - before for before, after in itertools.pairwise(moments))
    waited = pool.stats().wait
    assert waited.sum > 0.25 * waited.count
    # where the machine has held one of them up, it was missed
    assert not collections or longest > 0.2
    assert_whole(pool, driver)


@pytest.mark.fault(32)
def test_a_leak_is_reported_once_a_checkout(driver: ScriptedDriver, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(driver, leak_seconds=0.05)

    def reports() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "is it closed on every path?" in record.getMessage()]

    first = pool.connect()
    wait_until(lambda: len(reports()) == 1)
    second = pool.connect()
    wait_until(lambda: len(reports()) == 2)
    assert all(f"at {__file__}:" in record.getMessage() for record in reports())
    first.close()
    second.close()
    pool.connect().close()
    # the thread that looks after other pools may go on
    wait_until(lambda: not pool._pool.is_looked_after)
    assert len(reports()) == 2
    assert_whole(pool, driver)


# -- statistics


def test_figures_agree_while_many_threads_work(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=3, max_overflow=3, timeout=20)
    until, wrong = time.monotonic() + 0.5, []

    def work() -> None:
        while time.monotonic() < until:
            with pool.connect():
                pass

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        stats = pool.stats()
        figures = (stats.checked_in, stats.checked_out, stats.overflow, stats.waiters, stats.connecting)
        if stats.checked_in + stats.checked_out != stats.total or min(figures) < 0 or stats.total > 6:
            wrong.append(stats)
    for thread in threads:
        thread.join(20)
    stats = pool.stats()
    assert wrong == []
    assert stats.created - sum(stats.closed.values()) == stats.total == driver.open_connections
    assert (stats.checked_out, stats.waiters, stats.connecting) == (0, 0, 0)


def test_every_checkout_is_counted_with_its_times(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=1, timeout=20)
    driver.slow("connect", 0.02, times=1)
    held = pool.connect()
    (caller,) = line_up(pool, 1)
    time.sleep(0.02)
    held.close()
    caller.answer()
    caller.give_back()
    for _ in range(3000):
        pool.connect().close()
    stats = pool.stats()
    assert (stats.connect.count, stats.wait.count, stats.hold.count) == (1, 1, 3002)
    assert 0.02 <= stats.connect.sum == stats.connect.max < 10
    assert 0.01 <= stats.wait.max < 10
    assert sum(stats.hold.buckets.values()) == 3002
    assert stats.hold.sum < 20


def test_connections_are_counted_as_closed_by_their_reason(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=1, max_overflow=1, pool_recycle=3600, monotonic=True)
    pool: Any = engine.pool
    with engine.connect() as connection:
        connection.invalidate()
    driver.fail("execute", times=1)
    with pytest.raises(sa.exc.DBAPIError), engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    with engine.connect() as connection:
        connection.connection.detach()
    with engine.connect(), engine.connect():
        pass
    engine.dispose()
    assert dict(pool.stats().closed) == {"invalidated": 1, "disconnect": 1, "detached": 1, "overflow": 1, "disposed": 1}
    assert (pool.stats().disconnects, pool.stats().created) == (1, 5)


def test_a_timing_sorts_durations_into_buckets() -> None:
    timing = Timing().plus([0.0005, 0.001, 0.3]).plus([20.0])
    assert (timing.count, timing.max, round(timing.sum, 4)) == (4, 20.0, 20.3015)
    assert {bound: count for bound, count in timing.buckets.items() if count} == {0.001: 2, 0.5: 1, math.inf: 1}


def test_statistics_show_what_says_something() -> None:
    stats = PoolStats(size=5, checked_in=1, checked_out=0, overflow=-4, total=1, timeouts=2)
    assert repr(stats) == "PoolStats(size=5, checked_in=1, checked_out=0, overflow=0, total=1, timeouts=2)"
    timed = PoolStats(5, 1, 0, 0, 1, hold=Timing().plus([0.5]))
    assert repr(timed).endswith("total=1, hold=<Timing: 1 in 0.5 s, at most 0.5 s>)")


def test_an_interrupt_while_counts_are_summed_up_loses_none_and_counts_none_twice(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(driver, pool_size=1)
    for _ in range(3):
        connection = pool.connect()
        connection.invalidate()
    plus = Timing.plus

    def interrupt(timing: Timing, durations: list[float]) -> Timing:
        if durations:
            raise KeyboardInterrupt
        return plus(timing, durations)

    with monkeypatch.context() as patches:
        patches.setattr(Timing, "plus", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.stats()
    connection = pool.connect()
    stats = pool.stats()
    assert (stats.created, stats.closed, stats.connect.count, stats.hold.count) == (4, {"invalidated": 3}, 4, 3)
    connection.close()


def test_a_nested_checkout_is_found_whatever_other_pools_were_asked_in_between(driver: ScriptedDriver) -> None:
    one, other = make(driver, nested_checkout="refuse"), make(driver, nested_checkout="refuse")
    with one.connect():
        with other.connect(), pytest.raises(SQLSpecError, match="while it holds one"):
            one.connect()
        with pytest.raises(SQLSpecError, match="while it holds one"):
            one.connect()
    one.connect().close()


def call(function: Callable[[], Any]) -> Any:
    return function()


def test_a_wrapper_that_calls_the_pool_itself_hides_no_place_behind_it(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=3)

    def behind() -> Any:
        return engine.raw_connection()

    for function, name in ((engine.connect, "call"), (behind, "behind"), (engine.connect, "call"), (behind, "behind")):
        with contextlib.closing(call(function)):
            (holder,) = engine.pool.get_holders()  # type: ignore[attr-defined]  # it is ours
            assert holder.place.endswith(f" in {name}")


def test_a_crowd_that_times_out_at_once_explains_itself_in_time(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=5, timeout=0.5)
    held = [pool.connect() for _ in range(5)]
    explained = 0
    explain = pool._explain

    def count(*arguments: Any) -> str:
        nonlocal explained
        before = pool._pool.explained
        text = explain(*arguments)
        explained += pool._pool.explained is not before
        return text

    pool._explain = count  # type: ignore[method-assign]  # to count
    callers = [Caller(pool) for _ in range(300)]
    for caller in callers:
        with pytest.raises(PoolTimeout, match="5 held at"):
            caller.answer()
    assert explained < 300
    for connection in held:
        connection.close()
