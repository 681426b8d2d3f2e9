"""SQLAlchemy's QueuePool with a timeout for each checkout, and an end."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util import queue

from sqlspec.exceptions import PoolClosed, PoolTimeout

__all__ = ["DeadlinePool", "checkout_deadline"]

# Monotonic time at which the checkout under way must be over; None: the pool's own timeout decides.
checkout_deadline: ContextVar[float | None] = ContextVar("checkout_deadline", default=None)


class DeadlinePool(QueuePool):
    """Keep every promise of QueuePool; obey `checkout_deadline`, and stay closed after `close`."""

    # the logger that applications have configured
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Guards _closing and its change against a return; the queue's own mutex is never taken under it.
        self._returned = threading.Condition()
        self._closing = False

    @property
    def _timeout(self) -> float:
        deadline = checkout_deadline.get()
        return self._own_timeout if deadline is None else max(0.0, deadline - time.monotonic())

    @_timeout.setter
    def _timeout(self, seconds: float) -> None:
        self._own_timeout = seconds

    def total(self) -> int:
        """Return how many connections are open."""
        return self.checkedin() + self.checkedout()

    def _do_get(self) -> ConnectionPoolEntry:
        if self._closing:
            raise PoolClosed("the pool is closed: open a new registry, or register the config again")
        begin = time.monotonic()
        try:
            return super()._do_get()
        except exc.TimeoutError:
            raise PoolTimeout(
                f"no connection came free within {time.monotonic() - begin:.3g} s: {self.checkedout()} of "
                f"{self.size() + self._max_overflow} are checked out"
            ) from None

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if not self._closing:
            super()._do_return_conn(record)
            if not self._closing:
                return
            # close() emptied the queue between the check above and the return
            self._close_idle()
        else:
            try:
                record.close()
            finally:
                self._dec_overflow()
        with self._returned:
            self._returned.notify_all()

    def close(self, timeout: float | None = None) -> int:
        """Refuse checkouts from now on, close idle connections, and the others as they come back.

        With a timeout, wait up to so many seconds for those. Return how many are still checked out.
        Thread-safe; a second call is harmless.
        """
        self._closing = True
        self._close_idle()
        deadline = time.monotonic() + (timeout or 0.0)
        with self._returned:
            while self.checkedout() > 0 and (left := deadline - time.monotonic()) > 0:
                self._returned.wait(left)
        return self.checkedout()

    def _close_idle(self) -> None:
        # not dispose(): that one forgets what is checked out
        while True:
            try:
                record = self._pool.get(False)
            except queue.Empty:
                return
            try:
                record.close()
            finally:
                self._dec_overflow()
