"""What applications get for their own tests: a driver that breaks on command, and the proof that nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig, SQLiteConnectionConfig
from sqlspec.pool import FairQueuePool
from sqlspec.testing import FaultProxy, ScriptedDriver, assert_no_leaks
from tests.servers import wait_until

PHASES = ["connect", "ping", "execute", "commit", "rollback", "close"]
Disconnect, InterfaceError = ScriptedDriver.Disconnect, ScriptedDriver.InterfaceError


@pytest.fixture
def driver() -> Iterator[ScriptedDriver]:
    driver = ScriptedDriver()
    yield driver
    # whatever still hangs goes on
    driver.heal()


def go_through(driver: ScriptedDriver, phase: str) -> None:
    """Do what leads through a phase, on a connection of its own."""
    connection = driver.connect()
    if phase == "execute":
        connection.cursor().execute("SELECT 1")
    elif phase != "connect":
        getattr(connection, phase)()


# -- the driver


def test_the_driver_has_what_pep_249_asks_of_a_module(driver: ScriptedDriver) -> None:
    assert (driver.apilevel, driver.threadsafety, driver.paramstyle) == ("2.0", 2, "qmark")
    for name in ["DataError", "OperationalError", "IntegrityError", "InternalError", "ProgrammingError"]:
        assert issubclass(getattr(driver, name), driver.DatabaseError)
    assert issubclass(driver.NotSupportedError, driver.DatabaseError)
    assert issubclass(driver.DatabaseError, driver.Error)
    assert issubclass(driver.InterfaceError, driver.Error)
    assert issubclass(driver.Disconnect, driver.OperationalError)


def test_a_cursor_gives_the_rows_one_by_one_in_parts_or_all(driver: ScriptedDriver) -> None:
    driver = ScriptedDriver({"SELECT n FROM numbers": [(n,) for n in range(9)]})
    cursor = driver.connect().cursor()
    cursor.setinputsizes([])
    cursor.setoutputsize(9)
    cursor.execute("SELECT n FROM numbers")
    assert cursor.rowcount == 9
    assert cursor.fetchone() == (0,)
    assert cursor.fetchmany() == [(1,)]
    assert cursor.fetchmany(2) == [(2,), (3,)]
    assert next(iter(cursor)) == (4,)
    assert cursor.fetchall() == [(5,), (6,), (7,), (8,)]
    assert cursor.fetchone() is None
    cursor.close()
    with pytest.raises(InterfaceError, match="cursor is closed"):
        cursor.fetchone()


def test_without_rows_a_query_returns_a_one_and_a_change_nothing(driver: ScriptedDriver) -> None:
    cursor = driver.connect().cursor()
    cursor.execute("SELECT 1")
    assert cursor.fetchall() == [(1,)]
    cursor.execute("INSERT INTO users VALUES (1) RETURNING id")
    assert cursor.fetchall() == [(1,)]
    cursor.executemany("INSERT INTO users VALUES (?)", [(1,), (2,)])
    assert (cursor.rowcount, cursor.description) == (2, None)
    with pytest.raises(driver.ProgrammingError):
        cursor.fetchall()


def test_rows_come_from_a_mapping_in_which_white_space_does_not_matter() -> None:
    driver = ScriptedDriver({"SELECT *\n  FROM users": [{"id": 7, "name": "Alice"}]})
    with driver.engine().connect() as connection:
        assert connection.execute(sa.text("SELECT * FROM users")).one().name == "Alice"
        assert connection.execute(sa.text("SELECT 2")).scalar() == 1


def test_rows_come_from_a_callable_that_may_raise() -> None:
    def rows(statement: str, parameters: Any) -> Any:
        if statement.startswith("INSERT"):
            raise ScriptedDriver.IntegrityError("twice")
        return [parameters]

    with ScriptedDriver(rows).engine().connect() as connection:
        assert connection.execute(sa.text("SELECT :a"), {"a": 5}).all() == [(5,)]
        with pytest.raises(exc.IntegrityError, match="twice"):
            connection.execute(sa.text("INSERT INTO users VALUES (1)"))


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("SELECT users.id, users.name \nFROM users", ["id", "name"]),
        ('SELECT count(a, b) AS "n", x y FROM t', ["n", "y"]),
        ("INSERT INTO t VALUES (1) RETURNING id, name", ["id", "name"]),
        ("select distinct a, b", ["a", "b"]),
        ("SELECT * FROM t", ["column_1", "column_2"]),
        ("SHOW something", ["column_1", "column_2"]),
    ],
)
def test_columns_have_the_names_that_the_statement_gives(statement: str, names: list[str]) -> None:
    cursor = ScriptedDriver({statement: [(1, 2)]}).connect().cursor()
    cursor.execute(statement)
    assert cursor.description is not None
    assert [column[0] for column in cursor.description] == names


def test_the_orm_works_on_it() -> None:
    class Base(orm.DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    def rows(statement: str, parameters: Any) -> Any:
        if statement.startswith("SELECT"):
            return [(1, "Alice")] if parameters == (1,) else []
        return None

    with orm.Session(ScriptedDriver(rows).engine()) as session:
        user = User(name="Bob")
        session.add(user)
        session.flush()
        assert user.id == 1
        session.rollback()
        assert session.get_one(User, 1).name == "Alice"
        assert session.scalars(sa.select(User)).all() == []


# -- faults


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_fails_as_often_as_it_is_told(driver: ScriptedDriver, phase: Any) -> None:
    driver.fail(phase, times=2)
    for _ in range(2):
        with pytest.raises(Disconnect, match=phase):
            go_through(driver, phase)
    go_through(driver, phase)
    assert driver.calls[phase] == 3


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_fails_until_it_is_healed(driver: ScriptedDriver, phase: Any) -> None:
    error = driver.OperationalError("out of memory")
    driver.fail(phase, error)
    driver.fail("connect" if phase != "connect" else "commit", times=0)
    for _ in range(3):
        with pytest.raises(driver.OperationalError) as caught:
            go_through(driver, phase)
        assert caught.value is error
    driver.heal(phase)
    go_through(driver, phase)


def test_of_a_class_of_errors_each_call_raises_an_instance_of_its_own(driver: ScriptedDriver) -> None:
    driver.fail("commit", driver.InternalError)
    connection = driver.connect()
    caught = []
    for _ in range(2):
        with pytest.raises(driver.InternalError) as raised:
            connection.commit()
        caught.append(raised.value)
    assert caught[0] is not caught[1]


def test_healing_one_phase_leaves_the_others_as_they_are(driver: ScriptedDriver) -> None:
    driver.fail("commit")
    driver.fail("rollback")
    driver.heal("commit")
    go_through(driver, "commit")
    with pytest.raises(Disconnect):
        go_through(driver, "rollback")
    driver.heal()
    go_through(driver, "rollback")


def test_a_disconnect_leaves_the_connection_dead_and_another_error_does_not(driver: ScriptedDriver) -> None:
    dead, alive = driver.connect(), driver.connect()
    driver.fail("execute", driver.DataError, times=1)
    with pytest.raises(driver.DataError):
        alive.cursor().execute("SELECT 1")
    driver.fail("execute", times=1)
    with pytest.raises(Disconnect):
        dead.cursor().execute("SELECT 1")
    alive.commit()
    for use in (dead.commit, dead.rollback, dead.ping, lambda: dead.cursor().execute("SELECT 1")):
        with pytest.raises(Disconnect, match="has ended"):
            use()
    dead.close()


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_slow_and_then_goes_on(driver: ScriptedDriver, phase: Any) -> None:
    driver.slow(phase, 0.05, times=1)
    begin = time.monotonic()
    go_through(driver, phase)
    assert time.monotonic() - begin >= 0.05


@pytest.mark.parametrize("release", ["event", "heal"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_hangs_until_it_is_released(driver: ScriptedDriver, phase: Any, release: str) -> None:
    released = driver.hang(phase, times=1)
    thread = threading.Thread(target=go_through, args=(driver, phase), daemon=True)
    thread.start()
    wait_until(lambda: driver.calls[phase] == 1)
    # only this one call hangs
    go_through(driver, phase)
    assert thread.is_alive()
    if release == "event":
        released.set()
    else:
        driver.heal(phase)
    thread.join(10)
    assert not thread.is_alive()


def test_a_call_may_hang_and_then_fail(driver: ScriptedDriver) -> None:
    released = driver.hang("commit")
    driver.fail("commit", driver.OperationalError)
    released.set()
    with pytest.raises(driver.OperationalError):
        go_through(driver, "commit")


def test_who_hangs_while_the_database_stops_finds_the_connection_dead(driver: ScriptedDriver) -> None:
    released = driver.hang("execute")
    caught: list[BaseException] = []

    def execute() -> None:
        try:
            go_through(driver, "execute")
        except Disconnect as error:
            caught.append(error)

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    wait_until(lambda: driver.calls["execute"] == 1)
    driver.stop()
    released.set()
    thread.join(10)
    assert len(caught) == 1


def test_a_database_that_stops_ends_every_connection_and_takes_new_ones_after_its_restart(
    driver: ScriptedDriver,
) -> None:
    old = driver.connect()
    driver.stop()
    assert repr(driver) == "<ScriptedDriver stopped, 1 open>"
    with pytest.raises(Disconnect, match="is down"):
        driver.connect()
    driver.restart()
    with pytest.raises(Disconnect):
        old.ping()
    driver.connect().ping()
    assert repr(driver) == "<ScriptedDriver running, 2 open>"


def test_a_phase_that_does_not_exist_is_refused(driver: ScriptedDriver) -> None:
    with pytest.raises(ValueError, match="no phase 'begin': it is one of connect, ping"):
        driver.fail("begin")  # type: ignore[arg-type]  # that is the mistake


def test_an_error_of_the_driver_keeps_nothing_alive(driver: ScriptedDriver, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a connection that a test drops would not come back, for a reason that only the driver knows."""
    # what pytest captures of the log would keep the error
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")
    pool = FairQueuePool(driver.connect, pool_size=1)
    gc.disable()
    try:
        for make in (lambda: driver.OperationalError, lambda: driver.OperationalError("given")):
            driver.fail("close", make(), times=1)
            first = pool.connect()
            first.invalidate(soft=True)
            first.close()
            # the one before is closed for it, which fails
            second = pool.connect()
            del first, second
            assert pool.checkedout() == 0
    finally:
        gc.enable()


