"""The background thread in which pools look after themselves from time to time."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Protocol

from sqlspec.pool.threads import start_thread

__all__ = ["look_after"]

_logger = logging.getLogger("sqlspec.pool")

# Seconds; threads cannot wait for ever by a number.
_LONGEST = 3600.0
# Seconds that the thread stays when it has nothing to do.
_GRACE = 1.0


class Keeper(Protocol):
    """Be a pool that has something to do from time to time."""

    def keep_house(self) -> float | None:
        """Do it; return the seconds to the next time, None for never."""


class _Housekeeper:
    """Run one daemon thread while there is something to look after."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Know of nothing to look after; in a child process, whose parent has the thread."""
        # Guards _due and _is_running, which the thread alone changes: dictionary work only.
        self._changed = threading.Condition()
        self._due: dict[weakref.ref[Keeper], float] = {}
        self._is_running = False

    def look_after(self, pool: Keeper, seconds: float) -> None:
        """Have a pool keep house in so many seconds, if it still exists then."""
        with self._changed:
            self._due[weakref.ref(pool)] = time.monotonic() + seconds
            is_running = self._is_running
            self._changed.notify()
        if not is_running:
            # another one may be started at the same time: one of them ends at once; nothing depends on it
            start_thread("sqlspec-housekeeping", self._run)

    def _run(self) -> None:
        with self._changed:
            is_running, self._is_running = self._is_running, True
        if is_running:
            return
        try:
            self._look_after_all()
        except BaseException:
            # the next one who wants something looked after starts another
            with self._changed:
                self._is_running = False
            raise

    def _look_after_all(self) -> None:
        while (due := self._next_due()) is not None:
            pool = due()
            if pool is None:
                continue
            try:
                seconds = pool.keep_house()
            except Exception:
                _logger.exception("housekeeping failed")
                seconds = None
            if seconds is not None:
                self.look_after(pool, seconds)
            # not while it waits for what is next
            del pool

    def _next_due(self) -> weakref.ref[Keeper] | None:
        """Wait for what is due next and take it; None: there is nothing, and the thread ends."""
        with self._changed:
            idle_until = time.monotonic() + _GRACE
            while True:
                now = time.monotonic()
                first = min(self._due, key=self._due.__getitem__, default=None)
                if first is None and now >= idle_until:
                    self._is_running = False
                    return None
                until = idle_until if first is None else self._due[first]
                if first is not None and until <= now:
                    del self._due[first]
                    return first
                self._changed.wait(min(until - now, _LONGEST))


_housekeeper = _Housekeeper()
look_after = _housekeeper.look_after
os.register_at_fork(after_in_child=_housekeeper.begin)
