"""What runs in greenlets that serve again."""

from __future__ import annotations

import asyncio
import functools
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from greenlet import getcurrent, greenlet
from sqlalchemy.util import await_only

from sqlspec.session import greenlets
from sqlspec.session.greenlets import _KEPT, _idle, run_in_greenlet
from tests.servers import wait_until

number: ContextVar[int] = ContextVar("number", default=0)


class Thing:
    """Be something that can be referred to weakly."""


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    return run


@pytest.fixture(autouse=True)
def _afresh() -> None:
    _idle.greenlets.clear()


def at_rest() -> weakref.ref[Any]:
    """Wait for a moment, and tell in which greenlet: one that is referred to does not serve again."""
    await_only(asyncio.sleep(0))
    return weakref.ref(getcurrent())


@in_loop
async def test_a_greenlet_serves_again_and_returns_what_its_work_returns() -> None:
    first = await run_in_greenlet(at_rest)
    assert await run_in_greenlet(at_rest) is first
    assert await run_in_greenlet(lambda value: value, 5) == 5
    assert _idle.greenlets == [first()]


@in_loop
async def test_tasks_that_wait_at_the_same_time_have_a_greenlet_each() -> None:
    count = _KEPT + 10
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run_in_greenlet(at_rest)) for _ in range(count)]
    assert len({id(task.result()) for task in tasks}) == count
    assert len(_idle.greenlets) == sum(task.result()() is not None for task in tasks) == _KEPT


@pytest.mark.parametrize("before", [0, 1])
@in_loop
async def test_an_idle_greenlet_keeps_nothing_of_its_work(before: int) -> None:
    for _ in range(before):
        await run_in_greenlet(at_rest)

    def work(argument: Thing) -> Thing:
        at_rest()
        return Thing()

    argument = Thing()
    result = await run_in_greenlet(work, argument)
    gone = [weakref.ref(thing) for thing in (argument, result, work)]
    del argument, result, work
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
    assert _idle.greenlets[0].gr_context is None


@in_loop
async def test_an_error_of_the_work_is_raised_and_its_greenlet_is_not_used_again() -> None:
    def fail() -> None:
        at_rest()
        raise LookupError("nobody is there")

    with pytest.raises(LookupError, match="nobody is there"):
        await run_in_greenlet(fail)
    assert _idle.greenlets == []
    assert [(await run_in_greenlet(at_rest))()] == _idle.greenlets


@in_loop
async def test_an_error_of_what_is_waited_for_is_raised_in_the_work_which_may_go_on() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    def work() -> str:
        try:
            await_only(fail())
        except LookupError:
            at_rest()
        return "gone on"

    assert await run_in_greenlet(work) == "gone on"
    assert len(_idle.greenlets) == 1


