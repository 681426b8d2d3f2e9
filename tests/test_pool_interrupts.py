"""What comes in between: signals, finalisers, clocks that are set, threads that do everything at once."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec import PoolTimeout
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool
from sqlspec.pool.proxy import lent
from sqlspec.pool.slot import Slot
from sqlspec.testing import ScriptedDriver
from tests.callers import Caller, line_up
from tests.faults import assert_whole
from tests.servers import wait_until


@pytest.mark.fault(38)
@pytest.mark.parametrize("options", [{}, BEYOND_QUEUEPOOL])
def test_ctrl_c_at_any_moment_loses_nothing(
    driver: ScriptedDriver,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "SQLSPEC_INTERRUPTED" not in os.environ:
        # in a process that nobody traces: interrupts would hit the tracer
        again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        environment = {**os.environ, "SQLSPEC_INTERRUPTED": "1"}
        done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout
        return
    # Python swallows an interrupt inside a weak reference's callback, whose traceback pytest keeps, and the connection
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    # a shell has what it starts in the background ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # what is captured keeps tracebacks alive, and they the connections
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool.impl.QueuePool")
    caplog.set_level(logging.CRITICAL, "sqlspec.pool")
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=1, timeout=5, **options)
    rounds, interrupted = int(os.environ.get("SQLSPEC_INTERRUPTS", "200")), 0
    rivals_go_on = True

    def compete() -> None:
        while rivals_go_on:
            with pool.connect():
                pass

    def interrupt(seconds: float, is_sent: threading.Event) -> None:
        time.sleep(seconds)
        signal.raise_signal(signal.SIGINT)
        is_sent.set()

    rivals = [threading.Thread(target=compete, daemon=True) for _ in range(2)]
    for rival in rivals:
        rival.start()
    chance = random.Random(7)  # noqa: S311  # not for secrets
    for _ in range(rounds):
        is_sent = threading.Event()
        interrupter = threading.Thread(target=interrupt, args=(chance.random() * 0.004, is_sent))
        try:
            interrupter.start()
            # Python ignores one that comes while a finaliser runs: none follows it
            while not is_sent.is_set():
                connection = pool.connect()
                if chance.random() < 0.2:
                    connection.invalidate()
                if chance.random() < 0.8:
                    connection.close()
                # or dropped
                connection = None
            interrupter.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            interrupted += 1
        except RuntimeError as error:
            # Python may tell of one in this way while a thread starts
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            interrupted += 1
        connection = None
    rivals_go_on = False
    for rival in rivals:
        rival.join(20)
    assert interrupted > rounds // 2
    assert_whole(pool, driver, interrupts=rounds)


def test_an_interrupt_inside_a_checkin_leaves_nothing_in_use(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0)
    held = pool.connect()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", interrupt)
        with pytest.raises(KeyboardInterrupt):
            held.close()
    assert_whole(pool, driver)


def test_an_interrupt_before_a_checkin_begins_leaves_it_to_the_end_of_the_proxy(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_slot: object) -> None:
        raise KeyboardInterrupt

    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0)
    held: Any = pool.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Slot, "checkin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            held.close()
    assert pool.stats().checked_out == 1
    del held
    assert_whole(pool, driver)
    assert pool.stats().created == 1


@pytest.mark.parametrize("is_started", [False, True])
def test_an_interrupt_while_an_opener_starts_loses_no_place_and_serves_nobody_twice(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch, is_started: bool
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        if is_started:
            start(thread)
        raise KeyboardInterrupt

    pool = FairQueuePool(driver.connect, pool_size=2, max_overflow=0, timeout=5, **BEYOND_QUEUEPOOL)
    held = pool.connect()
    driver.slow("connect", 0.05, times=1)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    second = pool.connect()
    with pytest.raises(PoolTimeout):
        pool.connect(timeout=0.1)
    assert driver.open_connections == pool.stats().checked_out == 2
    held.close()
    second.close()
    assert_whole(pool, driver)


def test_an_interrupt_while_housekeeping_starts_stops_it_for_nobody(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = threading.Condition.notify

    def interrupted(self: threading.Condition, n: int = 1) -> None:
        monkeypatch.setattr(threading.Condition, "notify", notify)
        raise KeyboardInterrupt

    def overflow() -> FairQueuePool:
        return FairQueuePool(driver.connect, pool_size=1, max_overflow=2, linger_seconds=0.1)

    pools = [overflow(), overflow()]
    held = [pools[0].connect()]
    monkeypatch.setattr(threading.Condition, "notify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pools[0].connect()
    for pool in pools:
        held += [pool.connect() for _ in range(2)]
    for connection in held:
        connection.close()
    wait_until(lambda: [pool.stats().total for pool in pools] == [1, 1])


def test_a_process_without_threads_keeps_the_exception_that_is_handled(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=1, leak_seconds=5)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        pool.connect().close()
    assert_whole(pool, driver)


# a thread that ends in this way is told of
@pytest.mark.filterwarnings(
    "ignore:Exception in thread sqlspec-housekeeping:pytest.PytestUnhandledThreadExceptionWarning"
)
def test_housekeeping_that_is_ended_by_a_listener_begins_again(driver: ScriptedDriver) -> None:
    def overflow() -> FairQueuePool:
        return FairQueuePool(driver.connect, pool_size=1, max_overflow=2, linger_seconds=0.1)

    ended, other = overflow(), overflow()

    def end(*_: object) -> None:
        raise SystemExit

    sa.event.listen(ended, "close", end)
    for pool in (ended, other):
        held = [pool.connect() for _ in range(3)]
        for connection in held:
            connection.close()
        if pool is ended:
            wait_until(lambda: not any("housekeeping" in thread.name for thread in threading.enumerate()))
    wait_until(lambda: other.stats().total == 1)


def test_openers_leave_no_thread_behind(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=4, max_overflow=0, timeout=5, **BEYOND_QUEUEPOOL)
    sa.event.listen(pool, "connect", lambda *_: threading.current_thread())
    held, callers = pool.connect(), [Caller(pool) for _ in range(3)]
    for caller in callers:
        caller.answer()
        caller.give_back()
    held.close()
    assert pool.stats().created > 1
    ours = {"sqlspec-opener", "Dummy"}
    wait_until(lambda: not any(thread.name.startswith(tuple(ours)) for thread in threading.enumerate()))


def drop_unnoticed(pool: FairQueuePool) -> None:
    """Drop a connection as if Python had swallowed an interrupt at the first step of its finaliser."""
    held: Any = pool.connect()
    ref = held._connection_record.fairy_ref
    slot = lent.pop(ref)
    del held
    gc.collect()
    lent[ref] = slot


def test_a_connection_dropped_by_an_interrupted_finaliser_comes_back_when_it_is_needed(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, timeout=5)
    drop_unnoticed(pool)
    pool.connect().close()
    assert pool.stats().created == 1


def test_a_connection_whose_finaliser_was_interrupted_is_found_by_who_looks_at_the_figures(
    driver: ScriptedDriver,
) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0)
    drop_unnoticed(pool)
    assert pool.checkedout() == 1
    stats = pool.stats()
    assert (stats.checked_out, stats.checked_in, stats.dropped) == (0, 1, 1)


def test_what_a_finaliser_closes_is_not_given_back_twice(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, timeout=5)

    class Repository:
        def __init__(self) -> None:
            self.myself = self
            self.connection = pool.connect()

        def __del__(self) -> None:
            self.connection.close()

    repository: Any = Repository()
    others: list[Any] = []
    waiting = threading.Thread(target=lambda: others.append(pool.connect()))
    waiting.start()
    wait_until(lambda: pool.stats().waiters == 1)
    del repository
    gc.collect()
    waiting.join()
    with pytest.raises(PoolTimeout):
        pool.connect(timeout=0.05)
    others.pop().close()
    assert_whole(pool, driver)


def test_a_connection_is_reset_that_is_dropped_together_with_its_pool(driver: ScriptedDriver) -> None:
    events: list[str] = []

    def drop() -> None:
        pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0)
        sa.event.listen(pool, "reset", lambda connection, record, state: events.append("reset"))
        sa.event.listen(pool, "checkin", lambda *_: events.append("checkin"))
        held: Any = pool.connect()
        held.myself = held

    drop()
    gc.collect()
    assert events == ["reset", "checkin"]


def test_a_place_that_is_found_lost_twice_is_counted_once(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=2, max_overflow=0)
    pool.connect().close()
    ref = pool._do_get().ref
    for _ in range(2):
        pool._lost(ref)
    assert pool.stats().closed == {"lost": 1}
    assert pool.stats().total == 0


def test_a_signal_handler_may_check_in_and_ask_for_figures(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=2, max_overflow=0, timeout=10)
    handed: list[Any] = []
    handled = sent = 0
    goes_on = True

    def handle(*_: object) -> None:
        nonlocal handled
        if handed:
            handed.pop().close()
        pool.stats()
        handled += 1

    def send() -> None:
        nonlocal sent
        while goes_on:
            # one at a time, or a slow machine would do nothing but handle them
            if sent == handled:
                sent += 1
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.0005)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(200):
            handed.append(pool.connect())
            with pool.connect():
                pass
            wait_until(lambda: not handed)
    finally:
        goes_on = False
        sender.join(20)
        wait_until(lambda: sent == handled)
        signal.signal(signal.SIGUSR1, before)
    assert handled > 10
    assert_whole(pool, driver)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_that_finalisers_give_back_reach_those_who_wait(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=3, max_overflow=2, pool_timeout=40)
    threshold = gc.get_threshold()
    gc.set_threshold(20)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # not for secrets
        try:
            for _ in range(15):
                connection = engine.connect()
                connection.execute(sa.text("SELECT 1"))
                if chance.random() < 0.9:
                    connection.close()
                # the others are unreachable cycles now
                del connection
        except BaseException as error:  # kept for the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        gc.set_threshold(*threshold)
    assert failed == []
    assert_whole(engine.pool, driver)


class SetClock:
    """Be the wall clock, off by so much."""

    def __init__(self) -> None:
        self.off = 0.0
        self._read = time.time

    def __call__(self) -> float:
        return self._read() + self.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    clock = SetClock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.mark.fault(55)
@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_wall_clock_that_is_set_changes_nothing(driver: ScriptedDriver, clock: SetClock, step: float) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, recycle=600, **BEYOND_QUEUEPOOL)
    held = pool.connect()
    (caller,) = line_up(pool, 1, timeout=10)
    clock.off = step
    with pytest.raises(PoolTimeout):
        pool.connect(timeout=0.1)
    held.close()
    caller.answer()
    caller.give_back()
    for _ in range(3):
        pool.connect().close()
    assert driver.opened == 1
    held = pool.connect()
    pool._invalidate(held)
    held.close()
    clock.off = 0.0
    for _ in range(3):
        pool.connect().close()
        clock.off = step
    assert driver.opened == 2
    assert_whole(pool, driver)


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_whole_pool_that_is_invalidated_reconnects_once(driver: ScriptedDriver, clock: SetClock, step: float) -> None:
    pool = FairQueuePool(driver.connect, pool_size=3, max_overflow=0)
    held = [pool.connect() for _ in range(3)]
    pool._invalidate(held[0])
    for connection in held:
        connection.close()
    clock.off = step
    for _ in range(3):
        held = [pool.connect() for _ in range(3)]
        for connection in held:
            connection.close()
    assert (driver.opened, driver.closed) == (6, 3)


def test_recycling_goes_by_age(driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, recycle=600, monotonic=True)
    pool.connect().close()
    read = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: read() + 601)
    pool.connect().close()
    pool.connect().close()
    assert driver.opened == 2
    assert pool.stats().closed == {"recycled": 1}


@pytest.mark.fault(51)
@pytest.mark.parametrize("how", ["held", "waiting", "opening"])
def test_the_interpreter_ends_whatever_the_pool_is_at(how: str) -> None:
    program = f"""
