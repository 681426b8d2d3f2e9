"""How many connections a pool keeps, by its load: what is looked at, the rule, and who applies it."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple, Protocol

__all__ = ["AdaptivePool", "PoolMetrics", "Reading", "next_size"]

_logger = logging.getLogger("sqlspec.pool")

# The source document's: connections a step, and the shares in use above which a pool grows and below which it shrinks.
_STEP = 5
_HIGH, _LOW = 0.8, 0.2
# Usage that a pool which shrinks would not have exceeded: in the middle, so that it does not grow again.
_MIDDLE = 0.5
# Seconds that one look takes into account. They outlast the gaps of a load that goes up and down; of these, growing
# looks at the last tenth, and after a step the pool is left alone for a fifth.
_WINDOW = 10.0
_RECENT, _REST = 0.1, 0.2
# Looks within a window, at most; while callers wait, at most.
_LOOKS, _HASTY_LOOKS = 10, 40
# Connecting is slow when it takes this many times as long as usual, and longer than so many seconds; the last where
# nobody knows what is usual.
_SLOWER, _NOT_SLOW, _SLOW = 3.0, 0.1, 1.0


class SizedConfig(Protocol):
    """Be a config, as far as the size of a pool is concerned."""

    @property
    def pool_size(self) -> int:
        """Return the size at the beginning."""

    @property
    def min_pool_size(self) -> int | None:
        """Return the lower bound; None: ``pool_size``."""

    @property
    def max_pool_size(self) -> int | None:
        """Return the upper bound; None: ``pool_size``."""


class Reading(NamedTuple):
    """Be what a pool has counted since it was made up to one moment.

    Attributes:
        at: the moment, by the monotonic clock.
        size: how many connections it keeps.
        used_seconds: how long connections were checked out, those that still are included.
        waited_seconds: how long callers waited, those who still do included.
        connects: connections opened.
        connect_seconds: how long that took.
        failed_connects: attempts that failed, or that an open circuit breaker refused.
        connecting_seconds: how long the longest attempt under way has taken so far.
    """

    at: float
    size: int
    used_seconds: float = 0.0
    waited_seconds: float = 0.0
    connects: int = 0
    connect_seconds: float = 0.0
    failed_connects: int = 0
    connecting_seconds: float = 0.0


class PoolMetrics:
    """Hold the readings of a pool within a window of seconds.

    Two readings tell of all that was in between, so that it does not matter at which moments they are taken.
    Thread-safe: the readings are replaced as a whole.
    """

    def __init__(self, window_seconds: float = _WINDOW) -> None:
        self.window_seconds = window_seconds
        self._readings: tuple[Reading, ...] = ()

    def add(self, reading: Reading) -> None:
        """Add a reading, and drop those that are older than the window."""
        known = self._readings
        if known:
            seconds = reading.at - known[-1].at
            goes_back = _goes_back(known[-1], reading)
            if seconds <= 0.0 or (goes_back and seconds < self.window_seconds / 4):
                # What ends while a reading is taken is missing in it, and is in the next one.
                return
            if goes_back or reading.size != known[-1].size:
                # What ends without being counted, as the waiting of a task that is cancelled, is missing for good.
                known = ()
        self._readings = (*self._within(known, reading.at), reading)

    def _within(self, known: tuple[Reading, ...], now: float) -> tuple[Reading, ...]:
        """Return the readings of the window, and one that is as old, to compare with; of some in a moment, one."""
        old = sum(one.at <= now - self.window_seconds for one in known[1:])
        moment = self.window_seconds / (2 * _HASTY_LOOKS)
        return known[old:-1] if len(known) > old + 1 and now - known[-2].at < moment else known[old:]

    def clear(self) -> None:
        """Forget all readings."""
        self._readings = ()

    def covers(self, seconds: float) -> bool:
        """Tell whether the readings reach back so far."""
        first, last = self._ends(None)
        return last.at - first.at >= seconds

    def average_usage(self, seconds: float | None = None) -> float:
        """Return which share of the pool's size was in use, or waited for: above 1 in overflow; 0.0 without readings.

        It is the average over the window, or over the last ``seconds``, as far as there are readings.
        """
        return _usage(*self._ends(seconds))

    def peak_usage(self) -> float:
        """Return the highest usage between two looks."""
        return max(map(_usage, self._readings, self._readings[1:]), default=0.0)

    def average_waiting(self, seconds: float | None = None) -> float:
        """Return how many callers waited, on average, as `average_usage`."""
        first, last = self._ends(seconds)
        return 0.0 if first is last else max(0.0, last.waited_seconds - first.waited_seconds) / (last.at - first.at)

    def trouble(self) -> str | None:
        """Say what speaks against more connections: connecting fails, or takes longer than usual; None: nothing."""
        first, last = self._ends(None)
        if last.failed_connects > first.failed_connects:
            return "connecting fails"
        usual = first.connect_seconds / first.connects if first.connects else None
        opened = last.connects - first.connects
        recent = (last.connect_seconds - first.connect_seconds) / opened if opened else 0.0
        longest = max(recent, last.connecting_seconds)
        limit = _SLOW if usual is None else max(_SLOWER * usual, _NOT_SLOW)
        return f"connecting takes {longest:.2g} s" if longest > limit else None

    def _ends(self, seconds: float | None) -> tuple[Reading, Reading]:
        """Return the readings at the ends of the window, or of its last ``seconds``; the same twice where it is one."""
        known = self._readings or (Reading(0.0, 1),)
        last = known[-1]
        if seconds is None:
            return known[0], last
        return next((one for one in reversed(known) if one.at <= last.at - seconds), known[0]), last


def _usage(first: Reading, last: Reading) -> float:
    if last.at <= first.at:
        return 0.0
    seconds = last.used_seconds + last.waited_seconds - first.used_seconds - first.waited_seconds
    return max(0.0, seconds) / ((last.at - first.at) * last.size)


def _goes_back(before: Reading, after: Reading) -> bool:
    return after.used_seconds < before.used_seconds or after.waited_seconds < before.waited_seconds


def next_size(size: int, lowest: int, highest: int, metrics: PoolMetrics) -> int:
    """Return the size that a pool should have after these readings.

    It grows by a step where the last tenth of the window was used to more than 80 %, unless connecting is in trouble.
    It shrinks by a step where the whole window was used to less than 20 %, and by less where it would have been used to
    more than 50 % at the busiest moment: a pool that has shrunk does not grow at the same load.
    """
    moment = metrics.window_seconds * _RECENT
    if metrics.covers(moment) and metrics.average_usage(moment) > _HIGH:
        return size if metrics.trouble() else max(size, min(size + _STEP, highest))
    if metrics.covers(metrics.window_seconds) and metrics.average_usage() < _LOW:
        needed = math.ceil(size * metrics.peak_usage() / _MIDDLE)
        return min(size, max(size - _STEP, needed, lowest))
    return size


class Adjustable(Protocol):
    """Be a pool whose size can be changed."""

    logging_name: str | None

    def size(self) -> int:
        """Return how many connections are kept."""

    def read(self, now: float) -> Reading:
        """Return what has been counted up to now."""

    def change_size(self, size: int, wanted: int) -> bool:
        """Change the size, where it is still this one; return whether it is the wanted one now."""


class AdaptivePool:
    """Change the size of a pool by its load, between the bounds of a config, which stays as it is.

    It begins with ``pool_size``, and keeps at least ``min_pool_size`` (default: ``pool_size``) and at most
    ``max_pool_size``. ``max_overflow`` comes on top, whatever the size is.

    Give it to a `FairQueuePool` as ``adaptive``, one to each, or let a config with ``max_pool_size`` do so: the pool
    has itself adjusted from time to time. Thread-safe.

    Attributes:
        config: whose bounds it keeps.
        metrics: what it knows of the load.
        lowest, highest: the bounds.
    """

    def __init__(self, config: SizedConfig, window_seconds: float = _WINDOW) -> None:
        self.config = config
        self.metrics = PoolMetrics(window_seconds)
        self.lowest: int = config.min_pool_size or config.pool_size
        self.highest: int = config.max_pool_size or config.pool_size
        self._rests_until = -math.inf
        self._looked_at = -math.inf

    def afresh(self) -> AdaptivePool:
        """Return one that knows of no load, for another pool."""
        return AdaptivePool(self.config, self.metrics.window_seconds)

    @property
    def look_seconds(self) -> float:
        """Return the seconds between two looks."""
        return self.metrics.window_seconds / _LOOKS

    def may_look(self, now: float) -> bool:
        """Tell whether somebody who begins to wait may have the pool looked at before its time."""
        if now - self._looked_at < self.metrics.window_seconds / _HASTY_LOOKS:
            return False
        self._looked_at = now
        return True

    def check(self, size: int) -> None:
        """Refuse a size that is beyond the bounds.

        Raises:
            ValueError: it names the bounds.
        """
        if not self.lowest <= size <= self.highest:
            raise ValueError(
                f"pool_size={size}: the pool adapts itself between min_pool_size={self.lowest} and "
                f"max_pool_size={self.highest}; stay within them, or register another config with replace=True"
            )

    def rest(self, now: float, seconds: float | None = None) -> None:
        """Change nothing for so many seconds, by default for a whole window, and look at the load afresh."""
        self._rests_until = now + (self.metrics.window_seconds if seconds is None else seconds)
        self.metrics.clear()

    def decide(self, size: int, now: float) -> int:
        """Return the size that a pool of this size should have now."""
        if now < self._rests_until:
            # it has just changed: what comes of that is not seen yet
            return size
        return next_size(size, self.lowest, self.highest, self.metrics)

    def adjust(self, pool: Adjustable, now: float) -> bool:
        """Read what the pool has counted, and change its size by a step where that is called for.

        Return whether it should be looked at again without being asked: not where nothing is used nor to be closed.
        """
        self._looked_at = now
        self.metrics.add(pool.read(now))
        size = pool.size()
        wanted = self.decide(size, now)
        if wanted != size:
            self._change(pool, size, wanted, now)
        elif size <= self.lowest and self.metrics.covers(self.metrics.window_seconds) and not self.metrics.peak_usage():
            self.metrics.clear()
            return False
        return True

    def _change(self, pool: Adjustable, size: int, wanted: int, now: float) -> None:
        moment = self.metrics.window_seconds * _RECENT if wanted > size else None
        usage, waiting = self.metrics.average_usage(moment), self.metrics.average_waiting(moment)
        if not pool.change_size(size, wanted):
            # somebody has resized it by hand in the meantime
            return
        self.rest(now, self.metrics.window_seconds * _REST)
        _logger.info(
            "%s %s from %d to %d connections: usage %.2f, %.1f waiting",
            pool.logging_name or "the pool",
            "grows" if wanted > size else "shrinks",
            size,
            wanted,
            usage,
            waiting,
        )
