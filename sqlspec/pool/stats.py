"""What a pool says about itself: frozen values, and the bookkeeping behind them."""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat, starmap
from typing import Any, ClassVar, NamedTuple

__all__ = ["BUCKETS", "MANY", "Holder", "PoolStats", "Tally", "Timing"]

# Upper bounds in seconds. OpenTelemetry's for db.client.operation.duration, since dashboards know them.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, float("inf"))


@dataclass(frozen=True, slots=True, repr=False)
class Timing:
    """Hold what is known of many durations, in seconds.

    Attributes:
        count: how many there were.
        sum: all of them together.
        max: the longest.
        buckets: upper bound to how many were at most as long, and longer than the bound before.
    """

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    buckets: Mapping[float, int] = field(default_factory=lambda: dict.fromkeys(BUCKETS, 0))

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> Timing:
        """Return what several timings know together."""
        buckets = {bound: sum(timing.buckets[bound] for timing in timings) for bound in BUCKETS}
        longest = max((timing.max for timing in timings), default=0.0)
        return cls(sum(t.count for t in timings), sum(t.sum for t in timings), longest, buckets)

    def __repr__(self) -> str:
        return f"<Timing: {self.count} in {self.sum:.3g} s, at most {self.max:.3g} s>"

    def plus(self, durations: list[float]) -> Timing:
        """Return the timing that knows these durations as well."""
        if not durations:
            return self
        durations = sorted(durations)
        buckets, below = {}, 0
        for bound, known in self.buckets.items():
            position = bisect.bisect_right(durations, bound)
            buckets[bound], below = known + position - below, position
        count, total = self.count + len(durations), self.sum + sum(durations)
        return Timing(count, total, max(self.max, durations[-1]), buckets)


@dataclass(frozen=True, slots=True)
class Holder:
    """Say who holds a connection.

    Attributes:
        place: ``file:line in function`` of the checkout, in the application's own code where there is some.
        owner: the name of the thread or of the asyncio task, and whether it has ended.
        seconds: since the checkout.
        statement: the last statement as far as its first literal, None where none is known. Never a value.
    """

    place: str
    owner: str
    seconds: float
    statement: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class PoolStats:
    """Hold the figures of one pool: gauges of one moment, and counts since the pool was made.

    Attributes:
        size: the configured number of connections kept.
        checked_in: idle connections.
        checked_out: connections in use.
        overflow: open connections beyond ``size``, never negative.
        total: all open connections.
        waiters: callers that wait for a connection.
        capacity: how many connections there may be; None: any number.
        connecting: connections that are being opened.
        created: connections opened so far.
        closed: reason to how many connections were closed for it: ``disconnect`` (the database ended it),
            ``invalidated``, ``interrupted`` (an exception that is no `Exception` hit its borrower), ``recycled``
            (too old, or worn), ``idle`` (not used for longer than ``idle_timeout``), ``overflow`` (came back to a
            full pool), ``lingered`` (overflow that was not needed for a while), ``resized``, ``disposed``, ``closed``
            (with the pool), ``detached``, ``lost`` (an interrupt came between its borrower and the pool; it closes with
            its object).
        failed_connects: attempts to connect that failed.
        timeouts: checkouts that ended in `PoolTimeout` after waiting.
        refused: checkouts that ended at once: ``max_waiters``, a nested checkout, or a connection that was needed while
            a circuit breaker was open.
        dropped: connections that came back through the garbage collector.
        fallbacks: checkouts that `with_connection_fallback` had served by the replica.
        grown, shrunk: how often a pool that adapts itself has changed its size.
        wait: how long checkouts waited that had to.
        hold: how long connections were checked out.
        connect: how long connecting took.
        parts: where a name has several pools, one for threads and one for each event loop, the figures of each;
            the others are their sums.
    """

    size: int
    checked_in: int
    checked_out: int
    overflow: int
    total: int
    waiters: int = 0
    capacity: int | None = None
    connecting: int = 0
    created: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)
    failed_connects: int = 0
    timeouts: int = 0
    refused: int = 0
    dropped: int = 0
    fallbacks: int = 0
    grown: int = 0
    shrunk: int = 0
    wait: Timing = field(default_factory=Timing)
    hold: Timing = field(default_factory=Timing)
    connect: Timing = field(default_factory=Timing)
    parts: tuple[PoolStats, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[PoolStats]) -> PoolStats:
        """Return the figures of several pools together."""
        if len(parts) == 1:
            return parts[0]
        sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in _SUMMED}
        for name in ("wait", "hold", "connect"):
            sums[name] = Timing.of([getattr(part, name) for part in parts])
        capacities = [part.capacity for part in parts if part.capacity is not None]
        closed: Counter[str] = Counter()
        for part in parts:
            closed.update(part.closed)
        capacity = sum(capacities) if parts and len(capacities) == len(parts) else None
        return cls(**sums, capacity=capacity, closed=closed, parts=tuple(parts))

    def __post_init__(self) -> None:
        # SQLAlchemy counts overflow from -size upwards
        object.__setattr__(self, "overflow", max(0, self.overflow))

    def __repr__(self) -> str:
        # the five figures always, of the others those that say something
        always = ("size", "checked_in", "checked_out", "overflow", "total")
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: value for name, value in shown.items() if name in always or (value and value != Timing())}
        return f"PoolStats({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def usage(self) -> float:
        """Return the share of ``size`` that is checked out; above 1 in overflow."""
        return self.checked_out / self.size if self.size else 0.0

    @property
    def disconnects(self) -> int:
        """Return how many connections the database ended while we had them."""
        return self.closed.get("disconnect", 0)


