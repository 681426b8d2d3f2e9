"""CircuitBreaker: who is let through, and what counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sqlspec import CircuitBreaker, CircuitOpenError, ConfigError
from sqlspec.resilience import breaker as module
from tests.servers import wait_until
from tests.test_forks import in_child


class Down(Exception):
    """Say that the database is not there."""


class Clock:
    """Be the monotonic clock, as the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def breaker_of(**options: Any) -> CircuitBreaker:
    return CircuitBreaker(**{"counts": lambda error: isinstance(error, Down), **options})


def fail(error: BaseException | None = None) -> Callable[[], None]:
    def raise_it() -> None:
        raise error or Down

    return raise_it


def failed(breaker: CircuitBreaker, times: int = 1, error: BaseException | None = None) -> None:
    for _ in range(times):
        with pytest.raises(Down if error is None else type(error)):
            breaker.call(fail(error))


def opened(**options: Any) -> CircuitBreaker:
    breaker = breaker_of(**options)
    failed(breaker, breaker.failure_threshold)
    assert breaker.state == "open"
    return breaker


def test_it_opens_after_failures_in_a_row_and_refuses_at_once(clock: Clock) -> None:
    breaker = breaker_of()
    failed(breaker, 4)
    assert (breaker.state, breaker.failure_count, breaker.last_failure_time) == ("closed", 4, 1000.0)
    failed(breaker)
    assert (breaker.state, breaker.failure_count) == ("open", 5)
    called: list[int] = []
    clock.now += 20
    with pytest.raises(
        CircuitOpenError, match=r"open after 5 failures in a row, the last of them Down.* in 40 s"
    ) as caught:
        breaker.call(lambda: called.append(1))
    assert not called
    assert caught.value.retry_after == 40
    assert isinstance(caught.value.__cause__, Down)


@pytest.mark.fault(73)
def test_a_success_sets_the_count_back() -> None:
    breaker = breaker_of()
    failed(breaker, 4)
    for _ in range(10_000):
        breaker.call(int)
    failed(breaker, 1)
    assert (breaker.state, breaker.failure_count) == ("closed", 1)


@pytest.mark.fault(72)
def test_what_is_no_failure_of_the_database_does_not_count() -> None:
    breaker = CircuitBreaker()
    for _ in range(20):
        failed(breaker, error=ValueError("x"))
        failed(breaker, error=KeyboardInterrupt())
        failed(breaker, error=asyncio.CancelledError())
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


def test_a_probe_that_works_closes_it(clock: Clock) -> None:
    breaker = opened()
    clock.now += 60
    assert breaker.call(lambda: breaker.state) == "half-open"
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


def test_a_probe_that_fails_opens_it_for_as_long_again(clock: Clock) -> None:
    breaker = opened()
    clock.now += 60
    failed(breaker)
    assert (breaker.state, breaker.failure_count) == ("open", 6)
    clock.now += 59
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    clock.now += 1
    breaker.call(int)
    assert breaker.state == "closed"


@pytest.mark.fault(74)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), ValueError()])
def test_a_probe_that_says_nothing_frees_its_place(clock: Clock, error: BaseException) -> None:
    breaker = opened()
    clock.now += 60
    failed(breaker, error=error)
    assert breaker.state == "half-open"
    breaker.call(int)
    assert breaker.state == "closed"


@pytest.mark.fault(71, 74)
def test_a_probe_that_hangs_is_given_up_and_its_late_result_ignored(clock: Clock) -> None:
    breaker = opened(probe_timeout=5)
    clock.now += 60
    probing, hangs = threading.Event(), threading.Event()

    def hang() -> None:
        probing.set()
        hangs.wait(20)
        raise Down

    def probe() -> None:
        with pytest.raises(Down):
            breaker.call(hang)

    thread = threading.Thread(target=probe)
    thread.start()
    assert probing.wait(20)
    clock.now += 4.9
    with pytest.raises(CircuitOpenError, match="half-open"):
        breaker.call(int)
    clock.now += 0.2
    breaker.call(int)
    assert breaker.state == "closed"
    hangs.set()
    thread.join(20)
    assert (breaker.state, breaker.failure_count) == ("closed", 0)


@pytest.mark.fault(71)
@pytest.mark.parametrize("is_failure", [True, False])
def test_a_call_that_began_in_an_earlier_state_says_nothing(clock: Clock, is_failure: bool) -> None:
    breaker, begun, end = breaker_of(), threading.Event(), threading.Event()

    def linger() -> None:
        begun.set()
        end.wait(20)
        if is_failure:
            raise Down

    def call() -> None:
        with contextlib.suppress(Down):
            breaker.call(linger)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(20)
    failed(breaker, 5)
    end.set()
    thread.join(20)
    assert (breaker.state, breaker.failure_count) == ("open", 5)


