"""What the benchmarks share: interleaved timing, and a table of ratios beside their bars."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Work = Callable[[], object]
# how many seconds one call takes
Timer = Callable[[], float]


class Comparison(NamedTuple):
    """Hold medians in seconds, and the median of the ratios of pairs."""

    ours: float
    theirs: float
    ratio: float


def timed(work: Work, repeats: int) -> float:
    """Return the seconds that one call takes on average."""
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def compare(ours: Work, theirs: Work, rounds: int, repeats: int) -> Comparison:
    """Time both in turn, after one round of warming up."""
    return compare_timers(lambda: timed(ours, repeats), lambda: timed(theirs, repeats), rounds)


def compare_timers(ours: Timer, theirs: Timer, rounds: int) -> Comparison:
    """Ask both in turn how many seconds they take, after one round of warming up."""
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    ratio = statistics.median(a / b for a, b in pairs)
    return Comparison(statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio)


def run(measure: Callable[[int], Mapping[str, Comparison]], bars: Mapping[str, float], rounds: int) -> None:
    """Measure, print, and exit with 1 where ``--check`` is given and a ratio is above its bar, if it has one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is above its bar")
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps({name: {**row._asdict(), "bar": bars.get(name)} for name, row in results.items()}, indent=2))
    else:
        print(f"{'':18} {'ours':>12} {'theirs':>12} {'ratio':>6} {'bar':>5}")
        for name, row in results.items():
            bar = f"{bars[name]:5.2f}" if name in bars else f"{'-':>5}"
            print(f"{name:18} {row.ours * 1e6:10.1f}µs {row.theirs * 1e6:10.1f}µs {row.ratio:6.2f} {bar}")
    if arguments.check and any(row.ratio > bars.get(name, math.inf) for name, row in results.items()):
        sys.exit(1)
