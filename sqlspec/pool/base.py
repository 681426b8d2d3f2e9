"""SlotPool: a QueuePool whose connections are in slots."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Literal

from sqlalchemy.pool import Pool, QueuePool

from sqlspec.pool.forks import is_foreign, tell_before_forks, tell_of_forks
from sqlspec.pool.gate import PAUSE, apart_from_forks
from sqlspec.pool.places import owner_of_thread
from sqlspec.pool.recycling import RecyclingStrategy
from sqlspec.pool.sizing import AdaptivePool, Reading
from sqlspec.pool.slot import Slot
from sqlspec.pool.slots import Slots

__all__ = ["NestedCheckout", "SlotPool"]

_logger = logging.getLogger("sqlspec.pool")

NestedCheckout = Literal["allow", "warn", "refuse"]
# Seconds in which new limits are seen to be in force.
_PATIENCE = 1.0


class SlotPool(QueuePool):
    """Hold the arguments, the limits and the slots of a pool, and tell its figures under QueuePool's names."""

    _pool: Slots  # type: ignore[assignment]  # it has what is used of a queue

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        max_waiters: int | None = None,
        is_full: Callable[[BaseException], bool] | None = None,
        linger_seconds: float = 0.0,
        open_aside: bool = False,
        nested_checkout: NestedCheckout = "allow",
        leak_seconds: float | None = None,
        slow_seconds: float | None = None,
        monotonic: bool = False,
        retire_on_dispose: bool = False,
        ping_after: float | None = None,
        recycling: RecyclingStrategy | None = None,
        min_pool_size: int | None = None,
        idle_timeout: float | None = None,
        keepalive: float | None = None,
        adaptive: AdaptivePool | None = None,
        **options: Any,
    ) -> None:
        if adaptive is not None:
            adaptive.check(pool_size)
        Pool.__init__(self, creator, **options)
        self._timeout: float | None = timeout  # type: ignore[assignment]  # QueuePool takes None as well
        self._max_waiters = max_waiters
        self._is_full = is_full
        self._linger_seconds = linger_seconds
        self._open_aside = open_aside
        self._nested_checkout: NestedCheckout = nested_checkout
        self._minds_nesting = nested_checkout != "allow"
        self._leak_seconds = leak_seconds
        self._slow_seconds = slow_seconds
        self._monotonic = monotonic
        self._retire_on_dispose = retire_on_dispose
        self._ping_after = ping_after
        self._recycling = recycling
        self._min_pool_size = min_pool_size or 0
        self._idle_timeout = idle_timeout
        self._keepalive = keepalive
        self._adaptive = adaptive
        # whether a checkout has the pool look after itself
        self._is_watched = leak_seconds is not None or adaptive is not None
        self._pool = Slots(pool_size, -1 if pool_size == 0 else max_overflow, use_lifo, linger_seconds > 0)
        # Guards what `HandOverPool._settle_locked` decides: which waiter is given which slot, which slots come and
        # go, and the limits. Nobody waits for it: who finds it locked leaves the work to its holder, which looks
        # again after its release. (The name is that of QueuePool's lock.)
        self._overflow_lock = threading.Lock()
        tell_of_forks(self)
        tell_before_forks(self)

    def __repr__(self) -> str:
        state = "closed" if self._pool.is_closed else f"{self.checkedout()} checked out, {self.checkedin()} checked in"
        return f"<{type(self).__name__} of {self.size()} + {self._max_overflow}, {state}>"

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments with which a pool like this one is made."""
        return {
            "pool_size": self._pool.maxsize,
            "max_overflow": self._pool.max_overflow,
            "timeout": self._timeout,
            "use_lifo": self._pool.use_lifo,
            "max_waiters": self._max_waiters,
            "is_full": self._is_full,
            "linger_seconds": self._linger_seconds,
            "open_aside": self._open_aside,
            "nested_checkout": self._nested_checkout,
            "leak_seconds": self._leak_seconds,
            "slow_seconds": self._slow_seconds,
            "monotonic": self._monotonic,
            "retire_on_dispose": self._retire_on_dispose,
            "ping_after": self._ping_after,
            "recycling": self._recycling,
            "min_pool_size": self._min_pool_size,
            "idle_timeout": self._idle_timeout,
            "keepalive": self._keepalive,
            "adaptive": None if self._adaptive is None else self._adaptive.afresh(),
            "recycle": self._recycle,
            "echo": self.echo,
            "logging_name": self._orig_logging_name,
            "reset_on_return": self._reset_on_return,
            "pre_ping": self._pre_ping,
            "dialect": self._dialect,
        }

    def recreate(self) -> SlotPool:
        """Return a pool with the same options and the present limits, closed where this one is."""
        self.logger.info("Pool recreating")
        slots = self._pool
        # after dispose(), the new pool takes the place of this one
        slots.is_retired = slots.disposed_by == get_ident() and self._retire_on_dispose
        self._settle()
        pool = type(self)(self._creator, **self._arguments(), _dispatch=self.dispatch)
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
    def _max_overflow(self) -> int:
        return self._pool.max_overflow

    @_max_overflow.setter
    def _max_overflow(self, max_overflow: int) -> None:
        # SQLAlchemy's own test kit sets it on living pools
        self.resize(self._pool.maxsize, max_overflow)

    def resize(self, pool_size: int, max_overflow: int | None = None) -> None:
        """Change how many connections are kept and how many may be open beyond that.

        More serve waiters at once. Fewer close idle connections, the longest idle first, and connections that are
        checked out when they come back. A pool that adapts itself leaves the new size alone for a while, by default for
        ten seconds, and goes on from it. Thread-safe.

        Raises:
            ValueError: ``pool_size`` is below 1 or beyond the bounds of a pool that adapts itself, or
                ``max_overflow`` is below -1.
        """
        slots = self._pool
        if max_overflow is None:
            max_overflow = slots.max_overflow if slots.wished is None else slots.wished[1]
        if pool_size < 1 or max_overflow < -1:
            raise ValueError(f"pool_size={pool_size}, max_overflow={max_overflow}: at least 1 and 0; -1 is no limit")
        if self._adaptive is not None:
            self._adaptive.check(pool_size)
            self._adaptive.rest(time.monotonic())
        slots.wished = pool_size, max_overflow
        self._settle_limits()

    def change_size(self, size: int, wanted: int) -> bool:
        """Change `size` from one that has led to this, where nobody has resized meanwhile; return whether it holds."""
        self._pool.suggested = size, wanted
        self._settle_limits()
        return self._pool.maxsize == wanted

    def _settle_limits(self) -> None:
        slots = self._pool
        self._settle()
        until = time.monotonic() + _PATIENCE
        while (slots.wished is not None or slots.suggested is not None) and time.monotonic() < until:
            # Somebody else is settling, and looks again afterwards. In a signal handler it may be this thread.
            time.sleep(0.0005)
            self._settle()
        self._look_after_overflow()

    def read(self, now: float) -> Reading:
        """Return what has been counted up to now."""
        return self._pool.reading(now)

    # -- a fork

    def before_fork(self, until: float) -> None:
        """Close the connections to files of SQLite's: of what is open, a copy of its locks would be inherited.

        Those in use close when they come back, for which it waits, but for what this thread itself has. Nobody opens
        another one meanwhile.
        """
        slots = self._pool
        for slot in slots.all():
            slot.is_retired |= slot.has_file
        # taken meanwhile, since others check out
        for _ in range(len(slots.queue)):
            try:
                slot = slots.queue.popleft()
            except IndexError:
                break
            self._pass_on(slot)
        while (in_use := self._files_of_others()) and time.monotonic() < until:
            time.sleep(PAUSE)
        if in_use:
            # who has it for that long keeps no further fork waiting
            slots.outlasted = in_use
            _logger.warning("a process forks while a thread uses a file of SQLite's: its child must not use that file")

    def _files_of_others(self) -> list[Any]:
        slots, owner = self._pool, owner_of_thread()
        marks = [slot.mark for slot in slots.all() if slot.has_file and slot.dbapi_connection is not None]
        return [mark for mark in marks if mark is None or (mark[1] is not owner and mark not in slots.outlasted)]

    def start_over(self) -> None:
        """Know of no connection, waiter or lock: those of this pool are the parent process's own."""
        parents = self._pool
        self._pool = slots = Slots(parents.maxsize, parents.max_overflow, parents.use_lifo, self._linger_seconds > 0)
        slots.is_closed, slots.is_retired = parents.is_closed, parents.is_retired
        self._overflow_lock = threading.Lock()
        self._adaptive = None if self._adaptive is None else self._adaptive.afresh()
        for event in (self.dispatch.connect, self.dispatch.first_connect):
            # somebody may have held it who opened the first connection
            if getattr(event, "_exec_once_mutex", None) is not None:
                event._exec_once_mutex = threading.Lock()  # type: ignore[attr-defined]  # not in its declared interface
        for slot in parents.all():
            if slot.stays_over_fork():
                slots.add(slot)
                slots.queue.append(slot)
            else:
                slot.abandon()

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        if is_foreign():
            # a child that has not started over yet: the parent closes it
            return
        super()._close_connection(connection, terminate=terminate)

    # -- connecting

    def _should_wrap_creator(self, creator: Any) -> Any:
        connect: Any = super()._should_wrap_creator(creator)
        return lambda record: apart_from_forks(self._sleep, connect, record)

    # -- for the classes on top

    def _pass_on(self, slot: Slot) -> None:
        raise NotImplementedError

    def _sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        raise NotImplementedError

    def _look_after_overflow(self) -> None:
        raise NotImplementedError
