"""A fork waits until nobody connects, and who wants to connect waits for the fork."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.pool import FairQueuePool, apart_from_forks, call_aside, forks, gate
from tests.conftest import Database
from tests.servers import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def open_gate(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    # of other tests, whose connects may hang
    wait_until(lambda: not gate._others_work(), seconds=60)
    caplog.set_level(logging.WARNING, "sqlspec.pool")
    yield
    assert gate._forks == {}
    wait_until(lambda: not gate._others_work())


def fork() -> None:
    process_id = os.fork()
    if process_id == 0:
        os._exit(0)
    os.waitpid(process_id, 0)


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_fork_waits_until_nobody_connects(caplog: pytest.LogCaptureFixture) -> None:
    connects, goes_on = threading.Event(), threading.Event()

    def creator() -> Any:
        connects.set()
        goes_on.wait()
        return sqlite3.connect(":memory:", check_same_thread=False)

    pool = FairQueuePool(creator)
    connecting = started(lambda: pool.connect().close())
    connects.wait()
    forking = started(fork)
    wait_until(lambda: bool(gate._forks))
    assert forking.is_alive()
    goes_on.set()
    forking.join()
    connecting.join()
    assert caplog.messages == []
    pool.dispose()


def test_who_wants_to_connect_waits_while_another_thread_forks() -> None:
    gate._forks[-1] = True
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(len(gate._works))
        if len(slept) == 3:
            gate._forks.clear()

    assert apart_from_forks(sleep, lambda number: number + 1, 1) == 2
    # the fork does not wait for who waits for it
    assert slept == [0, 0, 0]


def test_who_waits_for_a_fork_for_too_long_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_LONGEST", 0.02)
    gate._forks[-1] = True
    try:
        assert apart_from_forks(time.sleep, lambda: "connected") == "connected"
    finally:
        gate._forks.clear()


def test_a_fork_that_waits_in_vain_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.02)
    connects, goes_on = threading.Event(), threading.Event()

    def connect() -> None:
        connects.set()
        goes_on.wait()

    connecting = started(lambda: apart_from_forks(time.sleep, connect))
    connects.wait()
    fork()
    goes_on.set()
    connecting.join()
    assert caplog.messages == ["a process forks while a thread connects: its child may hang when it connects as well"]


def test_a_fork_in_the_middle_of_connecting_does_not_wait_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        asked = []

        @event.listens_for(spec.get_engine(), "do_connect")
        def ask_for_a_password(*_: Any) -> None:
            asked.append(subprocess.run(["true"], check=True, preexec_fn=lambda: None).returncode)

        with spec.get_session() as session:
            assert session.execute("SELECT 1").scalar_one() == 1
    assert asked == [0]
    assert caplog.messages == []


def test_a_fork_in_a_thread_that_connects_for_another_waits_for_neither(caplog: pytest.LogCaptureFixture) -> None:
    def connect_aside() -> None:
        call_aside(10, lambda: apart_from_forks(time.sleep, fork), lambda _: None)

    apart_from_forks(time.sleep, connect_aside)
    assert caplog.messages == []


def test_a_connect_in_a_part_of_another_one_does_not_wait_for_the_fork_that_waits_for_it() -> None:
    def within() -> int:
        gate._forks[-1] = True
        try:
            return apart_from_forks(lambda _: pytest.fail("it waits"), lambda: 1)
        finally:
            gate._forks.clear()

    assert apart_from_forks(time.sleep, within) == 1


def test_a_fork_waits_for_threads_that_have_connected_and_end() -> None:
    apart_from_forks(time.sleep, lambda: call_aside(10, lambda: 1, lambda _: None))
    fork()
    assert gate._works == {}


def test_ends_of_threads_do_not_pile_up() -> None:
    for _ in range(3 * gate._MANY):
        call_aside(10, lambda: 1, lambda _: None)
    assert len(gate._works) <= gate._MANY + 1


def test_who_is_told_of_forks_is_forgotten_with_its_object() -> None:
    gc.collect()
    before = len(forks._heirs), len(forks._closers)
    pool = FairQueuePool(lambda: None)
    assert (len(forks._heirs), len(forks._closers)) == (before[0] + 1, before[1] + 1)
    del pool
    gc.collect()
    assert (len(forks._heirs), len(forks._closers)) == before


def test_a_fork_waits_until_no_thread_uses_a_file_of_sqlites(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        holds, goes_on = threading.Event(), threading.Event()

        def hold() -> None:
            with spec.get_session() as session:
                session.execute("CREATE TABLE kept (id INTEGER)")
                holds.set()
                goes_on.wait()

        holding = started(hold)
        holds.wait()
        forking = started(fork)
        wait_until(lambda: bool(gate._forks))
        assert forking.is_alive()
        goes_on.set()
        forking.join()
        holding.join()
        assert caplog.messages == []
        assert spec.get_pool_stats().total == 0
        with spec.get_session() as session:
            assert session.execute("SELECT count(*) FROM kept").scalar_one() == 0
            # what the forking thread itself has is not waited for
            fork()
    assert caplog.messages == []


def test_only_one_fork_waits_in_vain_for_a_thread_that_keeps_a_file_of_sqlites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        session = spec.get_session()
        opening = started(lambda: session.execute("SELECT 1"))
        opening.join()
        fork()
        fork()
        session.close()
    assert caplog.messages == [
        "a process forks while a thread uses a file of SQLite's: its child must not use that file"
    ]


INTERRUPTED = """
import os, random, signal, sys, time
from sqlspec.pool import apart_from_forks, gate

