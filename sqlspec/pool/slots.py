"""The places of a pool: Slot is one of them, Slots are all, and everything else that changes in a pool."""

from __future__ import annotations

import contextvars
import copy
import math
import time
import weakref
from collections import deque
from itertools import compress
from threading import get_ident
from typing import Any, Protocol, cast

from sqlalchemy import exc
from sqlalchemy.pool.base import _ConnectionRecord

from sqlspec.pool.liveness import Listener, ask
from sqlspec.pool.places import Mark
from sqlspec.pool.stats import MANY, PoolStats, Tally
from sqlspec.pool.waiters import Waiter

__all__ = ["Slot", "Slots"]

# Places about which something was said once, kept so that it is not said again.
_REMEMBERED = 200


class Home(Protocol):
    """Be the pool that a slot belongs to, as far as the slot needs it."""

    _pool: Slots
    _recycle: int
    _monotonic: bool
    _ping_after: float | None
    _dialect: Any
    dispatch: Any
    logger: Any

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None: ...

    def _do_return_conn(self, record: Any) -> None: ...

    def _lost(self, ref: weakref.ref[Slot]) -> None: ...

    def _report_drop(self, mark: Mark) -> None: ...


class Slot(_ConnectionRecord):
    """Be one place in a pool, with or without a connection in it.

    A slot belongs to one caller at a time: who took it out of the idle ones, or was given it. Nothing here needs
    a lock for that reason.
    """

    __slots__ = (
        "expires_at",
        "home",
        "idle_since",
        "is_connecting",
        "is_open",
        "is_retired",
        "listener",
        "mark",
        "opened_at",
        "proxy",
        "ref",
        "reported",
        "statement",
    )

    def __init__(self, home: Home) -> None:
        super().__init__(cast("Any", home), connect=False)
        self.home = home
        # The pool knows its slots by weak references: a slot that nobody has any more, since an interrupt came
        # between its borrower and the pool, gives its place back by itself.
        self.ref: weakref.ref[Slot] = weakref.ref(self, home._lost)
        # while there is a slot to take it from; afterwards it is looked for by it
        hash(self.ref)
        # by the monotonic clock; None before the first connection
        self.opened_at: float | None = None
        self.expires_at = math.inf
        self.idle_since = 0.0
        self.is_connecting = False
        # tells whether something has come over the connection
        self.listener: Listener | None = None
        # whether a connection is counted as opened and not yet as closed
        self.is_open = False
        # the pool does not want it back
        self.is_retired = False
        # who has it checked out, and the one of them who was reported
        self.mark: Mark | None = None
        self.reported: Mark | None = None
        self.statement: str | None = None
        self.proxy: weakref.ref[Any] | None = None

    def get_connection(self) -> Any:
        """Return the connection; a new one where there is none, or where it must not be used any more."""
        home, mark = self.home, self.mark
        if (
            self.dbapi_connection is None
            # as of the checkout, which has just looked at the clock
            or (mark is not None and mark[0] > self.expires_at)
            or (not home._monotonic and 0 <= home._recycle < time.time() - self.starttime)
        ):
            return self._connect_anew()
        if (
            home._ping_after is not None
            and mark is not None
            and (mark[0] - self.idle_since > home._ping_after or self._has_news())
        ):
            return self._ask_or_connect_anew()
        return self.dbapi_connection

    def _has_news(self) -> bool:
        try:
            if self.listener is None:
                self.listener = Listener(self.dbapi_connection)
            return self.listener.has_news()
        except Exception:  # noqa: BLE001  # a driver refuses fileno() on a closed connection, each in its own class
            return True

    def _ask_or_connect_anew(self) -> Any:
        home = self.home
        try:
            ask(home._dialect, self.dbapi_connection)
        except exc.DisconnectionError as error:
            home.logger.info("Connection %r is dead, it is replaced (reason: %r)", self.dbapi_connection, error)
            self.invalidate(error)
            return self._connect_anew()
        return self.dbapi_connection

    def _connect_anew(self) -> Any:
        home, begin = self.home, time.monotonic()
        if self.dbapi_connection is not None:
            home.logger.info("Connection %r is too old, or was invalidated; recycling", self.dbapi_connection)
            # SQLAlchemy compares times of the wall clock, which may be set: this one is later than all
            self._soft_invalidate_time = math.inf
        self.opened_at = begin
        self.expires_at = begin + home._recycle if home._monotonic and home._recycle >= 0 else math.inf
        self.is_connecting = True
        try:
            connection = super().get_connection()
        except Exception as error:
            home._pool.tally.note("failed_connects")
            home._pool.remember_failure(error)
            raise
        finally:
            self.is_connecting = False
            self._soft_invalidate_time = 0.0
            self.count_closed("recycled")
        # fresh, as one that has just come back
        self.idle_since = now = time.monotonic()
        self._count_opened(now - begin)
        return connection

    def _count_opened(self, seconds: float) -> None:
        slots = self.home._pool
        slots.last_failure = None
        tally = slots.tally
        # from here to the end of the last line no interrupt comes: Python looks for them when it calls functions of
        # its own and after each call
        self.is_open = True
        if self.ref in slots.known:
            slots.known[self.ref] = True
        tally.connects.append(seconds)

    def count_closed(self, reason: str) -> None:
        """Count the connection as closed, where one is counted as open."""
        slots = self.home._pool
        # it would keep the connection alive
        self.listener = None
        if self.is_open:
            tally, event = slots.tally, f"closed {reason}"
            # as above
            self.is_open = False
            if self.ref in slots.known:
                slots.known[self.ref] = False
            tally.events.append(event)
            if len(tally.events) > MANY:
                tally.sum_up()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Close the connection, or with ``soft`` have it replaced at its next checkout."""
        try:
            super().invalidate(e, soft)
        finally:
            if self._soft_invalidate_time:
                # so that one look at checkout serves all reasons
                self.expires_at = min(self.expires_at, 0.0)
            if self.dbapi_connection is None:
                is_error = isinstance(e, Exception)
                self.count_closed("disconnect" if is_error else "invalidated" if e is None else "interrupted")

    def retire(self, reason: str) -> None:
        """Close the connection; the slot is not used again."""
        self.is_retired = True
        try:
            self.close()
        finally:
            if self.dbapi_connection is not None:
                # a listener has failed before it was closed
                connection, self.dbapi_connection = self.dbapi_connection, None
                self.home._close_connection(connection)
            self.count_closed(reason)

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """Give the slot back to its pool, whatever the callbacks and listeners of the checkin raise."""
        borrower = self.fairy_ref
        if borrower is None and _fairy_was_created:
            super().checkin()
            return
        self.fairy_ref = None
        home, mark, connection = self.home, self.mark, self.dbapi_connection
        try:
            while self.finalize_callback:
                callback = self.finalize_callback.pop()
                if connection is not None:
                    callback(connection)
            if home.dispatch.checkin:
                home.dispatch.checkin(connection, self)
        except BaseException as error:
            # nobody knows in what state the connection is now
            self.invalidate(error)
            raise
        finally:
            home._do_return_conn(self)
        if mark is not None and borrower is not None and borrower() is None:
            home._report_drop(mark)


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
        self.closing: dict[Any, None] = {}
        self.tally = Tally()
        self.is_closed = self.is_retired = False
        # the thread that disposed of the pool and has not used it since
        self.disposed_by: int | None = None
        # something has happened that `FairQueuePool._settle` has not seen yet
        self.has_changed = False
        # limits that `resize` wishes for; idle connections that nobody needed for a while
        self.wished: tuple[int, int] | None = None
        self.surplus = 0
        self.idle_counts: list[int] = []
        self.is_looked_after = False
        # when and why connecting failed last, None after a success
        self.last_failure: tuple[float, BaseException] | None = None
        # until when an explanation of a timeout may be told again, and what it says
        self.explained: tuple[float, str] | None = None
        # the pool's own work on an event loop, the loop that looks after it, and its next look
        self.tasks: set[Any] = set()
        self.loop: weakref.ref[Any] | None = None
        self.timer: Any = None
        self._news: dict[object, None] = {}
        self._limit(size, max_overflow)

    def _limit(self, size: int, max_overflow: int) -> None:
        self.maxsize = size
        self.max_overflow = max_overflow
        self.capacity = math.inf if size == 0 or max_overflow == -1 else size + max_overflow
        # how many may be idle
        self.kept = self.capacity if self._lingers else math.inf if size == 0 else size

    def apply_limits(self) -> None:
        """Take over the limits that were wished for; under the pool's lock."""
        wished = self.wished
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
        """Keep why connecting failed, without its traceback, whose frames hold what the application holds."""
        try:
            kept = copy.copy(error)
        except Exception:  # noqa: BLE001  # an exception may refuse to be made anew
            kept = RuntimeError(f"{type(error).__name__}: {error}")
        self.last_failure = (time.monotonic(), kept)

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
            refused=counts.get("refused", 0),
            dropped=counts.get("dropped", 0),
            wait=timings["wait"],
            hold=timings["hold"],
            connect=timings["connect"],
        )