# -- what it counts


def test_the_driver_counts_what_is_opened_and_closed(driver: ScriptedDriver) -> None:
    first, second = driver.connect(), driver.connect()
    driver.fail("close", times=1)
    with pytest.raises(Disconnect):
        first.close()
    assert (driver.opened, driver.closed, driver.open_connections) == (2, 1, 1)
    first.close()
    second.close()
    assert (driver.opened, driver.closed, driver.open_connections) == (2, 2, 0)
    assert driver.double_closes == 1


def test_a_connection_that_is_dropped_stays_open(driver: ScriptedDriver) -> None:
    driver.connect()
    gc.collect()
    assert driver.open_connections == 1


def test_a_connection_that_hangs_in_its_close_is_not_closed_yet(driver: ScriptedDriver) -> None:
    connection = driver.connect()
    released = driver.hang("close")
    thread = threading.Thread(target=connection.close, daemon=True)
    thread.start()
    wait_until(lambda: driver.calls["close"] == 1)
    assert driver.open_connections == 1
    released.set()
    thread.join(10)
    assert driver.open_connections == 0


def test_use_after_close_is_refused_and_counted(driver: ScriptedDriver) -> None:
    connection = driver.connect()
    cursor = connection.cursor()
    connection.close()
    uses = (connection.cursor, connection.commit, connection.rollback, connection.ping, cursor.fetchone)
    for use in (*uses, lambda: cursor.execute("SELECT 1")):
        with pytest.raises(InterfaceError, match="connection is closed"):
            use()
    assert driver.uses_after_close == 6
    assert driver.double_closes == 0
    # what is refused never reached the database
    assert driver.calls["execute"] == driver.calls["commit"] == 0


