"""UpkeepPool: what becomes of connections while nobody uses them."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from sqlalchemy import exc
from sqlalchemy.pool import Pool

from sqlspec.exceptions import CircuitOpenError, PoolClosed
from sqlspec.pool.gate import apart_from_forks
from sqlspec.pool.handover import CLOSED, HandOverPool
from sqlspec.pool.liveness import ask, probe_anew
from sqlspec.pool.slot import Slot
from sqlspec.pool.threads import start_thread

__all__ = ["UpkeepPool", "probe"]

_logger = logging.getLogger("sqlspec.pool")

# Seconds between two looks where connections are to be recycled or opened, and at most where they are not.
_OFTEN, _RARELY = 1.0, 30.0
# Seconds after a failed attempt to connect, doubled with each further one, up to the last.
_FIRST_DELAY, _LAST_DELAY = 1.0, 30.0
_PING = "ping"


def delay_after(failures: int) -> float:
    """Return the seconds to wait after so many attempts to connect that failed, one after the other."""
    return float(min(_FIRST_DELAY * 2.0 ** min(failures - 1, 10), _LAST_DELAY))


class UpkeepPool(HandOverPool):
    """Close idle connections that are worn or not needed, ask whether the others are alive, and keep some ready.

    Housekeeping looks what there is to do, and begins a thread for it where there is something (for tasks: a task),
    since closing, asking and connecting may wait for the server: one at a time for each pool. It takes one idle
    slot after the other out, for as long as it is at it.
    """

    @property
    def _has_upkeep(self) -> bool:
        return self._upkeep_pause() is not None

    def _upkeep_pause(self) -> float | None:
        """Return the seconds between two looks, None where there is nothing to look for."""
        limits = [limit for limit in (self._idle_timeout, self._keepalive) if limit is not None]
        if self._recycling is not None or self._min_pool_size:
            return min([_OFTEN, *(limit / 4 for limit in limits)])
        return min(_RARELY, *(limit / 4 for limit in limits)) if limits else None

    def _keep_up(self) -> bool:
        """Have done what is due, by nobody that housekeeping waits for; tell whether there may be more later."""
        slots = self._pool
        # disposed of and not used since: a pool that nobody wants
        if not self._has_upkeep or slots.is_closed or slots.is_retired or slots.disposed_by is not None:
            return False
        if not slots.is_kept_up:
            due = self._find_due(time.monotonic())
            if due or self._lacks_connections():
                slots.is_kept_up = True
                if not self._start_upkeep(due):
                    slots.is_kept_up = False
        return bool(slots.known or self._min_pool_size)

    def _find_due(self, now: float) -> list[Slot]:
        """Return the idle slots with which something is to be done, the longest idle first."""
        due, spare = [], self._spare()
        for slot in sorted(self._pool.queue, key=Slot.used_at):
            what = self._judge(slot, now, spare)
            if what is None:
                continue
            due.append(slot)
            if what != _PING:
                spare -= 1
        return due

    def _spare(self) -> int:
        """Return how many connections there are beyond those that are to be kept ready."""
        return self._pool.count() - self._kept_ready()

    def _kept_ready(self) -> int:
        size = self._pool.maxsize
        return min(self._min_pool_size, size) if size else self._min_pool_size

    def _judge(self, slot: Slot, now: float, spare: int) -> str | None:
        """Return why to close an idle connection, or whether to ask for a sign of life; None: neither."""
        idle = now - slot.used_at()
        if slot.dbapi_connection is None:
            return "invalidated"
        # of a slot that was just checked out, nobody asks the strategy
        if now > slot.expires_at or (slot.mark is None and slot.is_worn(now, idle)):
            return "recycled"
        if self._idle_timeout is not None and idle >= self._idle_timeout and spare > 0:
            return "idle"
        if self._keepalive is not None and now - slot.idle_since >= self._keepalive:
            return _PING
        return None

    def _lacks_connections(self) -> bool:
        slots = self._pool
        return self._spare() < 0 and len(slots.known) < slots.capacity and time.monotonic() >= slots.retry_at

    # -- in a thread of its own, or in a task

    def _start_upkeep(self, due: list[Slot]) -> bool:
        return start_thread("sqlspec-upkeep", self._do_upkeep, due)

    def _do_upkeep(self, due: list[Slot]) -> None:
        slots = self._pool
        try:
            for slot in due:
                self._see_to(slot)
            while self._lacks_connections() and self._open_ready():
                pass
        finally:
            slots.is_kept_up = False

    def _see_to(self, slot: Slot) -> None:
        slots = self._pool
        if slots.take_this(slot) is None:
            return
        try:
            # anew: since it was looked at, somebody may have had it, with another connection
            what = self._judge(slot, time.monotonic(), self._spare())
            if what == _PING:
                self._ping(slot)
            elif what is not None:
                slots.closing[slot.ref] = None
                self._close_slot(slot, what)
        except Exception:
            # of a listener, or of the driver when it closes
            _logger.exception("the upkeep of an idle connection failed")
        finally:
            if slot.ref in slots.known:
                slots.closing.pop(slot.ref, None)
                self._put_back(slot)
            else:
                self._settle()

    def _ping(self, slot: Slot) -> None:
        used_at = slot.used_at()
        try:
            ask(cast("Any", self._dialect), slot.dbapi_connection)
        except exc.DisconnectionError as error:
            self.logger.info("Connection %r is dead (reason: %r)", slot.dbapi_connection, error)
            slot.invalidate(error)
        except BaseException as error:
            # nobody knows in what state it is
            slot.invalidate(error)
            raise
        else:
            slot.idle_since = now = time.monotonic()
            slot.pinged = now, used_at

    def _put_back(self, slot: Slot) -> None:
        """Make a slot idle again, as one that has not been used."""
        if slot.dbapi_connection is None:
            self._forget(slot)
        elif slot.is_retired:
            self._pass_on(slot)
        else:
            # where it was: the longest idle is on the left
            idle, used_at = self._pool.queue, slot.used_at()
            idle.insert(sum(other.used_at() < used_at for other in list(idle)), slot)
            # who waits or closes the pool looks at the idle ones after it has said so
            self._settle()

    def _open_ready(self) -> bool:
        slots = self._pool
        try:
            is_opened = self.open_idle(self._kept_ready())
            slots.failures = 0
            return is_opened
        except PoolClosed:
            return False
        except CircuitOpenError as error:
            # the breaker has told why; this may be the next probe, so that no caller has to
            slots.retry_at = time.monotonic() + min(max(error.retry_after, _FIRST_DELAY), _LAST_DELAY)
            return False
        except Exception as error:  # noqa: BLE001  # it is told, and tried again
            slots.failures += 1
            delay = delay_after(slots.failures)
            slots.retry_at = time.monotonic() + delay
            # its text may have what is not for logs
            kind = type(error).__name__
            _logger.warning("an idle connection could not be opened: %s; the next attempt is in %.3g s", kind, delay)
            return False

    # -- for health checks

    @property
    def is_exhausted(self) -> bool:
        """Tell whether who asks for a connection has to wait until somebody gives one back."""
        slots = self._pool
        if slots.queue or len(slots.known) < slots.capacity:
            return False
        # what is only asked for a sign of life comes back in a moment, and is nobody's
        return sum(slot.mark is not None or slot.is_connecting for slot in slots.all()) >= slots.capacity

    def probe(self) -> None:
        """Ask the server for a sign of life, over an idle connection, or over one that is opened for that.

        The latter is none of the pool's, and is closed at once: it needs no place, and takes nobody's turn. It waits no
        longer than the checkout's deadline. Thread-safe.

        Raises:
            PoolClosed: after `close`.
            Exception: the driver's error, where it cannot connect; SQLAlchemy's, where the server says nothing.
        """
        if self._pool.is_closed:
            raise PoolClosed(CLOSED)
        if getattr(self._dialect, "name", "") == "sqlite":
            # A file says nothing over an open connection, which may belong to one thread besides. A child must not
            # inherit this one's locks.
            apart_from_forks(self._sleep, probe_anew, self)
        elif not self._probe_idle():
            probe_anew(self)

    def _probe_idle(self) -> bool:
        """Ask over the idle connection that was used last; return False where there is none that lives."""
        try:
            slot = self._pool.queue.pop()
        except IndexError:
            return False
        try:
            if slot.dbapi_connection is not None and time.monotonic() <= slot.expires_at:
                self._ping(slot)
                return slot.dbapi_connection is not None
            return False
        finally:
            self._put_back(slot)

    def open_idle(self, total: int) -> bool:
        """Open a connection and keep it idle, or give it to who waits, unless there are so many; return whether it did.

        There are never more than the pool keeps. Thread-safe.

        Raises:
            PoolClosed: after `close`.
            Exception: the driver's error, where it cannot connect.
        """
        slot = self._add_below(total)
        if slot is None:
            return False
        try:
            slot.get_connection()
            self._look_after_overflow()
            return True
        finally:
            self._give_back(slot)

    def _add_below(self, total: int) -> Slot | None:
        """Return a new slot that is counted in, or an idle one without a connection; None: there are enough."""
        slots, slot = self._pool, None
        try:
            # waited for, as nobody else does: neither a finaliser nor a signal handler comes here
            with self._overflow_lock:
                if slots.is_closed:
                    raise PoolClosed(CLOSED)
                empty = [idle for idle in list(slots.queue) if idle.dbapi_connection is None]
                if slots.count() - len(empty) < total:
                    slot = slots.take_this(empty[0]) if empty else self._add_locked()
        finally:
            # others have left to this one what was to do meanwhile
            self._settle()
        return slot

    def _add_locked(self) -> Slot | None:
        slots = self._pool
        return slots.add(self._new_slot()) if len(slots.known) < min(slots.capacity, slots.kept) else None


def probe(pool: Pool) -> None:
    """Ask the server behind a pool for a sign of life, whatever the pool is, and leave nothing open.

    Raises:
        PoolClosed: the pool is closed.
        Exception: the driver's error, where it cannot connect; SQLAlchemy's, where the server says nothing.
    """
    if isinstance(pool, UpkeepPool):
        pool.probe()
    else:
        probe_anew(pool)