_SUMMED = (
    "size",
    "checked_in",
    "checked_out",
    "overflow",
    "total",
    "waiters",
    "connecting",
    "created",
    "failed_connects",
    "timeouts",
    "refused",
    "dropped",
    "fallbacks",
    "grown",
    "shrunk",
)

MANY = 1000
# The last durations of each kind, for telemetry.
_KEPT = 100_000
_MOMENT = 0.05


class _Sums(NamedTuple):
    """Hold what has been summed up, and what is about to be, by the name of its deque."""

    timings: Mapping[str, Timing]
    counts: Counter[str]
    taken: Mapping[str, list[Any]]


class Tally:
    """Count from many threads. Adding takes no lock: appending to a deque is atomic.

    What was added is summed up when somebody reads, and by whoever makes it many.
    """

    # Whether somebody wants the durations one by one: telemetry, of pools that there are and of those to come.
    keeps_durations: ClassVar[bool] = False

    def __init__(self) -> None:
        # In seconds. Who appends to the holds sums up when they are many; waits and connects end as holds or as events.
        self.waits: deque[float] = deque()
        self.holds: deque[float] = deque()
        self.connects: deque[float] = deque()
        # names of what happened
        self.events: deque[str] = deque()
        self._fresh: Mapping[str, deque[Any]] = {"wait": self.waits, "hold": self.holds, "connect": self.connects}
        self._sums = _Sums(dict.fromkeys(self._fresh, Timing()), Counter(), self._nothing())
        self._raw: Mapping[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in self._fresh}
        # Guards the summing up. Who adds and finds it locked leaves the work to its holder and never waits: this runs
        # in finalisers and signal handlers as well, perhaps of the very thread that holds it. Who reads waits a moment.
        self._lock = threading.Lock()

    def _nothing(self) -> Mapping[str, list[Any]]:
        return {name: [] for name in (*self._fresh, "event")}

    def note(self, event: str) -> None:
        """Count an event."""
        self.events.append(event)
        if len(self.events) > MANY:
            self.sum_up()

    def read(self) -> tuple[Mapping[str, Timing], Mapping[str, int]]:
        """Return the timings and the counts of events. Neither changes afterwards."""
        # It may wait a moment, but not for ever: in a signal handler it may be this thread that is summing up. (Between
        # acquire() and a try an interrupt could come, and the lock would stay locked.)
        until = time.monotonic() + _MOMENT
        while self._lock.locked() and time.monotonic() < until:
            time.sleep(0.0005)
        self.sum_up()
        sums = self._sums
        return sums.timings, sums.counts

    def sum_up(self) -> None:
        """Sum up what was added, or leave it to who is at it already."""
        if self._lock.locked():
            return
        with self._lock:
            self._sum_up_locked()

    def durations(self, known: Mapping[str, int]) -> tuple[Mapping[str, list[float]], Mapping[str, int]]:
        """Return those that came after so many, as far as they were kept, and how many there have been."""
        self.sum_up()
        with self._lock:
            counts = {name: timing.count for name, timing in self._sums.timings.items()}
            raw = {name: list(kept) for name, kept in self._raw.items()}
        fresh = {name: counts[name] - known.get(name, 0) for name in counts}
        return {name: kept[max(0, len(kept) - fresh[name]) :] for name, kept in raw.items()}, counts

    def _sum_up_locked(self) -> None:
        timings, counts, taken = self._sums
        for name, fresh in (("event", self.events), *self._fresh.items()):
            # No interrupt comes in the middle of this: no code of Python's runs in it. One that comes later leaves
            # what was taken where the next summing up finds it.
            taken[name].extend(starmap(fresh.popleft, repeat((), len(fresh))))
        timings = {name: timing.plus(taken[name]) for name, timing in timings.items()}
        # replaced in one step, so that who reads meanwhile sees all of a batch or nothing of it
        self._sums = _Sums(timings, counts + Counter(taken["event"]), self._nothing())
        # after that: what an interrupt comes before is missing here, and nothing is in it twice
        if Tally.keeps_durations:
            for name, raw in self._raw.items():
                raw.extend(taken[name])