def test_many_threads_are_counted_right(driver: ScriptedDriver) -> None:
    driver.fail("connect", times=100)
    refused: list[BaseException] = []

    def work() -> None:
        for _ in range(100):
            try:
                connection = driver.connect()
            except Disconnect as error:
                refused.append(error)
            else:
                connection.commit()
                connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 100
    assert driver.opened == driver.closed == driver.calls["commit"] == 700


# -- its engine


def test_its_engine_has_our_pool_unless_told_otherwise(driver: ScriptedDriver) -> None:
    assert isinstance(driver.engine(pool_size=3, max_waiters=1).pool, FairQueuePool)
    assert type(driver.engine(poolclass=QueuePool).pool) is QueuePool


def test_the_first_connection_of_an_engine_goes_through_no_other_phase(driver: ScriptedDriver) -> None:
    driver.fail("rollback", driver.OperationalError, times=1)
    connection = driver.engine().connect()
    assert dict(driver.calls) == {"connect": 1}
    with pytest.raises(exc.OperationalError):
        connection.rollback() if connection.execute(sa.text("SELECT 1")) else None
    connection.close()


def test_its_disconnect_is_one_for_the_engine(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=2)
    with engine.connect() as one, engine.connect() as other:
        driver.fail("execute", times=1)
        with pytest.raises(exc.OperationalError) as caught:
            one.execute(sa.text("SELECT 1"))
        assert caught.value.connection_invalidated
        other.execute(sa.text("SELECT 1"))
    # the other one was there as well, and is replaced at its next checkout
    with engine.connect() as one, engine.connect() as other:
        assert driver.opened == 4
    assert driver.open_connections == 2


