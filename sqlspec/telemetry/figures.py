"""The figures of pools, by OpenTelemetry's names: what each exporter tells in its own way."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlspec.pool import FairQueuePool, PoolStats, Timing
from sqlspec.registry import SQLSpec

__all__ = ["COUNTS", "GAUGES", "POOL", "TIMINGS", "Figure", "Figures", "Readings"]

# The attribute that every figure has.
POOL = "db.client.connection.pool.name"


class Figures(NamedTuple):
    """Hold what is known of the pools of one name.

    Attributes:
        pool: the name; ``stats`` are the gauges of this moment.
        counts: what `counts_of` returns, of all pools there have been.
    """

    pool: str
    stats: PoolStats
    min_size: int
    oldest_seconds: float
    counts: Mapping[str, float]


class Figure(NamedTuple):
    """Describe a figure.

    Attributes:
        read: returns the value for each value of ``label``, or one for the label None.
    """

    name: str
    unit: str
    description: str
    read: Callable[[Figures], Mapping[str | None, float]]
    label: str | None = None


def _capacity(figures: Figures) -> Mapping[str | None, float]:
    return {} if figures.stats.capacity is None else {None: figures.stats.capacity}


def _closed(figures: Figures) -> Mapping[str | None, float]:
    return {name.removeprefix("closed "): n for name, n in figures.counts.items() if name.startswith("closed ")}


def _count(name: str) -> Callable[[Figures], Mapping[str | None, float]]:
    return lambda figures: {None: figures.counts.get(name, 0)}


# The first ones as in OpenTelemetry's conventions for database clients 1.44, the others are our own.
GAUGES = (
    Figure(
        "db.client.connection.count",
        "{connection}",
        "Connections, in use or idle.",
        lambda figures: {"used": figures.stats.checked_out, "idle": figures.stats.checked_in},
        "db.client.connection.state",
    ),
    Figure(
        "db.client.connection.idle.max", "{connection}", "Connections kept.", lambda figures: {None: figures.stats.size}
    ),
    Figure(
        "db.client.connection.idle.min",
        "{connection}",
        "Connections kept open, whether needed or not.",
        lambda figures: {None: figures.min_size},
    ),
    Figure("db.client.connection.max", "{connection}", "Connections that there may be.", _capacity),
    Figure(
        "db.client.connection.pending_requests",
        "{request}",
        "Callers that wait for a connection.",
        lambda figures: {None: figures.stats.waiters},
    ),
    Figure(
        "sqlspec.pool.oldest_checkout",
        "s",
        "How long the longest checkout under way has taken.",
        lambda figures: {None: figures.oldest_seconds},
    ),
)
COUNTS = (
    Figure("db.client.connection.timeouts", "{timeout}", "Checkouts that waited in vain.", _count("timeouts")),
    Figure("sqlspec.pool.refused", "{request}", "Checkouts refused at once.", _count("refused")),
    Figure("sqlspec.pool.failed_connects", "{attempt}", "Attempts to connect that failed.", _count("failed_connects")),
    Figure("sqlspec.pool.dropped", "{connection}", "Connections never given back.", _count("dropped")),
    Figure("sqlspec.pool.closed", "{connection}", "Connections closed.", _closed, "reason"),
)
# the name of the timing in the statistics, that of the figure, and what it is
TIMINGS = {
    "connect": ("db.client.connection.create_time", "How long connecting took."),
    "wait": ("db.client.connection.wait_time", "How long checkouts waited that had to."),
    "hold": ("db.client.connection.use_time", "How long connections were checked out."),
}


def counts_of(stats: PoolStats) -> dict[str, float]:
    """Return all that only grows, in one row."""
    counts: dict[str, float] = {name: getattr(stats, name) for name in ("timeouts", "refused", "failed_connects")}
    counts["dropped"] = stats.dropped
    counts |= {f"closed {reason}": count for reason, count in stats.closed.items()}
    for name in TIMINGS:
        timing: Timing = getattr(stats, name)
        counts[f"{name} sum"] = timing.sum
        counts |= {f"{name} {bound}": count for bound, count in timing.buckets.items()}
    return counts


class Readings:
    """Read the figures of a registry's pools, of those whose config wants to be measured.

    Counts only grow, also where pools have ended with their event loop, or have been replaced. Thread-safe.
    """

    def __init__(self, spec: SQLSpec) -> None:
        self._spec = spec
        self._begin()

    def _begin(self) -> None:
        # Guards the next two: dictionary work only.
        self._lock = threading.Lock()
        self._seen: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()
        self._sums: dict[str, Counter[str]] = {}
        self._known: WeakKeyDictionary[Any, Mapping[str, int]] = WeakKeyDictionary()
        self._process = os.getpid()

    def __iter__(self) -> Iterator[Figures]:
        """Give the figures of each pool name of which there are pools."""
        for label, names in self._measured().items():
            pools = [pool for name in names for pool in self._pools(name)]
            parts = [pool.stats() for pool in pools]
            counts = self._add(label, dict(zip(pools, parts, strict=True)))
            oldest = [holder.seconds for pool in pools for holder in pool.get_holders()[:1]]
            least = sum(pool._min_pool_size for pool in pools)
            yield Figures(label, PoolStats.of(parts), least, max(oldest, default=0.0), counts)

    def durations(self) -> Iterator[tuple[str, Mapping[str, list[float]]]]:
        """Give the durations of each pool since the last call. For one caller at a time."""
        for label, names in self._measured().items():
            for name in names:
                for pool in self._pools(name):
                    durations, self._known[pool] = pool.durations(self._known.get(pool, {}))
                    yield label, durations

    def _measured(self) -> dict[str, list[str]]:
        """Return the names of configs for each name of a pool: several may have the same."""
        if os.getpid() != self._process:
            # the counts, and perhaps the lock, are the parent's
            self._begin()
        measured: dict[str, list[str]] = {}
        # not by get_config(), which refuses after close()
        for name, manager in list(self._spec._managers.items()):
            wanted = manager.config.instrumentation
            if wanted.metrics and self._pools(name):
                measured.setdefault(wanted.pool_name or name, []).append(name)
        return measured

    def _pools(self, name: str) -> list[FairQueuePool]:
        """Return the pools that there are; build none."""
        manager = self._spec._managers.get(name)
        return [] if manager is None else manager.pools()

    def _add(self, label: str, read: Mapping[FairQueuePool, PoolStats]) -> Mapping[str, float]:
        with self._lock:
            sums = self._sums.setdefault(label, Counter())
            for pool, stats in read.items():
                seen = self._seen.setdefault(pool, {})
                for what, count in counts_of(stats).items():
                    before = seen.get(what, 0)
                    # another reader may have seen more meanwhile
                    if count > before:
                        sums[what] += count - before  # type: ignore[assignment]  # seconds are counted as well
                        seen[what] = count
            return dict(sums)