import threading, time
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool
from sqlspec.pool.proxy import lent
from sqlspec.pool.slot import Slot
from sqlspec.testing import ScriptedDriver
driver = ScriptedDriver()
pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=1, leak_seconds=1, **BEYOND_QUEUEPOOL)
held = pool.connect()
if {how!r} == "opening":
    driver.hang("connect")
if {how!r} != "held":
    held_too = pool.connect() if {how!r} == "waiting" else None
    threading.Thread(target=pool.connect, daemon=True).start()
    while not pool.stats().waiters:
        time.sleep(0.001)
print("done")
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert time.monotonic() - begin < 20


def test_threads_that_do_everything_at_once_lose_nothing(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=4, max_overflow=2, timeout=10, **BEYOND_QUEUEPOOL)
    until, failed = time.monotonic() + float(os.environ.get("SQLSPEC_SECONDS", "1")), []

    def work(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # not for secrets
        while time.monotonic() < until:
            try:
                connection = pool.connect(timeout=chance.choice([None, 0.001, 5]))
            except PoolTimeout:
                continue
            except driver.Error:
                continue
            except BaseException as error:  # kept for the test
                failed.append(error)
                return
            dice = chance.random()
            if dice < 0.1:
                connection.invalidate()
            elif dice < 0.15:
                pool.resize(chance.randint(1, 6), chance.randint(0, 3))
            elif dice < 0.2:
                del connection
                continue
            elif dice < 0.22:
                driver.fail("connect", times=1)
            if chance.random() < 0.3:
                time.sleep(0.0005)
            connection.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    driver.heal()
    assert failed == []
    assert_whole(pool, driver)
