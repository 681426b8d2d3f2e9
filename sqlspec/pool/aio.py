"""AsyncFairQueuePool: FairQueuePool for the tasks of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any, cast

from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.pool.places import Owner, owner_of_task, owner_of_thread
from sqlspec.pool.queue import FairQueuePool
from sqlspec.pool.slot import Slot
from sqlspec.pool.waiters import Waiter

# without greenlet SQLAlchemy has no asyncio, and nothing here is called
with contextlib.suppress(ImportError):
    from greenlet import getcurrent

__all__ = ["AsyncFairQueuePool", "sleep_in_task"]


# Seconds; asyncio refuses an infinite delay.
_LONGEST = 3600.0


def sleep_in_task(seconds: float) -> None:
    """Pause in a greenlet of SQLAlchemy's, without blocking the event loop."""
    await_only(asyncio.sleep(seconds))


class AsyncWaiter(Waiter):
    """Wait in a task of an event loop."""

    __slots__ = ("_future", "loop")

    def __init__(self, owner: Owner, context: Context | None = None) -> None:
        self.owner = owner
        self.context = context
        self.is_starved = False
        self.since = math.inf
        self.decision: dict[str, Any] = {}
        self.loop = _running_loop()
        self._future: asyncio.Future[None] | None = None

    @property
    def is_gone(self) -> bool:  # type: ignore[override]  # a thread is never gone
        """Tell whether its loop has ended without it."""
        return self.loop is not None and self.loop.is_closed()

    def wake(self) -> None:
        # who does not wait yet looks at the decision before
        if self._future is None or self.loop is None:
            return
        if _running_loop() is self.loop:
            self._open()
        else:
            # a garbage collector's finaliser in another thread; a closed loop has nobody to wake
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        if self.decision:
            return
        timer = None if seconds == math.inf else loop.call_later(max(0.0, seconds), self._open)
        try:
            await_only(self._future)
        finally:
            if timer is not None:
                timer.cancel()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _frame_behind_greenlet() -> FrameType | None:
    """Return where the application is that waits for SQLAlchemy's greenlet."""
    parent = getcurrent().parent
    return None if parent is None else cast("FrameType | None", parent.gr_frame)


class AsyncFairQueuePool(FairQueuePool, AsyncAdaptedQueuePool):
    """Do what FairQueuePool does for the tasks of one event loop, which wait without blocking it.

    The owner of a connection is a task; connections are opened aside in tasks of the same loop.
    """

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"
    _further = staticmethod(_frame_behind_greenlet)

    def _check_out(self) -> PoolProxiedConnection:
        slots = self._pool
        if slots.is_looked_after and (slots.loop is None or slots.loop() is not _running_loop()):
            # the loop that did has ended, or is another one
            slots.is_looked_after = slots.is_kept_up = False
            self._look_after_overflow()
        return super()._check_out()

    _waiter = AsyncWaiter

    def _owner(self) -> Owner:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is None:
            return owner_of_thread()
        return owner_of_task(task)

    # -- on the loop

    def _look_after(self, seconds: float | None = None) -> None:
        slots, loop = self._pool, _running_loop()
        if loop is not None:
            slots.is_looked_after, slots.loop = True, weakref.ref(loop)
            if slots.timer is not None:
                # the one before may still be at it
                slots.timer.cancel()
            pause = self._pause() if seconds is None else seconds
            slots.timer = loop.call_later(min(pause, _LONGEST), self._spawn, loop, self._keep_house_again)
        # otherwise the next checkout in a loop sees to it

    def _look_after_no_more(self) -> None:
        slots = self._pool
        # a loop that is about to end drops the task that would look once more
        if slots.timer is not None and slots.loop is not None and slots.loop() is _running_loop():
            slots.timer.cancel()

    def _start_upkeep(self, due: list[Slot]) -> bool:
        loop = _running_loop()
        if loop is None:
            return False
        # nobody asks for it: what is set in the context of whoever used the pool last does not concern it
        Context().run(self._spawn, loop, self._do_upkeep, due)
        return True

    def _close_slot(self, slot: Slot, reason: str) -> None:
        loop = None if getattr(getcurrent(), "__sqlalchemy_greenlet_provider__", False) else _running_loop()
        if loop is None or not self._dialect.is_async:
            super()._close_slot(slot, reason)
        else:
            # closing may wait, which only a greenlet of SQLAlchemy's can do
            self._pool.closing[slot.ref] = None
            self._spawn(loop, self._close_all, [(slot, reason)])

    def _keep_house_again(self) -> None:
        timer = self._pool.timer
        if self.keep_house() is not None and self._pool.timer is timer:
            self._look_after()

    def _open_aside_for(self, slot: Slot) -> None:
        waiter = self._pool.first_waiter()
        loop = waiter.loop if isinstance(waiter, AsyncWaiter) else None
        try:
            if loop is None:
                raise RuntimeError("nobody waits in a loop")
            self._pool.unopened[slot.ref] = slot
            # this may be a finaliser in another thread
            loop.call_soon_threadsafe(self._spawn, loop, self._open, slot.ref)
        except RuntimeError:
            self._pool.unopened.pop(slot.ref, None)
            self._pool.opening.pop(slot.ref, None)
            self._do_return_conn(slot)

    def _spawn(self, loop: asyncio.AbstractEventLoop, work: Callable[..., None], *arguments: Any) -> None:
        """Run this in a task of its own, where it may wait."""
        # never eager, whatever the loop's factory makes: it would begin in the greenlet that is at work here
        task = asyncio.Task(greenlet_spawn(work, *arguments), loop=loop)
        # the loop itself keeps tasks weakly
        self._pool.tasks.add(task)
        task.add_done_callback(self._pool.tasks.discard)

    async def finish(self) -> None:
        """Wait until the pool's own work on the running loop is done: who connects would tell a loop that has ended."""
        loop = asyncio.get_running_loop()
        if tasks := [task for task in self._pool.tasks if task.get_loop() is loop]:
            await asyncio.wait(tasks)

    _sleep = staticmethod(sleep_in_task)
