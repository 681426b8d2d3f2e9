"""run_transaction: what is run again, and what becomes of a COMMIT whose answer is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity
from sqlalchemy import exc

from sqlspec import AsyncSession, ConfigError, ConnectionLost, ConnectionTimeout, Session, SQLSpec
from sqlspec.resilience import is_ambiguous
from sqlspec.testing import FaultProxy
from tests.conftest import Database
from tests.proxy import CountingProxy, LosingProxy
from tests.servers import wait_until

SERVERS = ["postgresql", "psycopg", "mariadb"]
on_servers = pytest.mark.parametrize("database", SERVERS, indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
_NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
INSERT = "INSERT INTO users (name) VALUES (?)"


class Work:
    """Be a function that writes a row, and does something else first, once."""

    def __init__(self, before: Callable[[Any], object] = lambda session: None) -> None:
        self.calls = 0
        self._before = before

    def __call__(self, session: Any) -> str:
        self.calls += 1
        session.execute(INSERT, ("once",))
        if self.calls == 1:
            self._before(session)
        return "done"


def names(spec: Any) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


@pytest.fixture
def far(any_spec: Any, database: Database) -> Iterator[LosingProxy]:
    """A proxy, and the database behind it as "far"."""
    with LosingProxy(database.server.port) as proxy:
        any_spec.register_config(database.config(port=proxy.port, pool_size=1, max_overflow=0), "far")
        yield proxy
        assert any_spec.get_pool_stats("far").checked_out == 0


# -- what is run again, and what is not


@pytest.mark.parametrize("autocommit", [False, True])
def test_what_the_function_returns_is_returned_once_it_is_committed(
    any_spec: Any, database: Database, autocommit: bool
) -> None:
    any_spec.register_config(database.config(autocommit=autocommit), "own")
    work = Work(lambda session: session.begin_nested())
    assert any_spec.run_transaction("own", work) == "done"
    assert (work.calls, names(any_spec)) == (1, ["once"])


def test_the_functions_own_error_goes_on_untouched_and_nothing_stays(any_spec: Any) -> None:
    own = KeyError("mine")

    def fail(session: Any) -> None:
        raise own

    work = Work(fail)
    with pytest.raises(KeyError) as caught:
        any_spec.run_transaction("primary", work)
    assert caught.value is own
    assert (work.calls, names(any_spec)) == (1, [])


@on_servers
def test_a_connection_that_is_lost_before_commit_is_a_new_beginning(any_spec: Any, database: Database) -> None:
    def lose(session: Any) -> None:
        database.server.end_connection(session.execute(_NUMBER[database.name]).scalar())
        session.execute("SELECT 1")

    work = Work(lose)
    assert any_spec.run_transaction("primary", work) == "done"
    assert (work.calls, names(any_spec)) == (2, ["once"])


@pytest.mark.fault(76)
@on_servers
def test_of_a_deadlock_both_transactions_land_once(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (id, name) VALUES (?, ?)", [(1, "a"), (2, "b")])
    calls, locked = list[int](), threading.Barrier(2)
    failures: list[BaseException] = []

    def lock(first: int, second: int) -> None:
        is_new = iter((True,))

        def update(session: Any) -> None:
            calls.append(first)
            session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (first,))
            if next(is_new, False):
                locked.wait(20)
            session.execute("UPDATE users SET name = CONCAT(name, '.') WHERE id = ?", (second,))

        try:
            any_spec.run_transaction("primary", update)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=lock, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (failures, names(any_spec), len(calls)) == ([], ["a..", "b.."], 3)


@pytest.mark.fault(76)
@on_postgresql
def test_transactions_that_cannot_be_put_in_an_order_begin_anew(any_spec: Any) -> None:
    def interfere(session: Any) -> None:
        with any_spec.get_session("primary") as other:
            other.execute("UPDATE users SET name = 'b'")
        session.execute("UPDATE users SET name = 'c' WHERE name <> 'once'")

    with any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('a')")
    work = Work(interfere)
    assert any_spec.run_transaction("primary", work, isolation_level="REPEATABLE READ") == "done"
    assert (work.calls, sorted(names(any_spec))) == (2, ["b", "once"])


@pytest.mark.fault(58)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_snapshot_of_sqlite_that_is_outdated_is_a_new_beginning(any_spec: Any, database: Database) -> None:
    calls = list[int]()
    other = sqlite3.connect(database.config().database, check_same_thread=False)

    def write(session: Any) -> None:
        calls.append(session.execute("SELECT COUNT(*) FROM users").scalar())
        if len(calls) == 1:
            other.execute("INSERT INTO users (name) VALUES ('other')")
            other.commit()
        session.execute(INSERT, ("once",))

    any_spec.run_transaction("primary", write)
    assert (calls, names(any_spec)) == ([0, 1], ["other", "once"])
    other.close()


@pytest.mark.fault(76)
@on_mariadb
def test_a_lock_that_is_not_given_in_time_is_the_callers_business(spec: SQLSpec, any_spec: Any) -> None:
    def wait(session: Any) -> None:
        session.execute("SET innodb_lock_wait_timeout = 1")
        session.execute("INSERT INTO users (id, name) VALUES (1, 'x')")

    work = Work(wait)
    with spec.get_session("primary") as holder:
        holder.execute("INSERT INTO users (id, name) VALUES (1, 'holder')")
        with pytest.raises(exc.OperationalError, match="1205"):
            any_spec.run_transaction("primary", work)
        holder.rollback()
    assert (work.calls, names(any_spec)) == (1, [])


@on_servers
@pytest.mark.parametrize("how", ["commit", "COMMIT", "sqlalchemy", "DDL"])
def test_a_function_that_has_committed_something_is_not_run_again(any_spec: Any, database: Database, how: str) -> None:
    def commit_and_lose(session: Any) -> None:
        if how == "commit":
            session.commit()
        elif how == "sqlalchemy":
            session.connection().commit()
        else:
            session.execute("CREATE OR REPLACE TABLE other (id INTEGER)" if how == "DDL" else "COMMIT")
        database.server.end_connection(session.execute(_NUMBER[database.name]).scalar())
        session.execute("SELECT 1")

    if how == "DDL" and database.name == "postgresql":
        pytest.skip("PostgreSQL can undo it")
    if how == "sqlalchemy" and not isinstance(any_spec, SQLSpec):
        pytest.skip("its connection is called in a greenlet")
    work = Work(commit_and_lose)
    with pytest.raises(exc.DBAPIError) as caught:
        any_spec.run_transaction("primary", work)
    assert not is_ambiguous(caught.value)
    assert (work.calls, names(any_spec)) == (1, ["once"])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_it_takes_the_options_of_with_retry(spec: SQLSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()
    monkeypatch.setattr(tenacity.nap.time, "sleep", pauses.append)
    calls = list[int]()

    def fail(session: Session) -> None:
        calls.append(1)
        raise KeyError("again")

    with pytest.raises(KeyError):
        spec.run_transaction("primary", fail, max_attempts=4, max_delay=0.5, retry_on=lambda e: isinstance(e, KeyError))
    assert (len(calls), len(pauses)) == (4, 3)
    assert max(pauses) <= 0.5
    for wrong in ({"max_attempts": 0}, {"timeout": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            spec.run_transaction("primary", fail, **wrong)  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match="max_attempt"):
        spec.run_transaction("primary", fail, max_attempt=1)  # type: ignore[call-arg]  # misspelt


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_asynchronous_function_is_refused_before_anything_is_committed(spec: SQLSpec) -> None:
    async def later() -> None: ...

    def work(session: Session) -> Any:
        session.execute(INSERT, ("never",))
        return later()

    with pytest.raises(TypeError, match="arun_transaction"):
        spec.run_transaction("primary", work)
    assert names(spec) == []


@on_servers
def test_the_deadline_bounds_the_checkout(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=1, max_overflow=0, pool_nested_checkout="allow"), "small")
    with any_spec.get_session("small") as holder:
        holder.execute("SELECT 1")
        with pytest.raises(ConnectionTimeout):
            any_spec.run_transaction("small", Work(), timeout=0.2)


# -- a COMMIT that has no answer


@pytest.mark.fault(75)
@on_postgresql
def test_a_commit_that_took_place_is_found_out(any_spec: Any, far: LosingProxy) -> None:
    far.swallow_answer("COMMIT")
    work = Work()
    assert any_spec.run_transaction("far", work) == "done"
    assert far.fired == {"swallow_answer": 1}
    assert (work.calls, names(any_spec)) == (1, ["once"])


@pytest.mark.fault(75)
@on_postgresql
def test_a_commit_that_did_not_arrive_is_found_out_and_all_is_run_again(any_spec: Any, far: LosingProxy) -> None:
    far.lost = "COMMIT"
    work = Work()
    assert any_spec.run_transaction("far", work) == "done"
    assert far.fired == {"lost": 1}
    assert (work.calls, names(any_spec)) == (2, ["once"])
    far.lost = "COMMIT"
    with pytest.raises(ConnectionLost, match="the connection was lost in COMMIT, and nothing stays") as caught:
        any_spec.run_transaction("far", lambda s: s.execute(INSERT, ("twice",)), max_attempts=1)
    assert not caught.value.ambiguous
    assert names(any_spec) == ["once"]


@pytest.mark.fault(75)
@on_mariadb
@pytest.mark.parametrize("arrives", [True, False])
def test_elsewhere_it_is_told_and_never_run_again(any_spec: Any, far: LosingProxy, arrives: bool) -> None:
    if arrives:
        far.swallow_answer("COMMIT")
    else:
        far.lost = "COMMIT"
    work = Work()
    with pytest.raises(ConnectionLost) as caught:
        any_spec.run_transaction("far", work, retry_on=lambda error: True)
    assert caught.value.ambiguous
    assert far.fired.total() == 1
    assert (work.calls, names(any_spec)) == (1, ["once"] if arrives else [])


@on_servers
def test_a_commit_of_what_only_read_is_no_question(any_spec: Any, far: LosingProxy) -> None:
    calls = list[int]()

    def read(session: Any) -> Any:
        calls.append(1)
        return session.execute("SELECT COUNT(*) FROM users").scalar()

    far.swallow_answer("COMMIT")
    assert any_spec.run_transaction("far", read, read_only=True) == 0
    assert (len(calls), far.fired) == (2, {"swallow_answer": 1})


@on_postgresql
def test_a_transaction_that_has_no_number_is_told_of(any_spec: Any, far: LosingProxy) -> None:
    """It may have notified somebody, or have written on a foreign table."""
    calls = list[int]()

    def read(session: Any) -> Any:
        calls.append(1)
        return session.execute("SELECT COUNT(*) FROM users").scalar()

    far.swallow_answer("COMMIT")
    with pytest.raises(ConnectionLost) as caught:
        any_spec.run_transaction("far", read)
    assert caught.value.ambiguous
    assert "read_only=True" in caught.value.__notes__[0]
    assert (len(calls), far.fired) == (1, {"swallow_answer": 1})


class _Slow:
    """Have each COMMIT on the table of users wait for a lock of its own."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        with spec.get_session("primary") as session:
            session.execute(
                "CREATE OR REPLACE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$"
            )
            session.execute(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait_for_lock()"
            )

    def is_reached(self) -> bool:
        with self._spec.get_session("primary") as session:
            waiting = session.execute("SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            return bool(waiting.scalar() == 1)


def _has_asked(spec: Any) -> bool:
    """Tell whether a connection has been given back after that of the transaction."""
    return bool(spec.get_pool_stats("far").hold.count >= 2)


def _in_thread(spec: Any, work: Work, **options: Any) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(spec.run_transaction("far", work, **options))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


@on_postgresql
def test_a_commit_that_is_still_under_way_is_waited_for(spec: SQLSpec, any_spec: Any, far: LosingProxy) -> None:
    slow, work = _Slow(spec), Work()
    with spec.get_session("primary") as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        thread, outcome = _in_thread(any_spec, work)
        wait_until(slow.is_reached)
        far.cut()
        wait_until(lambda: _has_asked(any_spec))
        assert outcome == []
        holder.rollback()
    thread.join(20)
    assert (outcome, work.calls, names(any_spec)) == (["done"], 1, ["once"])


@on_postgresql
def test_a_commit_that_stays_under_way_is_told_at_the_deadline(spec: SQLSpec, any_spec: Any, far: LosingProxy) -> None:
    slow, work = _Slow(spec), Work()
    # so that it need not connect before its deadline
    any_spec.run_transaction("far", lambda session: session.execute("SELECT 1"))
    with spec.get_session("primary") as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        thread, outcome = _in_thread(any_spec, work, timeout=2.0)
        wait_until(slow.is_reached)
        far.cut()
        thread.join(20)
        holder.rollback()
    assert isinstance(outcome[0], ConnectionLost)
    assert outcome[0].ambiguous
    assert "in progress" in outcome[0].__notes__[0]
    assert work.calls == 1


@on_postgresql
@pytest.mark.parametrize("later", [0, 20])
def test_a_crash_in_commit_is_told(
    spec: SQLSpec, any_spec: Any, far: LosingProxy, database: Database, later: int
) -> None:
    """The number may have been given again since then: to one of the later transactions, which have committed."""
    slow, work = _Slow(spec), Work()
    holder = spec.get_session("primary")
    holder.execute("SELECT pg_advisory_xact_lock(7)")
    thread, outcome = _in_thread(any_spec, work)
    wait_until(slow.is_reached)
    far.refuse()
    database.server.kill()
    database.server.start()
    with pytest.raises(exc.OperationalError):
        holder.execute("SELECT 1")
    holder.close()
    for _ in range(later):
        with spec.get_session("primary") as session:
            session.execute(INSERT, (None,))
    assert outcome == []
    far.heal()
    thread.join(20)
    assert isinstance(outcome[0], ConnectionLost)
    assert outcome[0].ambiguous
    assert "crashed" in outcome[0].__notes__[0] or not later
    assert (work.calls, "once" in names(any_spec)) == (1, False)


@on_postgresql
def test_a_restart_after_commit_is_waited_for(any_spec: Any, far: LosingProxy, database: Database) -> None:
    work = Work()
    far.swallow_answer("COMMIT")
    refuse = threading.Thread(target=lambda: (wait_until(lambda: far.fired["swallow_answer"] > 0), far.refuse()))
    refuse.start()
    thread, outcome = _in_thread(any_spec, work)
    refuse.join(20)
    database.server.restart()
    assert outcome == []
    far.heal()
    thread.join(30)
    assert (outcome, work.calls, names(any_spec)) == (["done"], 1, ["once"])


@on_postgresql
def test_the_number_of_a_transaction_costs_a_round_trip(any_spec: Any, database: Database) -> None:
    with CountingProxy(database.server.port) as proxy:
        any_spec.register_config(database.config(port=proxy.port), "counted")

        def plain() -> None:
            with any_spec.get_session("counted") as session:
                session.execute(INSERT, (None,))

        def transaction() -> None:
            any_spec.run_transaction("counted", lambda session: session.execute(INSERT, (None,)))

        trips: dict[Any, list[int]] = {plain: [], transaction: []}
        for work in [plain, transaction] * 10:
            before = proxy.round_trips
            work()
            trips[work].append(proxy.round_trips - before)
    # now and then a statement is prepared
    assert min(trips[transaction]) - min(trips[plain]) == 1


# -- tasks


def test_a_task_that_is_cancelled_between_two_attempts_holds_no_connection(spec: SQLSpec) -> None:
    async def main() -> None:
        failed = asyncio.Event()

        async def work(session: AsyncSession) -> None:
            await session.execute(INSERT, ("never",))
            failed.set()
            raise ConnectionTimeout("late", "connect")

        task = asyncio.create_task(registry.arun_transaction("primary", work, initial_delay=1000.0, max_delay=1000.0))
        await failed.wait()
        while registry.get_pool_stats("primary").checked_out:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert registry.get_pool_stats("primary").checked_out == 0
        async with registry.get_async_session("primary") as session:
            assert await session.execute("SELECT COUNT(*) FROM users").scalar() == 0
        await registry.aclose()

    registry = SQLSpec()
    registry.register_config(spec.get_config("primary"), "primary")
    asyncio.run(main())


@on_postgresql
def test_a_task_that_is_cancelled_while_it_asks_holds_no_connection(spec: SQLSpec, database: Database) -> None:
    async def main() -> None:
        slow = _Slow(spec)

        async def work(session: AsyncSession) -> None:
            await session.execute(INSERT, ("once",))

        holder = spec.get_session("primary")
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        task = asyncio.create_task(registry.arun_transaction("far", work))
        await asyncio.to_thread(wait_until, slow.is_reached)
        proxy.cut()
        await asyncio.to_thread(wait_until, lambda: _has_asked(registry))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        holder.rollback()
        holder.close()
        assert registry.get_pool_stats("far").checked_out == 0
        await registry.aclose()

    registry = SQLSpec()
    with FaultProxy(database.server.port) as proxy:
        registry.register_config(database.config(port=proxy.port, pool_size=1, max_overflow=0), "far")
        asyncio.run(main())