def test_calls_through_a_closed_breaker_overlap() -> None:
    breaker, together = breaker_of(), threading.Barrier(6)
    threads = [threading.Thread(target=breaker.call, args=(lambda: together.wait(20),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # a barrier that broke would have raised, and the others with it
    assert not together.broken


@pytest.mark.fault(70)
def test_of_many_threads_at_once_exactly_one_is_the_probe(clock: Clock) -> None:
    for _ in range(5):
        breaker = opened()
        clock.now += 60
        assert stampede(breaker, 100) == (1, 99)


def stampede(breaker: CircuitBreaker, callers: int) -> tuple[int, int]:
    """Have many call at the same moment; return how many were let through, and how many refused."""
    together, through, refused = threading.Barrier(callers), list[int](), list[int]()

    def probe() -> None:
        through.append(1)
        wait_until(lambda: len(refused) == callers - 1, seconds=60)

    def call() -> None:
        together.wait(60)
        try:
            breaker.call(probe)
        except CircuitOpenError:
            refused.append(1)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(through), len(refused)


@pytest.mark.fault(74)
def test_tasks_are_guarded_as_threads_are(clock: Clock) -> None:
    breaker = breaker_of()

    async def down() -> None:
        await asyncio.sleep(0)
        raise Down

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(Down):
                await breaker.acall(down)
        with pytest.raises(CircuitOpenError):
            await breaker.acall(down)
        clock.now += 60
        probe = asyncio.create_task(breaker.acall(lambda: asyncio.sleep(20)))
        await asyncio.sleep(0)
        assert breaker.state == "half-open"
        with pytest.raises(CircuitOpenError):
            await breaker.acall(down)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert await breaker.acall(lambda: asyncio.sleep(0, "up")) == "up"

    asyncio.run(main())
    assert breaker.state == "closed"


def test_an_asynchronous_function_is_refused_by_the_synchronous_call() -> None:
    breaker = breaker_of()
    with pytest.raises(TypeError, match="acall"):
        breaker.call(lambda: asyncio.sleep(0))


def test_failures_from_elsewhere_count_as_well(clock: Clock) -> None:
    breaker = breaker_of(failure_threshold=2)
    breaker.record_failure()
    breaker.record_failure(Down("gone"))
    assert breaker.state == "open"
    clock.now += 30
    breaker.record_failure()
    assert (breaker.failure_count, breaker.last_failure_time) == (3, 1030.0)
    clock.now += 30
    breaker.call(int)


@pytest.mark.fault(53)
def test_listeners_hear_of_each_change_and_disturb_nobody(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    breaker, heard = breaker_of(failure_threshold=1), list[tuple[str, str]]()

    def disturb(*_: object) -> None:
        raise RuntimeError("a listener's own")

    breaker.listen(disturb)
    breaker.listen(lambda told, before, after: heard.append((before, after)))
    with caplog.at_level(logging.INFO, logger="sqlspec.breaker"):
        failed(breaker)
        clock.now += 60
        breaker.call(int)
    assert heard == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]
    assert caplog.text.count("RuntimeError: a listener's own") == 3
    assert [record.levelname for record in caplog.records if "is open now" in record.message] == ["WARNING"]


def test_its_repr_tells_the_state(clock: Clock) -> None:
    breaker = breaker_of(name="orders")
    failed(breaker, 2)
    assert repr(breaker) == "<CircuitBreaker 'orders', closed: 2 of 5 failures>"
    failed(breaker, 3)
    clock.now += 20
    assert repr(breaker) == "<CircuitBreaker 'orders', open: probes in 40 s>"


@pytest.mark.parametrize(
    "options",
    [{"failure_threshold": 0}, {"recovery_timeout": 0}, {"probe_timeout": -1}, {"recovery_timeout": float("nan")}],
)
def test_arguments_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CircuitBreaker(**options)


def test_what_it_remembers_holds_no_frames_of_the_application() -> None:
    breaker = opened()
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(int)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None


def test_the_refusal_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(CircuitOpenError("it is open", 1.5)))  # noqa: S301  # our own
    assert (str(error), error.retry_after) == ("it is open", 1.5)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_lock_of_its_own_and_may_probe(clock: Clock) -> None:
    breaker = opened()
    clock.now += 60

    def fork_while_it_is_locked() -> object:
        with breaker._lock:
            return in_child(lambda: (breaker.state, breaker.call(lambda: "up"), breaker.state))

    assert breaker.call(fork_while_it_is_locked) == ("half-open", "up", "closed")


def test_it_stays_in_its_process() -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled: make one in the other process"):
        pickle.dumps(CircuitBreaker())