class Interrupt(Exception):
    pass

def interrupt(*_):
    raise Interrupt

sys.unraisablehook = lambda _: None
signal.signal(signal.SIGALRM, interrupt)
interrupts = 0
for number in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.000001, 0.002))
        for _ in range(2000 if number % 4 else 5):
            apart_from_forks(time.sleep, int)
            if number % 4 == 0 and os.fork() == 0:
                os._exit(0)
    except Interrupt:
        interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert not gate._works and not gate._forks, (number, gate._works, gate._forks)
print("interrupted" if interrupts > 100 else interrupts)
"""


def test_interrupts_leave_the_gate_open() -> None:
    done = run(INTERRUPTED)
    assert done.stdout == "interrupted\n", done.stderr


# the hook is registered before those of the pool
DROPPED = """
import gc, os
held = []
os.register_at_fork(after_in_child=lambda: (held.clear(), gc.collect()))
from sqlspec import SQLSpec
from sqlspec.adapters import *
spec = SQLSpec()
spec.register_config({config}, name="primary")
with spec.get_session("primary") as session:
    session.execute("DROP TABLE IF EXISTS dropped")
    session.execute("CREATE TABLE dropped (id INTEGER)")
proxy = spec.get_engine("primary").raw_connection()
proxy.cursor().execute("INSERT INTO dropped (id) VALUES (1)")
kept, number = proxy.dbapi_connection, os.getpid()
held.append(proxy)
del proxy
process_id = os.fork()
if process_id == 0:
    os._exit(0)
os.waitpid(process_id, 0)
proxy = held.pop()
proxy.commit()
proxy.close()
with spec.get_session("primary") as session:
    assert session.execute("SELECT count(*) FROM dropped").scalar_one() == 1
spec.close()
print("kept")
"""


def test_what_a_child_drops_before_it_starts_over_stays_its_parents(database: Database) -> None:
    done = run(DROPPED.format(config=database.as_code()))
    assert done.stdout == "kept\n", done.stderr


BUSY = """
import os, sys, threading
from sqlspec import SQLSpec
from sqlspec.adapters import *
from tests.servers import wait_until
spec = SQLSpec()
spec.register_config({config}, name="primary")
session, told = spec.get_session("primary"), []
session.execute("SELECT 1")
thread = threading.Thread(target=lambda: told.append(session.execute({sleep!r}).all()))
thread.start()
wait_until(lambda: spec.get_holders("primary")[0].statement != "SELECT 1")
if os.fork() == 0:
    with spec.get_session("primary") as own:
        own.execute("SELECT 1")
    del session
    sys.exit(0)
assert os.wait()[1] == 0
thread.join()
session.execute("SELECT 1")
session.close()
assert len(told) == 1
assert spec.get_pool_stats("primary").closed.get("disconnect") is None
print("answered")
"""


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_a_connection_that_waits_for_its_server_over_a_fork_is_its_parents(database: Database) -> None:
    sleep = {"mariadb": "SELECT SLEEP(1)", "postgresql": "SELECT pg_sleep(1)"}[database.name]
    done = run(BUSY.format(config=database.as_code(), sleep=sleep))
    assert done.stdout == "answered\n", done.stderr


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
