"""HandOverPool: who is given which connection, and when."""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import time
import weakref
from threading import get_ident
from typing import Any

from sqlspec.exceptions import PoolClosed, PoolTimeout
from sqlspec.pool.base import SlotPool
from sqlspec.pool.counted import CountedSlot
from sqlspec.pool.deadlines import checkout_deadline, is_watching
from sqlspec.pool.forks import is_foreign
from sqlspec.pool.garbage import collect_garbage
from sqlspec.pool.places import Mark, Owner
from sqlspec.pool.proxy import Proxy, lent
from sqlspec.pool.slot import Slot
from sqlspec.pool.stats import MANY
from sqlspec.pool.threads import start_thread
from sqlspec.pool.waiters import Waiter

__all__ = ["CLOSED", "HandOverPool"]

CLOSED = "the pool is closed: open a new registry, or register the config again"
_GAVE_UP = object()
# Seconds of waiting after which connections that nobody can reach any more are looked for.
_STARVED = 0.25
# Seconds for each of those who wait, so that a crowd of them does not keep the processor busy by looking.
_EACH = 0.005
# Seconds for which a server that has no connection left is asked for none.
_FULL = 1.0
# Connections that are opened at the same time for those who wait.
_OPENERS = 4


class HandOverPool(SlotPool):
    """Move slots between those who ask, those who give back, and the database.

    The slots and the waiters are in `Slots`. Taking an idle slot and giving one back while nobody waits are single
    atomic steps. Everything else is decided by `_settle`, which whoever changes something calls afterwards.
    """

    # -- checkout, where no connection is idle

    def _wait_for_slot(self, owner: Owner) -> Slot:
        if self._max_waiters is not None and not self._pool.is_closed:
            self._refuse_beyond(self._max_waiters)
        begin = time.monotonic()
        slot = self._wait_in_line(owner, begin, is_first=False)
        while slot is None:
            slot = self._wait_in_line(owner, begin, is_first=True)
        return slot

    def _wait_in_line(self, owner: Owner, begin: float, *, is_first: bool) -> Slot | None:
        """Wait for a slot with a connection; None: the server has none left, and those of others may come back."""
        slots, deadline = self._pool, checkout_deadline.get()
        if slots.is_closed:
            raise PoolClosed(CLOSED)
        patience = self._timeout if deadline is None else max(0.0, deadline - begin)
        if patience is None:
            patience = math.inf
        waiter = self._waiter(owner, contextvars.copy_context() if self._open_aside else None)
        # what it has waited before is counted already
        waiter.since = since = time.monotonic() if is_first else begin
        # without patience it waits for nobody, not even for who opens a connection
        waiter.is_starved = deadline is None and patience <= 0
        outcome: Any = None
        try:
            (slots.waiters.appendleft if is_first else slots.waiters.append)(waiter)
            # who gives back looks for waiters after that, so that nothing is overlooked in between
            if slots.queue or slots.is_closed or len(slots.known) < slots.capacity:
                self._settle()
            if not waiter.decision:
                if self._adaptive is not None and self._adaptive.may_look(begin):
                    # a pool that may grow does not let it wait until the next look
                    self._look_after(0.0)
                # begun a while ago where it is first in the line
                waiter.wait(min(_STARVED, begin + patience - time.monotonic()))
                if not waiter.decision:
                    self._wait_on(waiter, begin + patience)
                    if deadline is None:
                        self._wait_for_opening(waiter)
                slots.tally.waits.append(time.monotonic() - since)
        except BaseException:
            outcome = waiter.offer(_GAVE_UP)
            if isinstance(outcome, Slot):
                self._give_back(outcome)
            raise
        finally:
            outcome = outcome or waiter.offer(_GAVE_UP)
            if outcome is _GAVE_UP:
                # otherwise it has been taken from the line; looking for it would take long in a long one
                slots.leave(waiter)
        if isinstance(outcome, Slot):
            is_there = outcome.opened_at is not None or self._connect_first(outcome)
            return outcome if is_there else None
        if outcome is _GAVE_UP:
            slots.tally.note("timeouts")
            outcome = self._timed_out(owner, patience)
        error: BaseException = outcome
        raise error

    def _refuse_beyond(self, limit: int) -> None:
        slots = self._pool
        room = slots.capacity - len(slots.known) + len(slots.opening)
        if len(slots.waiters) - max(0, room) >= limit:
            slots.tally.note("refused")
            raise PoolTimeout(f"{len(slots.waiters)} callers wait for a connection already, and max_waiters={limit}")

    def _pause_of_waiters(self) -> float:
        """Return after how many seconds a waiter does something about it; in a crowd later, since all of them do."""
        return max(_STARVED, _EACH * len(self._pool.waiters))

    def _wait_on(self, waiter: Waiter, deadline: float) -> None:
        """Wait for long, and do something about it."""
        # in a crowd later, since all of them do
        waiter.wait(min(deadline - time.monotonic(), self._pause_of_waiters() - _STARVED))
        while not waiter.decision and (now := time.monotonic()) < deadline:
            # it need not wait for others any more, where there is room
            waiter.is_starved = True
            self._find_lost()
            self._settle()
            if self._misses_any(now):
                collect_garbage(now, deadline)
            if not waiter.decision:
                waiter.wait(min(deadline - time.monotonic(), self._pause_of_waiters()))

    def _misses_any(self, now: float) -> bool:
        """Tell whether a connection has been away for long, so that nobody may be able to reach it any more.

        Where all of them come back soon, there are only too few. To collect garbage would make that worse: an event
        loop stands still meanwhile, a tenth of a second in an ordinary application.
        """
        for slot in self._pool.all():
            mark = slot.mark
            if now - (slot.idle_since if mark is None else mark[0]) > _STARVED:
                return True
        return False

    def _wait_for_opening(self, waiter: Waiter) -> None:
        """Wait on where there is room for a connection: as in QueuePool, `timeout` is not for connecting."""
        slots = self._pool
        while not waiter.decision:
            waiter.is_starved = True
            self._find_lost()
            self._settle()
            with contextlib.suppress(ValueError):
                if slots.waiters.index(waiter) >= slots.limit() - len(slots.known) + len(slots.opening):
                    return
            waiter.wait(_STARVED)

    def _connect_first(self, slot: Slot) -> bool:
        """Connect; tell whether that is done, and not rather to be waited for what others give back."""
        try:
            slot.get_connection()
        except BaseException as error:
            self._forget(slot)
            if self._finds_full(error):
                return False
            raise
        self._look_after_overflow()
        return True

    def _finds_full(self, error: BaseException) -> bool:
        """Tell whether the server has no connection left but those of this pool; ask it for none for a while then."""
        slots = self._pool
        if self._is_full is None or not self._is_full(error):
            return False
        if not any(slot.is_open or slot.is_connecting for slot in slots.all()):
            return False
        slots.full_until = time.monotonic() + _FULL
        return True

    def is_served(self) -> bool:
        """Tell whoever connects whether the server has connections for this pool: open ones, or that others open."""
        slots = self._pool.all()
        is_open = any(slot.is_open and not slot.is_connecting for slot in slots)
        return is_open or sum(slot.is_connecting for slot in slots) > 1

    # -- checkin: what is called from here never waits

    def _do_return_conn(self, slot: Slot) -> None:  # type: ignore[override]  # every record of this pool is one
        # no interrupt comes before the next call: a slot that is idle has no mark
        mark, slot.mark = slot.mark, None
        try:
            if mark is not None:
                slot.idle_since = now = time.monotonic()
                tally = self._pool.tally
                tally.holds.append(now - mark[0])
                if len(tally.holds) > MANY:
                    tally.sum_up()
            if slot.is_open and slot.dbapi_connection is None:
                slot.count_closed("detached")
                if mark is not None and slot.was_dropped():
                    self._report_drop(mark)
        finally:
            self._pass_on(slot)

    def _pass_on(self, slot: Slot) -> None:
        """Give a slot to who waits, to the idle ones, or up."""
        slots = self._pool
        is_wanted = not (slot.is_retired or slots.is_closed)
        waiters = slots.waiters
        # Hand it over. Needs no lock: of those who offer at the same time, one is the first.
        while waiters and is_wanted and len(slots.known) <= slots.capacity:
            try:
                waiter = waiters[0]
            except IndexError:
                break
            # who has decided may have this very slot behind it: it has come back before its waiter left the line
            is_taken = not (waiter.decision or waiter.is_gone) and waiter.offer(slot) is slot
            # woken, and only then taken from the line: if an interrupt comes in between, the next one who gives
            # back or settles finds it here and goes on
            waiter.wake()
            slots.leave(waiter)
            if is_taken:
                return
        if slots.is_retired or not is_wanted:
            try:
                self._close_slot(slot, "closed" if slots.is_closed else "disposed")
            finally:
                self._settle()
            return
        slots.queue.append(slot)
        # looked at after that: who closes the pool, or waits, looks at the idle ones after it has said so
        if waiters or len(slots.known) > slots.kept or slots.is_closed or slots.is_retired:
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

    def _take_back(self, ref: weakref.ref[Any]) -> None:
        """Give back what its borrower has dropped, as if it had been closed; in whatever thread that comes out."""
        if is_foreign():
            return
        if is_watching():
            # that may wait for the server; where there is no thread for it, `_find_lost` makes up for it
            start_thread("sqlspec-returning", self._take_back, ref)
            return
        slot = lent.pop(ref, None)
        if slot is not None and slot.fairy_ref is ref and not sys.is_finalizing():
            Proxy(self, slot.dbapi_connection, slot, self._should_log_debug())._checkin()

    def _lost(self, ref: Any) -> None:
        """Count a slot out that nobody has any more: an interrupt came between its borrower and the pool."""
        slots = self._pool
        if sys.is_finalizing() or is_foreign():
            return
        if ref in slots.known:
            slots.forget(ref)
            self._settle()

    def _find_lost(self) -> None:
        """Make up for the calls of `_take_back` and `_lost` in which Python has swallowed an interrupt."""
        for ref, slot in list(lent.items()):
            if ref() is None and slot.home is self:
                self._take_back(ref)
        for ref in list(self._pool.known):
            if ref() is None:
                self._lost(ref)

    # -- who is given what

    def _settle(self) -> None:
        """Serve the waiters and close what is too much, or leave both to whoever is at it already."""
        slots = self._pool
        to_close: list[tuple[Slot, str]] = []
        to_open: list[Slot] = []
        slots.has_changed = True
        try:
            while slots.has_changed and not self._overflow_lock.locked():
                with self._overflow_lock:
                    slots.has_changed = False
                    self._settle_locked(to_close, to_open)
        except BaseException:
            self._keep_all(to_close)
            raise
        for slot in to_open:
            self._open_aside_for(slot)
        if to_close:
            self._close_all(to_close)

    def _close_all(self, to_close: list[tuple[Slot, str]]) -> None:
        try:
            while to_close:
                self._close_slot(*to_close.pop(0))
        finally:
            # after an exception, the others are idle again
            self._keep_all(to_close)
            self._settle()

    def _keep_all(self, to_close: list[tuple[Slot, str]]) -> None:
        for slot, _ in to_close:
            self._pool.closing.pop(slot.ref, None)
            self._pool.queue.append(slot)

    def _settle_locked(self, to_close: list[tuple[Slot, str]], to_open: list[Slot]) -> None:
        slots = self._pool
        slots.apply_limits()
        slots.pick_for_closing(to_close, slots.count() - slots.capacity, "resized")
        slots.pick_for_closing(to_close, min(slots.surplus, slots.count() - slots.maxsize), "lingered")
        slots.surplus = 0
        # in the order of `_pass_on`, for its reasons
        while (waiter := slots.first_waiter()) is not None:
            if not (waiter.decision or waiter.is_gone):
                outcome = PoolClosed(CLOSED) if slots.is_closed else self._next_slot_locked(waiter)
                if outcome is None:
                    break
                if waiter.offer(outcome) is not outcome and isinstance(outcome, Slot):
                    # it has just given up
                    slots.put_back(outcome)
            waiter.wake()
            slots.leave(waiter)
        if slots.is_closed or slots.is_retired:
            slots.pick_for_closing(to_close, len(slots.queue), "closed" if slots.is_closed else "disposed")
        else:
            slots.pick_for_closing(to_close, len(slots.queue) - slots.kept, "overflow", newest=True)
        if self._open_aside and not slots.is_closed:
            wanted = min(len(slots.waiters), _OPENERS)
            while len(slots.opening) < wanted and len(slots.known) < slots.limit():
                slot = slots.add(self._new_slot())
                slots.opening[slot.ref] = None
                to_open.append(slot)

    def _next_slot_locked(self, waiter: Waiter) -> Slot | None:
        slots = self._pool
        with contextlib.suppress(IndexError):
            return slots.take()
        # where others may come back, it is opened aside for a while; the first one is opened by its caller
        if len(slots.known) < slots.limit() and (waiter.is_starved or not (self._open_aside and slots.known)):
            return slots.add(self._new_slot())
        return None

    def _new_slot(self) -> Slot:
        return Slot(self) if self._recycling is None else CountedSlot(self)

    # -- opening aside

    def _open_aside_for(self, slot: Slot) -> None:
        slots = self._pool
        run = slots.context_of_first_waiter().run
        slots.unopened[slot.ref] = slot
        is_started = False
        try:
            is_started = start_thread("sqlspec-opener", run, self._open, slot.ref)
        finally:
            # After an interrupt the thread may run or not: who takes the slot from there has it.
            if not is_started and slots.unopened.pop(slot.ref, None) is not None:
                # a waiter connects by itself
                slots.opening.pop(slot.ref, None)
                self._do_return_conn(slot)

    def _open(self, ref: weakref.ref[Slot]) -> None:
        """Connect for whoever is first in the line when it is done, or tell the first in the line why not."""
        slots = self._pool
        slot = slots.unopened.pop(ref, None)
        if slot is None:
            return
        # the connection serves others as well: the deadline of one waiter does not end it
        checkout_deadline.set(None)
        try:
            if slots.waiters and not slots.is_closed:
                slot.get_connection()
        except BaseException as error:  # noqa: BLE001  # it is raised by the waiter
            if not self._finds_full(error):
                slots.tell_first_waiter(error)
        try:
            self._look_after_overflow()
            self._give_back(slot)
        finally:
            # only now, so that the waiter sees an opening or what has come of it
            slots.opening.pop(ref, None)
            # one opener less: others may wait
            self._settle()

    # -- the end

    def _invalidate(self, connection: Any, exception: BaseException | None = None, _checkin: bool = True) -> None:
        # SQLAlchemy compares times of the wall clock for this, which may be set
        slot = getattr(connection, "_connection_record", None)
        # a connection that is expired already tells nothing new
        if slot is None or slot.expires_at != -math.inf:
            # also those in which somebody connects: that may be to what has just gone
            for known in self._pool.all():
                known.expires_at = -math.inf
        super()._invalidate(connection, exception, _checkin)

    def dispose(self) -> None:
        """Close the idle connections; with ``retire_on_dispose``, those checked out close when they come back."""
        slots = self._pool
        for slot in slots.all() if self._retire_on_dispose else ():
            slot.is_retired = True
        while slots.queue:
            with contextlib.suppress(IndexError):
                self._close_slot(slots.take(), "disposed")
        self._settle()
        # until this thread uses it again; others may come before it has made the next pool
        slots.disposed_by = get_ident()
        self.logger.info("Pool disposed. %s", self.status())

    def close(self, timeout: float | None = None) -> int:
        """Do what `FairQueuePool.close` promises."""
        slots = self._pool
        slots.is_closed = True
        self._settle()
        deadline = time.monotonic() + (timeout or 0.0)
        # looked at from time to time: a connection may come back in a finaliser of this very thread, which could
        # not tell a condition that this thread waits for
        while (left := len(slots.known)) and time.monotonic() < deadline:
            self._sleep(0.005)
        return left

    # -- for the classes on top

    _waiter: type[Waiter]

    def _timed_out(self, owner: Owner, timeout: float) -> PoolTimeout:
        raise NotImplementedError

    def _report_drop(self, mark: Mark) -> None:
        raise NotImplementedError

    def _look_after(self, seconds: float | None = None) -> None:
        raise NotImplementedError
