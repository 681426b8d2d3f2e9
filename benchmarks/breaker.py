"""What a circuit breaker lets through, and what it costs: `python benchmarks/breaker.py`.

stampede: so many threads call at the moment when a probe may start, again and again, and the probe lasts until all
others have their answer. open: what a call costs that is refused. overlap: six calls of 0.2 seconds through a closed
breaker, which must not wait for each other.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
import time

from report import timed

from sqlspec import CircuitBreaker, CircuitOpenError

OPEN_MICROSECONDS = 50.0
CALLS, SECONDS = 6, 0.2
# one after the other they take 1.2 seconds
OVERLAPPING = 0.6


class Down(Exception):
    """Say that the database is not there."""


def opened(recovery_timeout: float) -> CircuitBreaker:
    """Return a breaker that has just opened."""
    breaker = CircuitBreaker(1, recovery_timeout, counts=lambda error: isinstance(error, Down))
    breaker.record_failure(Down())
    return breaker


class Stampede:
    """Have the same threads call all at once, again and again."""

    def __init__(self, threads: int, repeats: int) -> None:
        self.others = threads - 1
        self.outcomes: list[tuple[int, int]] = []
        self._repeats = repeats
        self._begins = threading.Barrier(threads, action=self._prepare)
        self._ends = threading.Barrier(threads, action=self._count)
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def run(self) -> list[tuple[int, int]]:
        """Return of each repeat how many probes there were, and how many were refused."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        return self.outcomes

    def _prepare(self) -> None:
        self._breaker = opened(0.001)
        self._probes: list[int] = []
        self._refused: list[int] = []
        self._all_refused = threading.Event()
        time.sleep(0.002)

    def _run(self) -> None:
        for _ in range(self._repeats):
            self._begins.wait()
            try:
                self._breaker.call(self._probe)
            except CircuitOpenError:
                self._refused.append(1)
                if len(self._refused) == self.others:
                    self._all_refused.set()
            self._ends.wait()

    def _probe(self) -> None:
        self._probes.append(1)
        self._all_refused.wait(20)

    def _count(self) -> None:
        self.outcomes.append((len(self._probes), len(self._refused)))


def stampede(threads: int, repeats: int) -> bool:
    begin = time.monotonic()
    outcomes = Stampede(threads, repeats).run()
    right = sum(outcome == (1, threads - 1) for outcome in outcomes)
    most = max(probes for probes, _ in outcomes)
    seconds = time.monotonic() - begin
    print(
        f"stampede   {threads} threads, {right} of {repeats} times exactly 1 probe, at most {most}, in {seconds:.1f} s"
    )
    return right == repeats


def refusals(calls: int, rounds: int) -> bool:
    breaker = opened(3600.0)

    def refuse() -> None:
        with contextlib.suppress(CircuitOpenError):
            breaker.call(int)

    cost = min(timed(refuse, calls) for _ in range(rounds)) * 1e6
    print(f"open       a call that is refused costs {cost:.1f} µs in the best round, bar {OPEN_MICROSECONDS:.0f} µs")
    return cost <= OPEN_MICROSECONDS


def overlap() -> bool:
    breaker = CircuitBreaker()
    threads = [threading.Thread(target=breaker.call, args=(lambda: time.sleep(SECONDS),)) for _ in range(CALLS)]

    def call_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seconds = timed(call_all, 1)
    print(f"overlap    {CALLS} calls of {SECONDS} s through a closed breaker take {seconds:.2f} s, bar {OVERLAPPING} s")
    return seconds <= OVERLAPPING


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--calls", type=int, default=20_000, help="that are refused, in each of five rounds")
    options = parser.parse_args()
    # each breaker tells that it has opened
    logging.getLogger("sqlspec.breaker").setLevel(logging.ERROR)
    holds = all([stampede(options.threads, options.repeats), refusals(options.calls, 5), overlap()])
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