def test_an_engine_that_pings_replaces_what_died(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_pre_ping=True)
    engine.connect().close()
    driver.stop()
    driver.restart()
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    assert driver.calls["ping"] == 1
    assert (driver.opened, driver.closed) == (2, 1)


def test_the_errors_of_the_script_become_those_of_sqlalchemy(driver: ScriptedDriver) -> None:
    engine = driver.engine()
    driver.fail("commit", driver.IntegrityError("deferred"), times=1)
    with pytest.raises(exc.IntegrityError, match="deferred"), engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO users VALUES (1)"))
    driver.stop()
    with pytest.raises(exc.OperationalError, match="is down"):
        engine.connect()
        engine.connect().execute(sa.text("SELECT 1"))
    assert_no_leaks(engine)


# -- assert_no_leaks


def forget(holds: list[Any], pool: Any) -> None:
    holds.append(pool.connect())


def test_a_leak_is_told_with_who_and_where(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=2)
    holds: list[Any] = []
    forget(holds, pool)
    thread = threading.Thread(target=forget, args=(holds, pool), name="worker")
    thread.start()
    thread.join()
    with pytest.raises(AssertionError) as caught:
        assert_no_leaks(pool, timeout=0.0)
    head, first, second = str(caught.value).splitlines()
    assert head == "connections are still checked out:"
    assert f"{__file__}:" in first
    assert " in forget by thread MainThread" in first
    assert "worker" in second
    for connection in holds:
        connection.close()
    assert_no_leaks(pool, timeout=0.0)


def test_the_last_statement_of_a_leak_is_told_where_it_is_known(tmp_path: Path) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        connection = spec.create_connection()
        connection.cursor().execute("SELECT 1 AS n, 'secret'")
        with pytest.raises(AssertionError, match="last statement: SELECT") as caught:
            assert_no_leaks(spec, timeout=0.0)
        assert "secret" not in str(caught.value)
        connection.close()


