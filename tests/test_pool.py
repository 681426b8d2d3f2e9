"""Who is given which connection, and when."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

import pytest

from sqlspec import PoolClosed, PoolTimeout
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool
from sqlspec.pool.places import held_here
from sqlspec.testing import ScriptedDriver
from tests.callers import Caller, line_up
from tests.faults import assert_whole
from tests.servers import wait_until


def make(driver: ScriptedDriver, **options: Any) -> FairQueuePool:
    return FairQueuePool(driver.connect, **{"pool_size": 1, "max_overflow": 0, "timeout": 20, **options})


# -- in the order of asking


def test_waiters_are_served_in_the_order_of_asking(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    callers = line_up(pool, 5)
    held.close()
    for number, caller in enumerate(callers):
        caller.answer()
        assert [later.has_answer.is_set() for later in callers[number + 1 :]] == [False] * (4 - number)
        caller.give_back()
    assert driver.opened == 1


def test_who_gives_back_does_not_overtake_those_who_wait(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    (caller,) = line_up(pool, 1)
    held.close()
    with pytest.raises(PoolTimeout):
        pool.connect(timeout=0.05)
    caller.answer()
    caller.give_back()


@pytest.mark.fault(45)
def test_nobody_starves(driver: ScriptedDriver) -> None:
    pool, served = make(driver, pool_size=3), [0] * 15
    until = time.monotonic() + 1.0

    def loop(number: int) -> None:
        while time.monotonic() < until:
            with pool.connect():
                time.sleep(0.001)
            served[number] += 1

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert min(served) > 0
    assert max(served) - min(served) <= 3 + max(served) // 4
    assert_whole(pool, driver)


def test_who_gives_back_before_its_turn_is_over_loses_nothing(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=5)
    interval, until = sys.getswitchinterval(), time.monotonic() + 1.0
    sys.setswitchinterval(1e-6)

    def loop() -> None:
        while time.monotonic() < until:
            pool.connect().close()

    threads = [threading.Thread(target=loop) for _ in range(50)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert (driver.opened, driver.closed, dict(pool.stats().closed)) == (5, 0, {})


# -- capacity that comes free


def test_a_failed_connect_serves_the_next_waiter_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver)
    go = driver.hang("connect", times=1)
    driver.fail("connect", times=1)
    first = Caller(pool)
    wait_until(lambda: pool.stats().connecting == 1)
    (second,) = line_up(pool, 1)
    go.set()
    with pytest.raises(driver.Error):
        first.answer()
    second.answer()
    assert pool.stats().wait.max < 10
    second.give_back()


def test_an_invalidated_connection_serves_the_next_waiter_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    (caller,) = line_up(pool, 1)
    held.invalidate()
    assert caller.answer().is_valid
    assert (driver.opened, driver.closed) == (2, 1)
    caller.give_back()


def test_a_detached_connection_serves_the_next_waiter_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    (caller,) = line_up(pool, 1)
    held.detach()
    caller.answer()
    assert pool.stats().closed == {"detached": 1}
    caller.give_back()
    held.close()
    assert driver.open_connections == 1


def test_growing_serves_waiters_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    callers = line_up(pool, 3)
    pool.resize(4)
    for caller in callers:
        caller.answer()
        caller.give_back()
    held.close()
    assert (pool.size(), pool.stats().total) == (4, 4)


def test_shrinking_closes_idle_connections_now_and_others_when_they_come_back(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=4)
    held = [pool.connect() for _ in range(4)]
    held.pop().close()
    pool.resize(2)
    assert driver.open_connections == 3
    for connection in held:
        connection.close()
    assert driver.open_connections == 2
    assert pool.stats().closed == {"resized": 2}


@pytest.mark.parametrize(("size", "overflow"), [(0, 1), (-1, 0), (1, -2)])
def test_a_size_that_means_nothing_is_refused(driver: ScriptedDriver, size: int, overflow: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(driver).resize(size, overflow)


# -- deadlines and bounds


def test_a_timeout_of_one_checkout_goes_before_that_of_the_pool(driver: ScriptedDriver) -> None:
    pool = make(driver, timeout=20)
    with pool.connect():
        begin = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.connect(timeout=0.1)
        assert 0.1 <= time.monotonic() - begin < 5
    assert pool.stats().timeouts == 1


@pytest.mark.fault(46)
def test_too_many_waiters_are_refused_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver, max_waiters=2)
    held = pool.connect()
    callers = line_up(pool, 2)
    with pytest.raises(PoolTimeout, match="2 callers wait for a connection already, and max_waiters=2"):
        pool.connect()
    assert pool.stats().refused == 1
    held.close()
    for caller in callers:
        caller.answer()
        caller.give_back()
    assert_whole(pool, driver)


def test_no_waiters_at_all_may_be_allowed(driver: ScriptedDriver) -> None:
    pool = make(driver, max_waiters=0)
    with pool.connect(), pytest.raises(PoolTimeout, match="max_waiters=0"):
        pool.connect()
    pool.connect().close()


@pytest.mark.fault(47)
def test_who_gives_up_swallows_no_connection(driver: ScriptedDriver) -> None:
    pool = make(driver)
    for _ in range(200):
        held = pool.connect()
        caller = Caller(pool, timeout=0.0005)
        time.sleep(0.0005)
        held.close()
        caller.has_answer.wait(20)
        caller.give_back()
    pool.connect().close()
    assert (driver.opened, pool.stats().checked_in) == (1, 1)
    assert pool.stats().timeouts
    assert_whole(pool, driver)


# -- opening aside


def test_a_waiter_takes_what_comes_first_a_returned_connection(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=2, open_aside=True)
    held = pool.connect()
    go = driver.hang("connect")
    (caller,) = line_up(pool, 1)
    wait_until(lambda: pool.stats().connecting == 1)
    held.close()
    caller.answer()
    caller.give_back()
    go.set()
    wait_until(lambda: pool.stats().checked_in == 2)


def test_a_waiter_takes_what_comes_first_a_new_connection(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=2, open_aside=True)
    held = pool.connect()
    caller = Caller(pool)
    caller.answer()
    caller.give_back()
    held.close()
    assert driver.opened == 2


def test_no_more_than_four_are_opened_aside_at_a_time(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=20, open_aside=True)
    held = pool.connect()
    go = driver.hang("connect")
    callers = line_up(pool, 10)
    wait_until(lambda: pool.stats().connecting == 4)
    assert pool.total() == 5
    go.set()
    for caller in callers:
        caller.answer()
    for caller in callers:
        caller.give_back()
    held.close()


def test_a_connection_that_cannot_be_opened_aside_is_told_to_one_waiter(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=3, open_aside=True)
    held = pool.connect()
    driver.fail("connect", times=1)
    with pytest.raises(driver.Error):
        pool.connect(timeout=10)
    pool.connect().close()
    held.close()
    assert pool.stats().failed_connects == 1


@pytest.mark.fault(81)
def test_without_a_thread_to_open_aside_a_waiter_connects_by_itself(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(driver, pool_size=2, open_aside=True)
    held = pool.connect()

    refused: list[object] = []

    def refuse(*arguments: object) -> None:
        refused.append(arguments)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.connect(timeout=10).close()
    held.close()
    assert refused
    assert pool.stats().total == 2
    assert_whole(pool, driver)


def test_who_has_waited_long_connects_by_itself_where_there_is_room(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=10, open_aside=True)
    held = pool.connect()
    go = driver.hang("connect", times=4)
    callers = line_up(pool, 8)
    for caller in callers[:4]:
        caller.answer()
    assert pool.stats().connecting == 4
    go.set()
    for caller in callers:
        caller.answer()
    for caller in callers:
        caller.give_back()
    held.close()


@pytest.mark.parametrize("timeout", [0, 0.05])
@pytest.mark.parametrize("open_aside", [False, True])
def test_a_timeout_is_for_waiting_and_not_for_connecting(
    driver: ScriptedDriver, timeout: float, open_aside: bool
) -> None:
    pool = make(driver, pool_size=5, timeout=timeout, open_aside=open_aside)
    driver.slow("connect", 0.2)
    held = [pool.connect() for _ in range(5)]
    with pytest.raises(PoolTimeout):
        pool.connect()
    for connection in held:
        connection.close()


# -- overflow


def test_overflow_closes_when_it_comes_back_as_in_queuepool(driver: ScriptedDriver) -> None:
    pool = make(driver, max_overflow=2)
    for connection in [pool.connect() for _ in range(3)]:
        connection.close()
    assert driver.open_connections == 1
    assert pool.stats().closed == {"overflow": 2}


def test_overflow_lingers_until_it_was_not_needed_for_a_while(driver: ScriptedDriver) -> None:
    pool = make(driver, max_overflow=2, linger_seconds=0.2)
    for connection in [pool.connect() for _ in range(3)]:
        connection.close()
    assert (driver.open_connections, pool.stats().overflow) == (3, 2)
    wait_until(lambda: driver.open_connections == 1)
    assert pool.stats().closed == {"lingered": 2}


def test_overflow_in_use_lingers_on(driver: ScriptedDriver) -> None:
    pool = make(driver, max_overflow=2, linger_seconds=0.1)
    held = [pool.connect() for _ in range(2)]
    pool.connect().close()
    wait_until(lambda: pool.stats().total == 2)
    assert pool.stats().checked_out == 2
    for connection in held:
        connection.close()


# -- the end


@pytest.mark.fault(50)
def test_closing_lets_waiters_go_at_once(driver: ScriptedDriver) -> None:
    pool = make(driver)
    held = pool.connect()
    callers = line_up(pool, 3)
    begin = time.monotonic()
    assert pool.close() == 1
    for caller in callers:
        with pytest.raises(PoolClosed):
            caller.answer()
    assert time.monotonic() - begin < 5
    with pytest.raises(PoolClosed):
        pool.connect()
    held.close()
    assert (driver.open_connections, pool.close()) == (0, 0)


def test_closing_waits_for_those_who_still_work(driver: ScriptedDriver) -> None:
    pool = make(driver)
    caller = Caller(pool)
    caller.answer()
    threading.Timer(0.1, caller.give_back).start()
    assert pool.close(timeout=20) == 0
    assert driver.open_connections == 0


def test_a_connection_opened_while_the_pool_closes_is_closed(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=2, open_aside=True)
    held = pool.connect()
    go = driver.hang("connect")
    (caller,) = line_up(pool, 1)
    wait_until(lambda: pool.stats().connecting == 1)
    pool.close()
    with pytest.raises(PoolClosed):
        caller.answer()
    go.set()
    held.close()
    wait_until(lambda: driver.opened == 2)
    wait_until(lambda: driver.open_connections == 0)


def test_what_comes_back_after_dispose_is_kept_as_in_queuepool_or_closed(driver: ScriptedDriver) -> None:
    for retires, left in ((False, 1), (True, 0)):
        pool = make(driver, retire_on_dispose=retires)
        held = pool.connect()
        pool.dispose()
        successor = pool.recreate()
        held.close()
        assert driver.open_connections == left
        assert type(successor) is FairQueuePool
        pool.close()


def test_a_pool_made_anew_has_the_options_and_the_present_size(driver: ScriptedDriver) -> None:
    options = {
        "max_waiters": 7,
        "linger_seconds": 3.0,
        "open_aside": True,
        "nested_checkout": "warn",
        "leak_seconds": 5.0,
        "monotonic": True,
        "retire_on_dispose": True,
        "use_lifo": True,
        "recycle": 11,
    }
    pool = make(driver, **options)
    pool.resize(3, 4)
    assert pool.recreate()._arguments() == {**pool._arguments(), "pool_size": 3, "max_overflow": 4}
    assert {name: pool._arguments()[name] for name in options} == options


@pytest.mark.fault(53)
def test_a_listener_that_fails_at_a_close_keeps_nobody_waiting(driver: ScriptedDriver) -> None:
    import sqlalchemy as sa

    pool = make(driver, pool_size=5)
    failures = iter([KeyboardInterrupt()])

    @sa.event.listens_for(pool, "close")
    def fail(*_: object) -> None:
        for failure in failures:
            raise failure

    for connection in [pool.connect() for _ in range(5)]:
        connection.close()
    with pytest.raises(KeyboardInterrupt):
        pool.resize(1)
    assert dict(pool.stats().closed) == {"resized": 4}
    pool.connect(timeout=5).close()
    assert_whole(pool, driver)


# -- what is lost


def test_a_slot_that_an_interrupt_loses_gives_its_place_back(driver: ScriptedDriver) -> None:
    pool = make(driver)
    pool.connect().close()
    slot: Any = pool._do_get()
    assert pool.total() == 1
    # the exception that came in between lets go of it
    del slot
    gc.collect()
    assert (pool.total(), pool.stats().closed) == (0, {"lost": 1})
    pool.connect().close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_place_is_found_again_where_python_swallows_the_interrupt_that_lost_it(driver: ScriptedDriver) -> None:
    class Interrupted(FairQueuePool):
        swallowed = False

        def _lost(self, ref: Any) -> None:
            if not self.swallowed:
                self.swallowed = True
                raise KeyboardInterrupt
            super()._lost(ref)

    pool = Interrupted(driver.connect, pool_size=1, max_overflow=0, timeout=20)
    slot: Any = pool._do_get()
    del slot
    gc.collect()
    assert (pool.swallowed, pool.total()) == (True, 1)
    pool.connect().close()
    assert pool.stats().closed == {"lost": 1}


@pytest.mark.fault(53)
def test_a_listener_that_fails_at_checkin_loses_no_connection(driver: ScriptedDriver) -> None:
    import sqlalchemy as sa

    engine = driver.engine(pool_size=1, max_overflow=0, pool_timeout=5)

    @sa.event.listens_for(engine, "checkin")
    def fail(*_: object) -> None:
        if engine.pool.stats().created == 1:  # type: ignore[attr-defined]  # it is ours
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.raw_connection().close()
    engine.raw_connection().close()
    assert engine.pool.stats().closed == {"interrupted": 1}  # type: ignore[attr-defined]  # as above
    assert_whole(engine.pool, driver)
    engine.dispose()
    assert driver.open_connections == 0


# -- in crowds, and after dispose()


@pytest.mark.parametrize("open_aside", [False, True])
def test_no_waiters_are_counted_where_there_is_room_for_them(driver: ScriptedDriver, open_aside: bool) -> None:
    pool = make(driver, pool_size=4, max_waiters=0, open_aside=open_aside)
    held = pool.connect()
    go = driver.hang("connect")
    callers = [Caller(pool) for _ in range(3)]
    wait_until(lambda: pool.stats().connecting == 3)
    with pytest.raises(PoolTimeout, match="max_waiters=0"):
        pool.connect()
    go.set()
    for caller in callers:
        caller.answer()
        caller.give_back()
    held.close()


@pytest.mark.parametrize("timeout", [0.25, 0.6])
def test_a_short_timeout_opens_as_many_at_a_time_as_a_long_one(driver: ScriptedDriver, timeout: float) -> None:
    pool = make(driver, pool_size=30, timeout=timeout, open_aside=True)
    held = pool.connect()
    go = driver.hang("connect")
    callers = [Caller(pool) for _ in range(20)]
    wait_until(lambda: pool.stats().connecting >= 16)
    go.set()
    for caller in callers:
        caller.answer()
    for caller in callers:
        caller.give_back()
    held.close()


def test_a_pool_used_after_dispose_is_kept_by_a_dispose_that_closes_nothing(driver: ScriptedDriver) -> None:
    engine = driver.engine(pool_size=2, max_overflow=0)
    engine.pool.dispose()
    engine.connect().close()
    engine.dispose(close=False)
    assert (driver.opened, driver.closed) == (1, 0)


def test_an_error_of_any_kind_while_opening_aside_is_told_to_the_waiter(driver: ScriptedDriver) -> None:
    pool = make(driver, pool_size=3, open_aside=True)
    held = pool.connect()
    driver.fail("connect", SystemExit("3"), times=1)
    with pytest.raises(SystemExit):
        pool.connect(timeout=10)
    pool.connect(timeout=10).close()
    held.close()


def test_housekeeping_may_be_asked_for_in_a_time_without_end(driver: ScriptedDriver) -> None:
    forever = make(driver, max_overflow=1, linger_seconds=float("inf"))
    held = [forever.connect() for _ in range(2)]
    pool = make(driver, max_overflow=1, linger_seconds=0.2)
    for connection in [pool.connect(), pool.connect()]:
        connection.close()
    wait_until(lambda: pool.total() == 1)
    for connection in held:
        connection.close()
    assert forever.total() == 2


def test_an_interrupt_whose_traceback_is_kept_loses_no_place(
    driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(driver, timeout=1, leak_seconds=60)
    pool.connect().close()
    pool._pool.is_looked_after = False

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(pool, "_look_after", interrupt)
        with pytest.raises(KeyboardInterrupt) as kept:
            pool.connect()
    assert kept.value.__traceback__ is not None
    pool.connect().close()
    assert pool.stats().total == 1


def test_a_checkout_of_another_thread_keeps_no_disposed_pool_open(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=2, max_overflow=0, **BEYOND_QUEUEPOOL)
    held = pool.connect()
    pool.dispose()
    # between the two steps of Engine.dispose()
    caller = Caller(pool)
    caller.answer()
    pool.recreate()
    caller.give_back()
    held.close()
    assert pool.stats().total == 0


def test_connections_held_hand_over_hand_are_remembered_no_longer_than_they_are_held(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=5, max_overflow=0, nested_checkout="warn")
    held = pool.connect()
    for _ in range(100):
        following = pool.connect()
        held.close()
        held = following
    assert len(held_here.get()) == 2
    held.close()
    pool.connect().close()
    assert len(held_here.get()) == 1