@in_loop
async def test_a_cancelled_task_unwinds_its_work() -> None:
    unwound = []

    def work() -> None:
        try:
            await_only(asyncio.Event().wait())
        finally:
            at_rest()
            unwound.append(getcurrent())

    task = asyncio.create_task(run_in_greenlet(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [own.dead for own in unwound] == [True]
    assert _idle.greenlets == []


@in_loop
async def test_work_runs_in_the_context_of_its_task() -> None:
    def work(value: int) -> int:
        before = number.get()
        at_rest()
        number.set(value)
        return before

    async def twice(value: int) -> None:
        assert await run_in_greenlet(work, value) == 0
        assert await run_in_greenlet(work, value + 1) == value
        assert number.get() == value + 1

    async with asyncio.TaskGroup() as group:
        for value in range(10, 30, 2):
            group.create_task(twice(value))
    await asyncio.create_task(twice(50))
    assert number.get() == 0


@in_loop
async def test_work_may_wait_for_other_work() -> None:
    async def inner() -> Any:
        return await run_in_greenlet(at_rest)

    outer, other = await run_in_greenlet(lambda: (at_rest(), await_only(inner())))
    assert outer is not other
    assert {outer(), other()} == set(_idle.greenlets)


@in_loop
async def test_work_that_is_begun_in_other_work_goes_on_outside_of_it() -> None:
    def inner() -> list[str]:
        return [await_only(asyncio.sleep(0, "inner")) for _ in range(3)]

    def outer() -> Any:
        # as an eager task begins
        begun = run_in_greenlet(inner)
        begun.send(None)
        task = asyncio.ensure_future(begun)
        return task, [await_only(asyncio.sleep(0, "outer")) for _ in range(waits)]

    for waits in (0, 1, 5):
        task, answers = await run_in_greenlet(outer)
        assert answers == ["outer"] * waits
        assert await run_in_greenlet(lambda: await_only(asyncio.sleep(0, "other"))) == "other"
        assert await task == ["inner"] * 3


@in_loop
async def test_a_finaliser_that_waits_at_the_end_of_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    end = greenlets._end

    def end_and_finalise(outcome: object) -> Any:
        parent = end(outcome)
        # where the garbage collector may come in
        at_rest()
        return parent

    monkeypatch.setattr(greenlets, "_end", end_and_finalise)
    for number in range(3):
        assert await run_in_greenlet(lambda number=number: number) == number
    assert len(_idle.greenlets) == 1


@in_loop
async def test_a_greenlet_made_in_work_answers_to_no_other_work() -> None:
    def work() -> Any:
        own = greenlet(lambda: getcurrent().parent.switch() or "the end of it")
        own.switch()
        return own

    left = await run_in_greenlet(work)
    other = asyncio.create_task(run_in_greenlet(lambda: await_only(asyncio.sleep(0, "an answer"))))
    await asyncio.sleep(0)
    assert left.switch() == "the end of it"
    assert await other == "an answer"


def test_a_loop_in_a_greenlet_that_is_dropped_is_not_kept_alive() -> None:
    unwound = []

    def run_a_loop() -> None:
        try:
            asyncio.run(some())
            getcurrent().parent.switch()
        finally:
            unwound.append(True)

    async def some() -> None:
        await run_in_greenlet(at_rest)

    asyncio.run(some())
    own = greenlet(run_a_loop)
    own.switch()
    assert unwound == []
    del own
    assert unwound == [True]


@in_loop
async def test_work_may_call_as_deeply_as_its_own_task_whoever_came_before() -> None:
    def reach() -> int:
        try:
            return 1 + reach()
        except RecursionError:
            return 0

    async def deep(depth: int) -> None:
        await (deep(depth - 1) if depth else run_in_greenlet(at_rest))

    before = await run_in_greenlet(reach)
    _idle.greenlets.clear()
    await deep(before // 3)
    assert await run_in_greenlet(reach) > before - 100


def test_greenlets_of_a_thread_end_with_it() -> None:
    known: list[weakref.ref[Any]] = []

    async def some() -> None:
        await asyncio.gather(*[run_in_greenlet(at_rest) for _ in range(5)])
        known.extend(map(weakref.ref, _idle.greenlets))

    thread = threading.Thread(target=lambda: asyncio.run(some()))
    thread.start()
    thread.join()
    assert len(known) == 5
    # a thread has been joined a moment before its own variables go
    wait_until(lambda: all(reference() is None for reference in known))


def test_a_loop_that_ends_in_the_middle_unwinds_what_it_has_begun() -> None:
    unwound = []

    def work() -> None:
        try:
            await_only(asyncio.Event().wait())
        finally:
            unwound.append(True)

    loop = asyncio.new_event_loop()
    coroutine = run_in_greenlet(work)
    loop.call_soon(coroutine.send, None)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert unwound == []
    coroutine.close()
    assert unwound == [True]


def test_a_child_that_is_forked_beside_idle_greenlets_of_other_threads_goes_on_and_ends() -> None:
    # in a process of its own, since a fork beside threads is what is to be seen
    code = """
        import asyncio, os, threading
        from sqlalchemy.util import await_only
        from sqlspec.session.greenlets import run_in_greenlet

        def rest():
            await_only(asyncio.sleep(0))

        async def some():
            await asyncio.gather(*[run_in_greenlet(rest) for _ in range(20)])

        def in_thread():
            asyncio.run(some())
            idle.set()
            over.wait()

        idle, over = threading.Event(), threading.Event()
        thread = threading.Thread(target=in_thread)
        thread.start()
        idle.wait()
        asyncio.run(some())
        child = os.fork()
        asyncio.run(some())
        if child == 0:
            raise SystemExit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        thread.join()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
