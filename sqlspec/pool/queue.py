"""FairQueuePool: SQLAlchemy's QueuePool, with connections handed over in the order of asking."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import logging
import math
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any, Literal, cast

from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool

from sqlspec.exceptions import PoolClosed, PoolTimeout, SQLSpecError
from sqlspec.pool.housekeeping import look_after
from sqlspec.pool.places import Mark, Owner, Place, describe_owner, find_place
from sqlspec.pool.reports import explain_timeout, holders, place_of, report_drop, report_leaks
from sqlspec.pool.slots import Slot, Slots
from sqlspec.pool.stats import Holder, PoolStats
from sqlspec.pool.waiters import Waiter

__all__ = ["BEYOND_QUEUEPOOL", "FairQueuePool", "NestedCheckout", "checkout_deadline"]

NestedCheckout = Literal["allow", "warn", "refuse"]

# Arguments with which the pool does better than QueuePool where that is seen from outside. Ten seconds outlast the
# gaps of a load that goes up and down; a server does not mind them.
BEYOND_QUEUEPOOL: dict[str, Any] = {
    "linger_seconds": 10.0,
    "open_aside": True,
    "monotonic": True,
    "retire_on_dispose": True,
}

# Monotonic time at which the checkout under way must be over; None: the pool's own timeout decides.
checkout_deadline: ContextVar[float | None] = ContextVar("checkout_deadline", default=None)

_logger = logging.getLogger("sqlspec.pool")
_CLOSED = "the pool is closed: open a new registry, or register the config again"
_GAVE_UP = object()
# Seconds of waiting after which connections that nobody can reach any more are looked for.
_STARVED = 0.25
# Connections that are opened at the same time for those who wait.
_OPENERS = 4
# Looks at the idle ones within `linger_seconds`.
_LOOKS = 10


class FairQueuePool(QueuePool):
    """Keep every promise of QueuePool, and hand connections over in the order of asking.

    Nobody overtakes a waiter. Capacity that comes free, in whatever way, serves the next waiter at once. Checking
    out an idle connection, and checking in while nobody waits, take no lock; checking in never waits for one, so
    that it may happen in a finaliser or a signal handler. With the arguments of QueuePool it behaves as that
    does; the others switch on what goes beyond. Thread-safe.

    Args:
        max_waiters: refuse a checkout at once where so many wait already.
        linger_seconds: how long overflow connections stay that are not needed; 0: closed when they come back.
        open_aside: connect in threads of the pool's own for callers that wait; they take what comes first.
        nested_checkout: what a thread or task is told that asks for another connection while it holds one.
        leak_seconds: report a connection that is checked out for longer, once.
        monotonic: let ``recycle`` go by the monotonic clock; QueuePool's goes by the wall clock, which may be set.
        retire_on_dispose: after `dispose`, close what comes back, where QueuePool keeps it open in a pool that
            nobody uses any more.
    """

    # the logger that applications have configured
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"
    _pool: Slots  # type: ignore[assignment]  # it has what is used of a queue

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        max_waiters: int | None = None,
        linger_seconds: float = 0.0,
        open_aside: bool = False,
        nested_checkout: NestedCheckout = "allow",
        leak_seconds: float | None = None,
        monotonic: bool = False,
        retire_on_dispose: bool = False,
        **options: Any,
    ) -> None:
        Pool.__init__(self, creator, **options)
        self._timeout: float | None = timeout  # type: ignore[assignment]  # QueuePool takes None as well
        self._max_waiters = max_waiters
        self._linger_seconds = linger_seconds
        self._open_aside = open_aside
        self._nested_checkout = nested_checkout
        self._leak_seconds = leak_seconds
        self._monotonic = monotonic
        self._retire_on_dispose = retire_on_dispose
        self._pool = Slots(pool_size, -1 if pool_size == 0 else max_overflow, use_lifo, linger_seconds > 0)
        # Guards what `_settle_locked` decides: which waiter is given which slot, which slots come and go, and the
        # limits. Nobody waits for it: who finds it locked leaves the work to its holder, which looks again after
        # its release. (The name is that of QueuePool's lock.)
        self._overflow_lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._pool.is_closed else f"{self.checkedout()} checked out, {self.checkedin()} checked in"
        return f"<{type(self).__name__} of {self.size()} + {self._max_overflow}, {state}>"

    def recreate(self) -> FairQueuePool:
        """Return a pool with the same options and the present limits, closed where this one is."""
        self.logger.info("Pool recreating")
        slots = self._pool
        # after dispose(), the new pool takes the place of this one
        slots.is_retired = slots.is_disposed and self._retire_on_dispose
        pool = type(self)(
            self._creator,
            pool_size=slots.maxsize,
            max_overflow=slots.max_overflow,
            timeout=self._timeout,
            use_lifo=slots.use_lifo,
            max_waiters=self._max_waiters,
            linger_seconds=self._linger_seconds,
            open_aside=self._open_aside,
            nested_checkout=self._nested_checkout,
            leak_seconds=self._leak_seconds,
            monotonic=self._monotonic,
            retire_on_dispose=self._retire_on_dispose,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )
        pool._pool.is_closed = slots.is_closed
        return pool

    # -- figures, under QueuePool's names

    def size(self) -> int:
        """Return the configured number of connections kept."""
        return self._pool.maxsize

    def checkedin(self) -> int:
        """Return the number of idle slots, with a connection or, after an invalidation, without."""
        return len(self._pool.queue)

    def checkedout(self) -> int:
        """Return the number of slots that are in use."""
        return len(self._pool.known) - len(self._pool.queue)

    def overflow(self) -> int:
        """Return the number of slots beyond `size`; negative while there are fewer."""
        return self._overflow if self._pool.maxsize else 0

    def total(self) -> int:
        """Return the number of slots."""
        return len(self._pool.known)

    @property
    def _overflow(self) -> int:  # type: ignore[override]  # counted, where QueuePool keeps a number
        return len(self._pool.known) - self._pool.maxsize

    @property
    def _max_overflow(self) -> int:  # type: ignore[override]  # changes together with the size
        return self._pool.max_overflow

    @_max_overflow.setter
    def _max_overflow(self, max_overflow: int) -> None:
        # SQLAlchemy's own test kit sets it on living pools
        self.resize(self._pool.maxsize, max_overflow)

    def stats(self) -> PoolStats:
        """Return the figures of this moment, which agree with each other. Opens no connection."""
        return self._pool.stats()

    def get_holders(self) -> list[Holder]:
        """Return who has connections checked out, the longest first."""
        quote = getattr(getattr(self._dialect, "identifier_preparer", None), "initial_quote", '"')
        return holders(self._pool, quote)

    # -- checkout

    def connect(self, timeout: float | None = None) -> PoolProxiedConnection:
        """Check a connection out, within ``timeout`` seconds in all where given.

        Raises:
            PoolTimeout: none came free in time, or too many wait; the message says who holds them.
            PoolClosed: after `close`.
            Exception: the driver's error, where it cannot connect.
        """
        if timeout is None:
            return super().connect()
        token = checkout_deadline.set(time.monotonic() + timeout)
        try:
            return super().connect()
        finally:
            checkout_deadline.reset(token)

    def _do_get(self) -> ConnectionPoolEntry:
        slots = self._pool
        minds_nesting = self._nested_checkout != "allow"
        held = self._mind_nesting() if minds_nesting else None
        slot = None
        if not slots.waiters:
            try:  # noqa: SIM105  # suppress() would cost more than all the rest
                slot = slots.take()
            except IndexError:
                pass
        if slot is None:
            slot = self._wait_for_slot()
        slot.statement = None
        code, instruction = self._find_place()
        slot.mark = (time.monotonic(), self._owner(), code, instruction, held)
        if held is not None:
            held[slot.ref] = None
        if self._leak_seconds is not None and not slots.is_looked_after:
            self._look_after()
        return slot

    def _wait_for_slot(self) -> Slot:
        slots = self._pool
        if slots.is_closed:
            raise PoolClosed(_CLOSED)
        limit = self._max_waiters
        if limit is not None and len(slots.waiters) - max(0, slots.capacity - len(slots.known)) >= limit:
            slots.tally.note("refused")
            raise PoolTimeout(f"{len(slots.waiters)} callers wait for a connection already, and max_waiters={limit}")
        begin = time.monotonic()
        deadline = checkout_deadline.get()
        if deadline is None:
            deadline = math.inf if self._timeout is None else begin + self._timeout
        waiter = self._new_waiter()
        outcome: Any = None
        try:
            slots.waiters.append(waiter)
            self._settle()
            if not waiter.is_decided:
                waiter.wait(min(deadline, begin + _STARVED))
                if not waiter.is_decided and time.monotonic() < deadline:
                    _collect_garbage()
                    waiter.wait(deadline)
                slots.tally.add("wait", time.monotonic() - begin)
        except BaseException:
            outcome = waiter.offer(_GAVE_UP)
            if isinstance(outcome, Slot):
                self._give_back(outcome)
            raise
        finally:
            outcome = outcome or waiter.offer(_GAVE_UP)
            slots.leave(waiter)
        if outcome is _GAVE_UP:
            slots.tally.note("timeouts")
            raise self._timed_out(deadline - begin)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome.opened_at is None:
            self._connect_first(outcome)
        return cast("Slot", outcome)

    def _connect_first(self, slot: Slot) -> None:
        try:
            slot.get_connection()
        except BaseException:
            self._forget(slot)
            raise
        self._look_after_overflow()

    # -- checkin: what is called from here never waits

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        slot, slots = cast("Slot", record), self._pool
        mark = slot.mark
        if mark is not None:
            slot.idle_since = now = time.monotonic()
            slot.mark = None
            slots.tally.held(now - mark[0])
            if mark[4] is not None:
                mark[4].pop(slot.ref, None)
        if slot.is_open and slot.dbapi_connection is None:
            slot.count_closed("detached")
            if mark is not None and self._was_dropped(slot):
                self._report_drop(mark)
        if slot.is_retired or slots.is_closed or slots.is_retired:
            self._close_slot(slot, "closed" if slots.is_closed else "disposed")
        else:
            slots.queue.append(slot)
        if slots.waiters or len(slots.known) > slots.kept:
            self._settle()

    def _close_slot(self, slot: Slot, reason: str) -> None:
        """Close the connection of a slot that nobody has, and only then count it out: servers have limits as well."""
        try:
            slot.retire(reason)
        finally:
            self._pool.forget(slot.ref)
            self._pool.has_changed = True

    def _forget(self, slot: Slot) -> None:
        self._close_slot(slot, "invalidated")
        self._settle()

    def _give_back(self, slot: Slot) -> None:
        if slot.dbapi_connection is None:
            self._forget(slot)
        else:
            self._do_return_conn(slot)

    def _lost(self, ref: Any) -> None:
        """Count a slot out that nobody has any more: an interrupt came between its borrower and the pool."""
        slots = self._pool
        if ref in slots.known:
            if slots.known[ref]:
                slots.tally.note("closed lost")
            slots.forget(ref)
            self._settle()

    def _report_drop(self, mark: Mark) -> None:
        self._pool.tally.note("dropped")
        report_drop(mark)

    # -- who is given what

    def _settle(self) -> None:
        """Serve the waiters and close what is too much, or leave both to whoever is at it already."""
        slots = self._pool
        slots.has_changed = True
        while slots.has_changed and not self._overflow_lock.locked():
            with self._overflow_lock:
                slots.has_changed = False
                to_close, to_open = self._settle_locked()
            # a slot that an interrupt keeps from getting its turn here is lost, and gives its place back by that
            for slot, reason in to_close:
                self._close_slot(slot, reason)
            for slot in to_open:
                self._open_aside_for(slot)

    def _settle_locked(self) -> tuple[list[tuple[Slot, str]], list[Slot]]:
        slots = self._pool
        queue, waiters, to_close = slots.queue, slots.waiters, []
        slots.apply_limits()
        while queue and len(slots.known) - len(slots.closing) > slots.capacity:
            to_close.append((slots.start_closing(queue.popleft()), "resized"))
        while queue and slots.surplus > 0 and len(slots.known) - len(slots.closing) > slots.maxsize:
            to_close.append((slots.start_closing(queue.popleft()), "lingered"))
            slots.surplus -= 1
        slots.surplus = 0
        while waiters:
            # offered, woken, and only then taken from the line: if an interrupt comes in between, the next one
            # who settles finds it here and goes on
            waiter = slots.first_waiter()
            if waiter is None:
                break
            if not waiter.is_decided:
                outcome = PoolClosed(_CLOSED) if slots.is_closed else self._next_slot_locked()
                if outcome is None:
                    break
                if waiter.offer(outcome) is not outcome and isinstance(outcome, Slot):
                    # it has just given up
                    slots.put_back(outcome)
            waiter.wake()
            slots.leave(waiter)
        while len(queue) > (0 if slots.is_closed else slots.kept):
            to_close.append((slots.start_closing(queue.pop()), "closed" if slots.is_closed else "overflow"))
        to_open: list[Slot] = []
        if self._open_aside and not slots.is_closed:
            wanted = min(len(waiters), _OPENERS) - len(slots.opening)
            while len(to_open) < wanted and len(slots.known) < slots.capacity:
                to_open.append(slots.add(Slot(self)))
                slots.opening[to_open[-1].ref] = None
        return to_close, to_open

    def _next_slot_locked(self) -> Slot | None:
        slots = self._pool
        try:
            return slots.take()
        except IndexError:
            pass
        # where others may come back, it is opened aside; the first one is opened by its caller
        if len(slots.known) < slots.capacity and not (self._open_aside and slots.known):
            return slots.add(Slot(self))
        return None

    # -- opening aside

    def _open_aside_for(self, slot: Slot) -> None:
        run = self._pool.context_of_first_waiter().run
        try:
            threading.Thread(target=run, args=(self._open, slot), name="sqlspec-opener", daemon=True).start()
        except RuntimeError:
            # the process has no threads left: a waiter connects by itself
            self._pool.opening.pop(slot.ref, None)
            self._do_return_conn(slot)

    def _open(self, slot: Slot) -> None:
        """Connect for whoever is first in the line when it is done, or tell the first in the line why not."""
        slots = self._pool
        # the connection serves others as well: the deadline of one waiter does not end it
        checkout_deadline.set(None)
        try:
            if slots.waiters and not slots.is_closed:
                slot.get_connection()
        except Exception as error:  # noqa: BLE001  # it is raised by the waiter
            slots.tell_first_waiter(error)
        slots.opening.pop(slot.ref, None)
        self._look_after_overflow()
        self._give_back(slot)

    def _invalidate(self, connection: Any, exception: BaseException | None = None, _checkin: bool = True) -> None:
        # SQLAlchemy compares times of the wall clock for this, which may be set
        slot = getattr(connection, "_connection_record", None)
        if slot is None or slot.generation == self._pool.generation:
            self._pool.generation += 1
        super()._invalidate(connection, exception, _checkin)

    # -- the end

    def dispose(self) -> None:
        """Close the idle connections; with ``retire_on_dispose``, those checked out close when they come back."""
        slots = self._pool
        slots.is_disposed = True
        for slot in slots.all() if self._retire_on_dispose else ():
            slot.is_retired = True
        while slots.queue:
            with contextlib.suppress(IndexError):
                self._close_slot(slots.take(), "disposed")
        self._settle()
        self.logger.info("Pool disposed. %s", self.status())

    def close(self, timeout: float | None = None) -> int:
        """Refuse checkouts from now on, let the waiters go, and close idle connections, the others as they come back.

        With a timeout, wait up to so many seconds for those. Return how many are still checked out.
        Thread-safe; a second call is harmless.
        """
        slots = self._pool
        slots.is_closed = True
        self._settle()
        deadline = time.monotonic() + (timeout or 0.0)
        # looked at from time to time: a connection may come back in a finaliser of this very thread, which could
        # not tell a condition that this thread waits for
        while (left := len(slots.known)) and time.monotonic() < deadline:
            self._sleep(0.005)
        return left

    def resize(self, pool_size: int, max_overflow: int | None = None) -> None:
        """Change how many connections are kept and how many may be open beyond that.

        More serve waiters at once. Fewer close idle connections, the longest idle first, and connections that are
        checked out when they come back. Thread-safe.

        Raises:
            ValueError: ``pool_size`` is below 1, or ``max_overflow`` below -1.
        """
        slots = self._pool
        if max_overflow is None:
            max_overflow = slots.max_overflow
        if pool_size < 1 or max_overflow < -1:
            raise ValueError(f"pool_size={pool_size}, max_overflow={max_overflow}: at least 1 and 0; -1 is no limit")
        slots.wished = pool_size, max_overflow
        self._settle()
        self._look_after_overflow()

    # -- from time to time

    def _look_after_overflow(self) -> None:
        slots = self._pool
        if self._linger_seconds and len(slots.known) > slots.maxsize and not slots.is_looked_after:
            self._look_after()

    def _look_after(self) -> None:
        """Have `keep_house` called from time to time, until it says that there is nothing to do."""
        self._pool.is_looked_after = True
        look_after(self, self._pause())

    def _pause(self) -> float:
        pauses = [self._linger_seconds / _LOOKS] if self._linger_seconds else []
        pauses += [self._leak_seconds / 4] if self._leak_seconds is not None else []
        return max(0.02, min(pauses))

    def keep_house(self) -> float | None:
        """Report leaks, close overflow that is not needed; return the seconds to the next time, None for never."""
        slots = self._pool
        slots.is_looked_after = False
        may_leak = self._leak_seconds is not None and any(slot.mark is not None for slot in slots.all())
        if may_leak:
            report_leaks(slots, self._leak_seconds or 0.0)
        has_overflow = self._linger_seconds > 0 and len(slots.known) > slots.maxsize
        if has_overflow:
            # what was idle at each look was not needed
            slots.idle_counts.append(len(slots.queue))
            if len(slots.idle_counts) >= _LOOKS:
                slots.surplus = min(slots.idle_counts)
                slots.idle_counts.clear()
                self._settle()
        if slots.is_closed or not (has_overflow or may_leak):
            slots.idle_counts.clear()
            return None
        slots.is_looked_after = True
        return self._pause()

    # -- what the asyncio variant does otherwise

    def _new_waiter(self) -> Waiter:
        return Waiter(self._owner(), contextvars.copy_context() if self._open_aside else None)

    def _owner(self) -> Owner:
        return threading.current_thread()

    def _find_place(self) -> tuple[Any, int]:
        # from the caller of Pool.connect, _ConnectionFairy._checkout, _ConnectionRecord.checkout, _do_get
        return find_place(sys._getframe(4))

    def _held(self) -> dict[Any, None]:
        """Return the slots that this thread holds."""
        local = self._pool.local
        try:
            return cast("dict[Any, None]", local.held)
        except AttributeError:
            local.held = {}
            return cast("dict[Any, None]", local.held)

    def _was_dropped(self, slot: Slot) -> bool:
        """Tell whether a slot whose connection was detached was in truth dropped by its borrower."""
        return False

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    # -- what callers are told

    def _mind_nesting(self) -> dict[Any, None]:
        held = self._held()
        if held:
            marks = [slot.mark for ref in list(held) if (slot := ref()) is not None and slot.mark is not None]
            if marks:
                self._tell_of_nesting(place_of(marks[0]))
            else:
                held.clear()
        return held

    def _tell_of_nesting(self, first: Place) -> None:
        owner = describe_owner(self._owner())
        told = f"{owner} asks for another connection while it holds one, checked out at {first}"
        if self._nested_checkout == "refuse":
            self._pool.tally.note("refused")
            raise SQLSpecError(f"{told}: use that one, or close it first")
        here = Place(*self._find_place())
        if self._pool.is_news((first, here)):
            _logger.warning("%s; now at %s. Where every holder does that, all wait for each other", told, here)

    def _timed_out(self, timeout: float) -> PoolTimeout:
        slots, me = self._pool, self._owner()
        limit = (
            f"QueuePool limit of size {slots.maxsize} overflow {slots.max_overflow} reached, connection timed out, "
            f"timeout {timeout:0.2f}"
        )
        own = [slot.mark for slot in slots.all() if slot.mark is not None and slot.mark[1] == me]
        error = PoolTimeout(explain_timeout(limit, slots, self.get_holders(), own))
        if slots.last_failure is not None:
            error.__cause__ = slots.last_failure[1]
        return error


_collection = {"next": 0.0}


def _collect_garbage() -> None:
    """Free connections that are held by unreachable cycles only, such as an unclosed sqlalchemy.Connection.

    When every thread waits in a pool nothing is allocated, so that the collector would not run by itself. It may
    take long, so that this is done at most for a hundredth of the time.
    """
    begin = time.monotonic()
    if begin >= _collection["next"]:
        _collection["next"] = math.inf
        try:
            gc.collect()
        finally:
            end = time.monotonic()
            _collection["next"] = end + max(5.0, 100 * (end - begin))