def test_another_pool_gives_its_counts(driver: ScriptedDriver) -> None:
    engine = driver.engine(poolclass=QueuePool)
    connection = engine.connect()
    with pytest.raises(AssertionError, match=r"1 of a QueuePool\. Pool size: 5"):
        assert_no_leaks(engine, timeout=0.0)
    connection.close()
    assert_no_leaks(engine)


@pytest.mark.parametrize("poolclass", [FairQueuePool, QueuePool])
def test_a_connection_that_comes_back_in_time_is_no_leak(driver: ScriptedDriver, poolclass: Any) -> None:
    pool = poolclass(driver.connect)
    connection = pool.connect()
    released = driver.hang("rollback", times=1)
    thread = threading.Thread(target=connection.close, daemon=True)
    thread.start()
    wait_until(lambda: driver.calls["rollback"] == 1)
    with pytest.raises(AssertionError):
        assert_no_leaks(pool, timeout=0.0)
    threading.Timer(0.05, released.set).start()
    assert_no_leaks(pool, timeout=10.0)


def test_what_only_the_garbage_collector_finds_is_no_leak(driver: ScriptedDriver) -> None:
    engine = driver.engine()
    pool: Any = engine.pool
    gc.disable()
    try:
        cycle: list[Any] = [engine.connect()]
        cycle.append(cycle)
        del cycle
        assert pool.checkedout() == 1
        assert_no_leaks(engine, timeout=0.0)
        assert pool.checkedout() == 0
    finally:
        gc.enable()


def test_of_a_registry_every_pool_is_looked_at_also_after_it_is_closed(tmp_path: Path) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "one.db")), name="one")
        spec.register_config(SQLiteConfig(database=str(tmp_path / "two.db")), name="two")
        spec.register_config(SQLiteConnectionConfig(database=str(tmp_path / "bare.db")), name="bare")
        assert_no_leaks(spec)
        direct = spec.create_connection("bare")
        assert_no_leaks(spec)
        direct.close()
        connection = spec.create_connection("two")
        with pytest.raises(AssertionError, match=r"^connections are still checked out:\n  two: checked out at"):
            assert_no_leaks(spec, timeout=0.0)
    with pytest.raises(AssertionError, match="two: "):
        assert_no_leaks(spec, timeout=0.0)
    connection.close()
    assert_no_leaks(spec)


def test_a_pool_that_does_not_count_is_refused(driver: ScriptedDriver) -> None:
    with pytest.raises(TypeError, match="a NullPool does not count what is checked out"):
        assert_no_leaks(driver.engine(poolclass=NullPool))


def test_an_asyncio_engine_is_looked_at_from_a_thread(tmp_path: Path) -> None:
    pytest.importorskip("aiosqlite", reason="aiosqlite is not installed")

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
        connection = await engine.connect()
        with pytest.raises(AssertionError):
            await asyncio.to_thread(assert_no_leaks, engine, 0.0)
        asyncio.get_running_loop().call_later(0.05, lambda: tasks.append(asyncio.create_task(connection.close())))
        tasks: list[asyncio.Task[None]] = []
        await asyncio.to_thread(assert_no_leaks, engine, 10.0)
        await asyncio.gather(*tasks)
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("end", ["refuse", "__exit__"])
def test_what_the_proxy_connects_in_the_moment_when_it_ends_them_all_is_ended_as_well(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database, FaultProxy(database.getsockname()[1]) as proxy:
        connect = socket.create_connection

        def connect_and_end(place: tuple[str, int]) -> socket.socket:
            connection = connect(place)
            if place[1] == database.getsockname()[1]:
                getattr(proxy, end)(*([None] * 3 if end == "__exit__" else []))
            return connection

        # no real network can be had that is so slow at the right moment
        monkeypatch.setattr("sqlspec.testing.proxy.socket.create_connection", connect_and_end)
        database.settimeout(10)
        with connect(("127.0.0.1", proxy.port)) as client:
            link, _ = database.accept()
            with link:
                for side in (client, link):
                    side.settimeout(10)
                    with contextlib.suppress(ConnectionError):
                        assert side.recv(1) == b""
