"""SQLAlchemy's QueuePool with a timeout for each checkout, and an end."""

from __future__ import annotations

import math
import threading
import time
from contextvars import ContextVar
from typing import Any, Literal

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util import queue

from sqlspec.exceptions import PoolClosed, PoolTimeout

__all__ = ["DeadlinePool", "checkout_deadline"]

# Monotonic time at which the checkout under way must be over; None: the pool's own timeout decides.
checkout_deadline: ContextVar[float | None] = ContextVar("checkout_deadline", default=None)


_LOOK_AGAIN = 0.5
_CLOSED = "the pool is closed: open a new registry, or register the config again"


class _Queue(queue.Queue[ConnectionPoolEntry]):
    """Be the queue of idle connections: taking one that is there needs no lock, a deque's pop is atomic."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self.take = self.queue.pop if use_lifo else self.queue.popleft
        # The mutex guards appending, _waiting and closed, so that who waits misses no return of another thread.
        # It is reentrant: a garbage collector's finaliser may return a connection in the middle of any of these,
        # even in the thread that is about to wait, which therefore looks again from time to time.
        self._waiting = 0
        self.closed = False

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:
        # a pool closes what has no room, and never waits for it
        with self.mutex:
            if self.closed or 0 < self.maxsize <= len(self.queue):
                raise queue.Full
            self.queue.append(item)
            if self._waiting:
                self.not_empty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self.mutex:
            self._waiting += 1
            try:
                while True:
                    try:
                        return self.take()
                    except IndexError:
                        left = deadline - time.monotonic() if block and not self.closed else 0.0
                    if left <= 0:
                        raise queue.Empty
                    self.not_empty.wait(min(left, _LOOK_AGAIN))
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """Take nothing from now on, and let those who wait go."""
        with self.mutex:
            self.closed = True
            self.not_empty.notify_all()


class DeadlinePool(QueuePool):
    """Keep every promise of QueuePool; obey `checkout_deadline`, and stay closed after `close`."""

    # the logger that applications have configured
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"
    _queue_class = _Queue
    _pool: _Queue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Tells close() that a connection ended; guards nothing else.
        self._ended = threading.Condition()

    def __repr__(self) -> str:
        state = "closed" if self._pool.closed else f"{self.checkedout()} checked out, {self.checkedin()} checked in"
        return f"<{type(self).__name__} of {self.size()} + {self._max_overflow}, {state}>"

    @property
    def _timeout(self) -> float:
        deadline = checkout_deadline.get()
        return self._own_timeout if deadline is None else max(0.0, deadline - time.monotonic())

    @_timeout.setter
    def _timeout(self, seconds: float) -> None:
        self._own_timeout = seconds

    def recreate(self) -> DeadlinePool:
        """Return a pool with the same options, closed where this one is."""
        pool = super().recreate()
        if not isinstance(pool, DeadlinePool):
            raise TypeError(f"recreate() made a {type(pool).__name__}")
        if self._pool.closed:
            pool._pool.close()
        return pool

    def total(self) -> int:
        """Return how many connections are open."""
        return self.checkedin() + self.checkedout()

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._pool.take()
        except IndexError:
            timeout = self._timeout
        try:
            return super()._do_get()
        except exc.TimeoutError:
            if self._pool.closed:
                raise PoolClosed(_CLOSED) from None
            raise PoolTimeout(
                f"no connection came free within {round(timeout, 2):g} s: {self.checkedout()} of "
                f"{self.size() + self._max_overflow} are checked out"
            ) from None

    def _create_connection(self) -> ConnectionPoolEntry:
        if self._pool.closed:
            raise PoolClosed(_CLOSED)
        return super()._create_connection()

    def _dec_overflow(self) -> Literal[True]:
        super()._dec_overflow()
        if self._pool.closed:
            with self._ended:
                self._ended.notify_all()
        return True

    def close(self, timeout: float | None = None) -> int:
        """Refuse checkouts from now on, close idle connections, and the others as they come back.

        With a timeout, wait up to so many seconds for those. Return how many are still checked out.
        Thread-safe; a second call is harmless.
        """
        self._pool.close()
        self._close_idle()
        deadline = time.monotonic() + (timeout or 0.0)
        with self._ended:
            while self.checkedout() > 0 and (left := deadline - time.monotonic()) > 0:
                self._ended.wait(left)
        return self.checkedout()

    def _close_idle(self) -> None:
        # not dispose(): that one forgets what is checked out
        while True:
            try:
                record = self._pool.take()
            except IndexError:
                return
            try:
                record.close()
            finally:
                self._dec_overflow()
