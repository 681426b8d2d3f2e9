"""Slots: the places of a pool, and everything else in it that changes."""

from __future__ import annotations

import contextvars
import math
import time
import weakref
from collections import deque
from itertools import compress
from threading import get_ident
from typing import Any

from sqlspec.exceptions import without_frames
from sqlspec.pool.sizing import Reading
from sqlspec.pool.slot import Slot
from sqlspec.pool.stats import PoolStats, Tally
from sqlspec.pool.waiters import Waiter

__all__ = ["Slots"]

# Places about which something was said once, kept so that it is not said again.
_REMEMBERED = 200


class Slots:
    """Hold the slots of a pool and those who wait for one, under the names of QueuePool's queue where it has them.

    Each step here is atomic; what must be decided together, `FairQueuePool` decides under its lock.
    """

    def __init__(self, size: int, max_overflow: int, use_lifo: bool, lingers: bool) -> None:
        self.use_lifo = use_lifo
        self._lingers = lingers
        # idle slots, the longest idle on the left
        self.queue: deque[Slot] = deque()
        # in the order of asking
        self.waiters: deque[Waiter] = deque()
        # Every slot there is, by weak reference (see Slot), and whether it has a connection; among them those in
        # which somebody connects for the waiters, and those that are being closed.
        self.known: dict[Any, bool] = {}
        self.opening: dict[Any, None] = {}
        # of those in which somebody connects, the ones whose opener has not begun
        self.unopened: dict[Any, Slot] = {}
        self.closing: dict[Any, None] = {}
        self.tally = Tally()
        self.is_closed = self.is_retired = False
        # the thread that disposed of the pool and has not used it since
        self.disposed_by: int | None = None
        # something has happened that `FairQueuePool._settle` has not seen yet
        self.has_changed = False
        # limits that `resize` wishes for; the size that has led to another one, and that; idle connections that nobody
        # needed for a while
        self.wished: tuple[int, int] | None = None
        self.suggested: tuple[int, int] | None = None
        self.surplus = 0
        self.idle_counts: list[int] = []
        self.is_looked_after = False
        # somebody is at the upkeep; attempts to open an idle connection that failed, and when to try again
        self.is_kept_up = False
        self.failures = 0
        self.retry_at = 0.0
        # when and why connecting failed last, None after a success
        self.last_failure: tuple[float, BaseException] | None = None
        # until when the server is taken to have no further connection
        self.full_until = 0.0
        # until when an explanation of a timeout may be told again, and what it says
        self.explained: tuple[float, str] | None = None
        # the pool's own work on an event loop, the loop that looks after it, and its next look
        self.tasks: set[Any] = set()
        self.loop: weakref.ref[Any] | None = None
        self.timer: Any = None
        # checkouts for which a fork has waited in vain
        self.outlasted: list[Any] = []
        self._news: dict[object, None] = {}
        self._limit(size, max_overflow)

    def _limit(self, size: int, max_overflow: int) -> None:
        self.maxsize = size
        self.max_overflow = max_overflow
        self.capacity = math.inf if size == 0 or max_overflow == -1 else size + max_overflow
        # how many may be idle
        self.kept = self.capacity if self._lingers else math.inf if size == 0 else size

    def apply_limits(self) -> None:
        """Take over the limits that were wished for, or else the size that was suggested; under the pool's lock."""
        suggested, self.suggested = self.suggested, None
        wished = self.wished
        if suggested is not None and wished is None and suggested[0] == self.maxsize:
            self._limit(suggested[1], self.max_overflow)
            self.tally.events.append("grown" if suggested[1] > suggested[0] else "shrunk")
        if wished is not None:
            self._limit(*wished)
            if self.wished is wished:
                self.wished = None

    # -- slots

    def qsize(self) -> int:
        """Return the number of idle slots."""
        return len(self.queue)

    def empty(self) -> bool:
        """Tell whether no slot is idle."""
        return not self.queue

    def take(self) -> Slot:
        """Take an idle slot; IndexError where there is none."""
        return self.queue.pop() if self.use_lifo else self.queue.popleft()

    def take_this(self, slot: Slot) -> Slot | None:
        """Take this slot where it is idle; None: somebody has it."""
        try:
            self.queue.remove(slot)
        except ValueError:
            return None
        return slot

    def put_back(self, slot: Slot) -> None:
        """Undo `take`, or `add` where the slot is new."""
        if slot.opened_at is None:
            self.forget(slot.ref)
        elif self.use_lifo:
            self.queue.append(slot)
        else:
            self.queue.appendleft(slot)

    def add(self, slot: Slot) -> Slot:
        """Count a new slot in."""
        self.known[slot.ref] = False
        # the pool is in use again
        if self.disposed_by == get_ident():
            self.disposed_by = None
        return slot

    def forget(self, ref: Any) -> None:
        """Count a slot out."""
        # known last: what an interrupt leaves undone here, whoever finds the slot lost does
        self.opening.pop(ref, None)
        self.closing.pop(ref, None)
        # Where an interrupt came before its closing was counted, it is counted now: once, whoever else is at it, since
        # no code of Python's runs in this.
        self.tally.events.extend(compress(("closed lost",), map(self.known.pop, (ref,), (False,))))

    def count(self) -> int:
        """Return how many slots there are that are not being closed."""
        return len(self.known) - len(self.closing)

    def limit(self) -> float:
        """Return how many slots there may be by now: no further ones while the server has no connection left."""
        if self.full_until and time.monotonic() < self.full_until:
            # at least one, whose connection may be had by now
            return max(1, sum(list(self.known.values())))
        return self.capacity

    def pick_for_closing(self, picked: list[tuple[Slot, str]], count: float, reason: str, newest: bool = False) -> None:
        """Take so many idle slots, if there are, the longest idle first or last; they count as going from now on."""
        enough = len(picked) + count
        while len(picked) < enough:
            try:
                slot = self.queue.pop() if newest else self.queue.popleft()
            except IndexError:
                break
            self.closing[slot.ref] = None
            picked.append((slot, reason))

    def all(self) -> list[Slot]:
        """Return the slots there are at this moment."""
        return [slot for ref in list(self.known) if (slot := ref()) is not None]

    # -- waiters

    def first_waiter(self) -> Waiter | None:
        """Return who has waited longest."""
        try:
            return self.waiters[0]
        except IndexError:
            return None

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter from the line. Harmless when repeated."""
        try:  # noqa: SIM105  # suppress() would cost more than the rest
            self.waiters.remove(waiter)
        except ValueError:
            pass

    def tell_first_waiter(self, error: BaseException) -> None:
        """Have the first who is not decided yet raise this error."""
        for waiter in list(self.waiters):
            if not waiter.is_gone and waiter.offer(error) is error:
                waiter.wake()
                return

    def context_of_first_waiter(self) -> contextvars.Context:
        """Return the context variables with which to connect for the waiters."""
        waiter = self.first_waiter()
        return contextvars.copy_context() if waiter is None or waiter.context is None else waiter.context.copy()

    # -- what is remembered

    def remember_failure(self, error: BaseException) -> None:
        """Keep why connecting failed."""
        self.last_failure = (time.monotonic(), without_frames(error))

    def is_news(self, what: object) -> bool:
        """Tell whether nothing has been said about this yet."""
        if what in self._news:
            return False
        while len(self._news) >= _REMEMBERED:
            self._news.pop(next(iter(list(self._news)), None), None)
        self._news[what] = None
        return True

    def stats(self) -> PoolStats:
        """Return the figures of this moment, which agree with each other."""
        slots = self.all()
        used = sum(slot.is_open and slot.mark is not None for slot in slots)
        connecting = sum(slot.is_connecting for slot in slots)
        timings, counts = self.tally.read()
        # by the counts, and not by the slots, which others change meanwhile: so all figures agree
        closed = {name.removeprefix("closed "): n for name, n in counts.items() if name.startswith("closed ")}
        total = max(0, timings["connect"].count - sum(closed.values()))
        used = min(used, total)
        return PoolStats(
            size=self.maxsize,
            checked_in=total - used,
            checked_out=used,
            overflow=total - self.maxsize,
            total=total,
            waiters=len(self.waiters),
            capacity=None if self.capacity == math.inf else int(self.capacity),
            connecting=connecting,
            created=timings["connect"].count,
            closed=closed,
            failed_connects=counts.get("failed_connects", 0),
            timeouts=counts.get("timeouts", 0),
            refused=counts.get("refused", 0) + counts.get("refused_connects", 0),
            dropped=counts.get("dropped", 0),
            fallbacks=counts.get("fallbacks", 0),
            grown=counts.get("grown", 0),
            shrunk=counts.get("shrunk", 0),
            wait=timings["wait"],
            hold=timings["hold"],
            connect=timings["connect"],
        )

    def reading(self, now: float) -> Reading:
        """Return what has been counted up to now."""
        # What has ended first: what ends in between is missing then, which `PoolMetrics` notices. The other way round
        # it would be counted twice.
        timings, counts = self.tally.read()
        slots = self.all()
        used = [now - mark[0] for slot in slots if (mark := slot.mark) is not None]
        waited = [now - waiter.since for waiter in list(self.waiters) if not (waiter.decision or waiter.is_gone)]
        connecting = [now - (slot.opened_at or now) for slot in slots if slot.is_connecting]
        return Reading(
            at=now,
            size=self.maxsize,
            used_seconds=timings["hold"].sum + sum(seconds for seconds in used if seconds > 0.0),
            waited_seconds=timings["wait"].sum + sum(seconds for seconds in waited if seconds > 0.0),
            connects=timings["connect"].count,
            connect_seconds=timings["connect"].sum,
            failed_connects=counts.get("failed_connects", 0) + counts.get("refused_connects", 0),
            connecting_seconds=max(connecting, default=0.0),
        )
