"""FairQueuePool: SQLAlchemy's QueuePool, fair, and able to say who holds what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, cast

from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionFairy

from sqlspec.exceptions import PoolTimeout, SQLSpecError
from sqlspec.pool.deadlines import checkout_deadline
from sqlspec.pool.housekeeping import look_after
from sqlspec.pool.places import Mark, Owner, Place, find_place, held_here, owner_of_thread, quote_of, still_held
from sqlspec.pool.reports import explain_timeout, holders, place_of, report_drop, report_leaks, report_slow_checkout
from sqlspec.pool.slot import Slot
from sqlspec.pool.stats import Holder, PoolStats, Tally
from sqlspec.pool.upkeep import UpkeepPool
from sqlspec.pool.waiters import Waiter

__all__ = ["BEYOND_QUEUEPOOL", "FairQueuePool"]

# Arguments with which the pool does better than QueuePool where that is seen from outside. Ten seconds outlast the
# gaps of a load that goes up and down; a server does not mind them.
BEYOND_QUEUEPOOL: dict[str, Any] = {
    "linger_seconds": 10.0,
    "open_aside": True,
    "monotonic": True,
    "retire_on_dispose": True,
}

_logger = logging.getLogger("sqlspec.pool")
# Looks at the idle ones within `linger_seconds`.
_LOOKS = 10


class FairQueuePool(UpkeepPool):
    """Keep every promise of QueuePool, and hand connections over in the order of asking.

    Nobody overtakes a waiter. Capacity that comes free, in whatever way, serves the next waiter at once. Checking
    out an idle connection, and checking in while nobody waits, take no lock; checking in never waits for one, so
    that it may happen in a finaliser or a signal handler. With the arguments of QueuePool it behaves as that
    does; the others switch on what goes beyond. Thread-safe.

    Args:
        max_waiters: refuse a checkout at once where so many wait already.
        is_full: tells of an error whether the server has no connection left. Then callers wait for those that the pool
            has, instead of getting the error, and for a while none is opened.
        open_aside: connect in threads of the pool's own for callers that wait; they take what comes first.
        linger_seconds: how long overflow connections stay that are not needed; 0: closed when they come back.
        nested_checkout: what a thread or task is told that asks for another connection while it holds one.
        leak_seconds: report a connection that is checked out for longer, once.
        slow_seconds: report a checkout that took longer, whether it waited, asked the server or connected.
        monotonic: let ``recycle`` go by the monotonic clock; QueuePool's goes by the wall clock, which may be set.
        retire_on_dispose: after `dispose`, close what comes back, where QueuePool keeps it open in a pool that
            nobody uses any more.
        ping_after: see at checkout whether the connection is alive, and replace it where it is not: ask the server
            after so many idle seconds, or where its socket tells of something. In the place of ``pre_ping``.
        recycling: close and replace connections that a strategy takes for worn, between two checkouts.
        min_pool_size: keep so many connections open, once the first is; up to ``pool_size``.
        idle_timeout: close connections beyond those that were idle for so many seconds.
        keepalive: ask the server for a sign of life on connections that were idle for so many seconds.
        adaptive: changes `size` by the load; it belongs to this pool alone.
    """

    # the logger that applications have configured
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"

    def stats(self) -> PoolStats:
        """Return the figures of this moment, which agree with each other. Opens no connection."""
        # otherwise found only by who starves
        self._find_lost()
        return self._pool.stats()

    def durations(self, known: Mapping[str, int]) -> tuple[Mapping[str, list[float]], Mapping[str, int]]:
        """Return the seconds of each ``wait``, ``hold`` and ``connect``, for who knows so many of them already.

        Returned are those that came later, and how many there have been; of too many the last hundred thousand, and
        none from before `keep_durations` was called. Thread-safe.
        """
        return self._pool.tally.durations(known)

    @staticmethod
    def keep_durations() -> None:
        """Have all pools of this process keep their durations, which telemetry wants one by one."""
        Tally.keeps_durations = True

    def count_fallback(self) -> None:
        """Count a checkout that another pool serves, since this one could not."""
        self._pool.tally.note("fallbacks")

    def get_holders(self) -> list[Holder]:
        """Return who has connections checked out, the longest first."""
        return holders(self._pool, quote_of(self._dialect))

    # -- checkout

    def connect(self, timeout: float | None = None) -> PoolProxiedConnection:
        """Check a connection out, within ``timeout`` seconds where given.

        The time counts waiting; what connecting takes beyond it, only the driver can limit, which an engine of
        sqlspec's tells it.

        Raises:
            PoolTimeout: none came free in time, or too many wait; the message says who holds them.
            PoolClosed: after `close`.
            Exception: the driver's error, where it cannot connect.
        """
        if timeout is None:
            return self._check_out()
        token = checkout_deadline.set(time.monotonic() + timeout)
        try:
            return self._check_out()
        finally:
            checkout_deadline.reset(token)

    def _check_out(self) -> PoolProxiedConnection:
        begin = None if self._slow_seconds is None else time.monotonic()
        proxy = None
        while proxy is None:
            try:
                proxy = Slot.checkout(self)
            except Exception as error:
                # the place of a connection that was lost; others may come back
                if not self._finds_full(error):
                    raise
        if begin is not None and (seconds := time.monotonic() - begin) > cast("float", self._slow_seconds):
            report_slow_checkout(
                self._orig_logging_name, slots=self._pool, seconds=seconds, place=Place(*find_place(self._further))
            )
        if self._pre_ping or self.dispatch.checkout:
            return _ConnectionFairy._checkout(self, None, proxy)
        proxy._counter = 1
        return proxy

    def _do_get(self) -> Slot:
        slots, owner = self._pool, self._owner()
        slot = None
        held: tuple[Mark, ...] = ()
        if self._minds_nesting:
            held = held_here.get()
            if held:
                last = held[0]
                known = last[4]()
                if len(held) == 1 and (known is None or known.mark is not last):
                    # as usual: it is over
                    held = ()
                else:
                    held = still_held(held)
                    self._mind_nesting(owner, held)
        # before it waits: afterwards the frames would have to be fetched from memory again
        code, instruction = find_place(self._further)
        if not slots.waiters:
            try:  # noqa: SIM105  # suppress() would cost more than all the rest
                # as take()
                slot = slots.queue.pop() if slots.use_lifo else slots.queue.popleft()
            except IndexError:
                pass
        if slot is None:
            slot = self._wait_for_slot(owner)
        try:
            slot.statement = None
            slot.mark = mark = (time.monotonic(), owner, code, instruction, slot.ref)
            if self._minds_nesting:
                held_here.set((mark, *held) if held else (mark,))
            if self._is_watched and not slots.is_looked_after:
                self._look_after()
        except BaseException:
            # an interrupt: its traceback may be kept, and this frame with it
            self._give_back(slot)
            raise
        return slot

    def _report_drop(self, mark: Mark) -> None:
        self._pool.tally.note("dropped")
        report_drop(mark)

    # -- from time to time

    def _look_after_overflow(self) -> None:
        slots = self._pool
        has_overflow = self._linger_seconds and len(slots.known) > slots.maxsize
        if not slots.is_looked_after and (has_overflow or self._has_upkeep):
            self._look_after()

    def close(self, timeout: float | None = None) -> int:
        """Refuse checkouts from now on, let the waiters go, and close idle connections, the others as they come back.

        With a timeout, wait up to so many seconds for those. Return how many are still checked out.
        Thread-safe; a second call is harmless.
        """
        left = super().close(timeout)
        if self._pool.is_looked_after:
            self._look_after_no_more()
        return left

    def _look_after_no_more(self) -> None:
        # the thread need not stay until its next look
        look_after(self, 0.0)

    def _look_after(self, seconds: float | None = None) -> None:
        """Have `keep_house` called from time to time, until it says that there is nothing to do."""
        self._pool.is_looked_after = True
        try:
            look_after(self, self._pause() if seconds is None else seconds)
        except BaseException:
            self._pool.is_looked_after = False
            raise

    def _pause(self) -> float:
        pauses = [self._linger_seconds / _LOOKS] if self._linger_seconds else []
        pauses += [self._leak_seconds / 4] if self._leak_seconds is not None else []
        upkeep = self._upkeep_pause()
        pauses += [upkeep] if upkeep is not None else []
        pauses += [self._adaptive.look_seconds] if self._adaptive is not None else []
        return max(0.02, min(pauses))

    def keep_house(self) -> float | None:
        """Do what is to be done from time to time; return the seconds to the next time, None for never.

        Report leaks, adapt the size, close overflow that is not needed, look after idle connections. Waits for nothing.
        """
        slots = self._pool
        slots.is_looked_after = False
        has_upkeep = self._keep_up()
        may_leak = self._leak_seconds is not None and any(slot.mark is not None for slot in slots.all())
        if may_leak:
            report_leaks(slots, self._leak_seconds or 0.0)
        is_over = slots.is_closed or slots.is_retired
        may_adapt = self._adaptive is not None and not is_over and self._adaptive.adjust(self, time.monotonic())
        has_overflow = self._linger_seconds > 0 and len(slots.known) > slots.maxsize
        if has_overflow:
            # what was idle at each look was not needed
            slots.idle_counts.append(len(slots.queue))
            if len(slots.idle_counts) >= _LOOKS:
                slots.surplus = min(slots.idle_counts)
                slots.idle_counts.clear()
                self._settle()
        if slots.is_closed or not (has_overflow or may_leak or has_upkeep or may_adapt):
            slots.idle_counts.clear()
            return None
        slots.is_looked_after = True
        return self._pause()

    # -- what the asyncio variant does otherwise

    _waiter = Waiter
    # where the stack goes on that ends
    _further: Callable[[], FrameType | None] | None = None

    _owner: Callable[..., Owner] = staticmethod(owner_of_thread)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    # -- what callers are told

    def _mind_nesting(self, owner: Owner, held: tuple[Mark, ...]) -> None:
        for mark in held:
            if mark[1] is owner and getattr(mark[4](), "home", None) is self:
                self._tell_of_nesting(owner, place_of(mark))
                return

    def _tell_of_nesting(self, owner: Owner, first: Place) -> None:
        if self._nested_checkout == "refuse":
            self._pool.tally.note("refused")
            told = f"{owner} asks for another connection while it holds one, checked out at {first}"
            raise SQLSpecError(f"{told}: use that one, or close it first")
        here = Place(*find_place(self._further))
        if self._pool.is_news((first, here)):
            _logger.warning(
                "%s asks for another connection while it holds one, checked out at %s; now at %s. "
                "Where every holder does that, all wait for each other",
                owner,
                first,
                here,
            )

    def _explain(self, own: list[Mark], failure: tuple[float, BaseException] | None) -> str:
        slots, begin = self._pool, time.monotonic()
        explained = slots.explained
        # Many may time out at the same moment, and all would look at all: what one has found serves for ten times as
        # long as finding it took.
        if explained is not None and begin < explained[0] and not own:
            return explained[1]
        text = explain_timeout(slots, self.get_holders(), own, failure)
        if not own:
            end = time.monotonic()
            slots.explained = end + 10 * (end - begin), text
        return text

    def _timed_out(self, owner: Owner, timeout: float) -> PoolTimeout:
        slots = self._pool
        reached = f"QueuePool limit of size {slots.maxsize} overflow {slots.max_overflow} reached"
        if slots.opening:
            reached = "connecting takes too long"
        limit = f"{reached}, connection timed out, timeout {timeout:0.2f}"
        own = [slot.mark for slot in slots.all() if slot.mark is not None and slot.mark[1] is owner]
        failure = slots.last_failure
        # one of long ago says nothing about now
        if failure is not None and time.monotonic() - failure[0] > timeout + 1.0:
            failure = None
        error = PoolTimeout(f"{limit}: {self._explain(own, failure)}")
        if failure is not None:
            error.__cause__ = failure[1]
        return error
