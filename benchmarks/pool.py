"""Compare the pool with others where they differ: in who is served, when, and at what cost. No database is needed."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

from pools import KITS, LEAST, PROMISED, AsyncDriver, Driver, Kit, Maker, Pool, Refused
from report import compare

Figures = Mapping[str, float]


class Log(NamedTuple):
    """Hold what one caller saw: from when to when, each wait and each hold in seconds, how often it waited in vain."""

    began: float
    ended: float
    waits: list[float]
    holds: list[float]
    timeouts: int


# -- what callers do


def nothing() -> None:
    """Hold a connection for no time, or ask for the next at once."""


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Have so many threads begin their work at the same moment; return what each returns."""
    barrier = threading.Barrier(count, timeout=60)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(begin, range(count)))


def ask_again_and_again(
    pool: Pool, seconds: float, hold: Callable[[], object], think: Callable[[], object] = nothing
) -> Log:
    """Check out and in for so long, in a thread."""
    began, waits, holds, timeouts = perf_counter(), [], [], 0
    while (asked := perf_counter()) < began + seconds:
        try:
            connection = pool.checkout()
        except pool.timeouts:
            timeouts += 1
            continue
        served = perf_counter()
        waits.append(served - asked)
        hold()
        holds.append(perf_counter() - served)
        pool.checkin(connection)
        think()
    return Log(began, perf_counter(), waits, holds, timeouts)


async def ask_in_a_task(pool: Pool, seconds: float, hold: float) -> Log:
    """Check out and in for so long, in a task."""
    began, waits, holds, timeouts = perf_counter(), [], [], 0
    while (asked := perf_counter()) < began + seconds:
        try:
            connection = await pool.checkout()
        except pool.timeouts:
            timeouts += 1
            continue
        served = perf_counter()
        waits.append(served - asked)
        await asyncio.sleep(hold)
        holds.append(perf_counter() - served)
        await pool.checkin(connection)
    return Log(began, perf_counter(), waits, holds, timeouts)


def warm(pool: Pool, count: int) -> None:
    """Have so many connections opened, and check them in."""
    all_out = threading.Barrier(count, timeout=60)

    def take_part(_number: int) -> None:
        connection = pool.checkout()
        all_out.wait()
        pool.checkin(connection)

    together(count, take_part)


# -- what is made of it


def throughput(logs: list[Log]) -> float:
    """Return the checkouts of all in a second."""
    return sum(len(log.waits) for log in logs) / (max(log.ended for log in logs) - min(log.began for log in logs))


def most_by_least(logs: list[Log]) -> float:
    """Return how many times as often as the least served caller the most served one was."""
    served = [len(log.waits) for log in logs]
    return max(served) / max(1, min(served))


def longest_by_ideal(logs: list[Log], connections: int) -> float:
    """Return how many times as long as ideally the longest wait was; ideally connections go round without a pause."""
    longest = max(chain.from_iterable(log.waits for log in logs))
    # as measured, since a sleep takes longer than asked for
    hold = statistics.mean(chain.from_iterable(log.holds for log in logs))
    return longest / (len(logs) / connections * hold)


def timeouts(pool: Pool, logs: list[Log]) -> Figures:
    """Return how many checkouts were in vain, where the pool knows timeouts."""
    return {"timeouts": sum(log.timeouts for log in logs)} if pool.timeouts else {}


# -- the scenarios: each measures one kind of pool once


def fairness(kit: Kit, quick: bool) -> Figures:
    """Have 100 threads share 10 connections, held for 10 ms."""
    seconds = 2.0 if quick else 10.0
    with kit.threads(Driver(), 10, timeout=3.0) as pool:
        logs = together(100, lambda _: ask_again_and_again(pool, seconds, lambda: time.sleep(0.01)))
        return {
            "most / least of a thread": most_by_least(logs),
            **timeouts(pool, logs),
            "throughput / 1,000 a second": throughput(logs) / 1000,
        }


def starvation(kit: Kit, quick: bool) -> Figures:
    """Have 1,000 threads share 10 connections, held for 2 ms."""
    seconds = 1.5 if quick else 5.0
    with kit.threads(Driver(), 10, timeout=1.0) as pool:
        logs = together(1000, lambda _: ask_again_and_again(pool, seconds, lambda: time.sleep(0.002)))
        return {**timeouts(pool, logs), "longest wait / ideal": longest_by_ideal(logs, 10)}


def churn(kit: Kit, quick: bool) -> Figures:
    """Have 100 threads share 10 connections and hold them for no time, in turn with others.

    Two pools that nobody uses hint at what is possible: the least keeps the order, the promised one does besides what
    is promised of each checkout.
    """
    turns, seconds = (1, 0.3) if quick else (7, 0.5)

    def measure(make: Maker) -> float:
        with make(Driver(), 10) as pool:
            warm(pool, 10)
            return throughput(together(100, lambda _: ask_again_and_again(pool, seconds, nothing)))

    def compare_with(other: Maker | None) -> float:
        if other is None:
            return math.nan
        return statistics.median(measure(kit.threads) / measure(other) for _ in range(turns))

    others = {name: kit.threads for name, kit in KITS.items()} | {"the least": LEAST, "the promised": PROMISED}
    return {
        f"throughput / {name}": compare_with(others.get(name))
        for name in ("stock", "psycopg_pool", "the least", "the promised")
    }


def tasks(kit: Kit, quick: bool) -> Figures:
    """Have many tasks share 10 connections, held for 2 ms."""

    async def measure(count: int, seconds: float) -> float:
        async with kit.tasks(AsyncDriver(), 10) as pool:
            logs = await asyncio.gather(*(ask_in_a_task(pool, seconds, 0.002) for _ in range(count)))
        return longest_by_ideal(logs, 10)

    crowds = {500: 1.0} if quick else {500: 3.0, 10_000: 8.0}
    return {
        f"longest wait / ideal of {count:,}": asyncio.run(measure(count, seconds)) for count, seconds in crowds.items()
    }


def failed_connect(kit: Kit, _quick: bool) -> Figures:
    """Have the first connect fail after 0.3 s while another caller waits."""
    driver = Driver(0.3, failures=1)
    with kit.threads(driver, 1, timeout=3.0) as pool:

        def ask(number: int) -> float:
            time.sleep(0.1 * number)
            try:
                connection = pool.checkout()
            except (Refused, *pool.timeouts):
                return math.inf
            served = perf_counter()
            pool.checkin(connection)
            return served

        return {"next served after": min(together(2, ask)) - driver.failed_at}


def failed_connect_of_a_task(kit: Kit, _quick: bool) -> Figures:
    """Have the same happen to tasks."""
    driver = AsyncDriver(0.3, failures=1)

    async def measure() -> float:
        async with kit.tasks(driver, 1, timeout=3.0) as pool:

            async def ask(number: int) -> float:
                await asyncio.sleep(0.1 * number)
                try:
                    connection = await pool.checkout()
                except (Refused, *pool.timeouts):
                    return math.inf
                served = perf_counter()
                await pool.checkin(connection)
                return served

            return min(await asyncio.gather(ask(0), ask(1))) - driver.failed_at

    return {"next served after": asyncio.run(measure())}


def cycle(kit: Kit, quick: bool) -> Figures:
    """Check out and in where nobody else asks, in turn with the stock pool."""
    rounds, repeats = (3, 100) if quick else (31, 1000)
    figures = {}
    for name, make in kit.cycles.items():
        with make(Driver(), 5) as ours, KITS["stock"].cycles[name](Driver(), 5) as theirs:
            figures[f"{name} / stock"] = compare(
                lambda pool=ours: pool.checkin(pool.checkout()),
                lambda pool=theirs: pool.checkin(pool.checkout()),
                rounds,
                repeats,
            ).ratio
    return figures


def spike(kit: Kit, _quick: bool) -> Figures:
    """Have 50 callers come at once, where 5 connections are idle, 50 may be, and opening one takes 150 ms."""
    driver = Driver()
    with kit.threads(driver, 5, 45) as pool:
        warm(pool, 5)
        driver.seconds, before = 0.15, driver.connects

        def ask(_number: int) -> tuple[float, float]:
            asked = perf_counter()
            connection = pool.checkout()
            served = perf_counter()
            time.sleep(0.002)
            pool.checkin(connection)
            return asked, served

        asked, served = zip(*together(50, ask), strict=True)
        return {"last served after": max(served) - min(asked), "connects": driver.connects - before}


def overflow(kit: Kit, quick: bool) -> Figures:
    """Have 15 threads hold and think for 10 ms on average on 5 connections and 10 beyond, where opening takes 5 ms."""
    driver = Driver(0.005)
    with kit.threads(driver, 5, 10) as pool:

        def work(number: int) -> Log:
            # the same pauses for each kind of pool
            chance = random.Random(number)  # noqa: S311  # no secret

            def pause() -> None:
                time.sleep(chance.expovariate(100))

            return ask_again_and_again(pool, 8.0 if quick else 10.0, pause, pause)

        logs = together(15, work)
        return {"connects / checkouts": driver.connects / sum(len(log.waits) for log in logs)}


# -- the bars


class Bar(NamedTuple):
    """Hold what a figure must be; a steady one is so on a busy machine as well."""

    sense: str
    limit: float
    shown: str = "{:.2f}"
    is_steady: bool = False

    def __str__(self) -> str:
        return f"{self.sense} {self.shown.format(self.limit)}"

    def holds(self, value: float) -> bool:
        """Tell whether a figure is what it must be; one that could not be measured is not."""
        return value <= self.limit if self.sense == "<=" else value >= self.limit


class Scenario(NamedTuple):
    """Hold a scenario and the bars of its figures."""

    measure: Callable[[Kit, bool], Figures]
    bars: Mapping[str, Bar]
    for_tasks: bool = False


NONE = Bar("<=", 0, "{:.0f}", is_steady=True)
AT_ONCE = Bar("<=", 0.05, "{:.3f} s", is_steady=True)
AS_CHEAP = Bar("<=", 1.15)
SCENARIOS = {
    "fairness": Scenario(
        fairness,
        {
            "most / least of a thread": Bar("<=", 1.2, is_steady=True),
            "timeouts": NONE,
            "throughput / 1,000 a second": Bar(">=", 0.9),
        },
    ),
    "starvation": Scenario(starvation, {"timeouts": NONE, "longest wait / ideal": Bar("<=", 1.5)}),
    "churn": Scenario(
        churn,
        {
            "throughput / stock": Bar(">=", 2.0),
            "throughput / psycopg_pool": Bar(">=", 0.8),
            "throughput / the least": Bar(">=", 0.6),
            "throughput / the promised": Bar(">=", 0.8),
        },
    ),
    "tasks": Scenario(
        tasks,
        {"longest wait / ideal of 500": Bar("<=", 1.5), "longest wait / ideal of 10,000": Bar("<=", 1.5)},
        for_tasks=True,
    ),
    "failed connect": Scenario(failed_connect, {"next served after": AT_ONCE}),
    "failed connect of a task": Scenario(failed_connect_of_a_task, {"next served after": AT_ONCE}, for_tasks=True),
    "cycle": Scenario(cycle, {f"{name} / stock": AS_CHEAP for name in KITS["ours"].cycles}),
    "spike": Scenario(
        spike, {"last served after": Bar("<=", 0.06, "{:.3f} s"), "connects": Bar("<=", 10, "{:.0f}", is_steady=True)}
    ),
    "overflow": Scenario(overflow, {"connects / checkouts": Bar("<=", 0.005, "{:.2%}", is_steady=True)}),
}


# -- the report


class Row(NamedTuple):
    """Hold one figure: its bar, and the median of each pool's values."""

    scenario: str
    figure: str
    bar: Bar
    values: dict[str, float]

    def for_machines(self) -> dict[str, Any]:
        """Return what JSON can say: null is a figure without a number."""
        values = {pool: value if math.isfinite(value) else None for pool, value in self.values.items()}
        return {**self._asdict(), "bar": self.bar._asdict(), "values": values}


def measure(name: str, pools: list[str], rounds: int, quick: bool) -> list[Row]:
    """Run a scenario for each pool in turn, so many times."""
    scenario = SCENARIOS[name]
    asked = [pool for pool in pools if KITS[pool].tasks or not scenario.for_tasks]
    seen = [{pool: scenario.measure(KITS[pool], quick) for pool in asked} for _ in range(rounds)]
    return [
        Row(
            name, figure, bar, {p: statistics.median(s[p][figure] for s in seen) for p in asked if figure in seen[0][p]}
        )
        for figure, bar in scenario.bars.items()
    ]


def show(row: Row, pools: list[str]) -> None:
    """Print one line of the table; a value that misses the bar has an exclamation mark."""
    cells = [
        f"{row.bar.shown.format(row.values[pool])}{' ' if row.bar.holds(row.values[pool]) else '!'}"
        if pool in row.values
        else "- "
        for pool in pools
    ]
    print(f"{row.scenario:25} {row.figure:38} {row.bar!s:>10}", *(f"{cell:>13}" for cell in cells), flush=True)


def run() -> None:
    """Measure, print, and exit with 1 where ``--check`` is given and the pool misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", choices=[*KITS, "all"], default="all")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--rounds", type=int, help="print medians of so many; 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="measure for a short time, check steady figures only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the pool, of all of them ours, misses")
    arguments = parser.parse_args()
    pools = list(KITS) if arguments.pool == "all" else [arguments.pool]
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    rows = []
    if not arguments.json:
        print(f"{'':25} {'':38} {'bar':>10}", *(f"{pool + ' ':>13}" for pool in pools), flush=True)
    for name in arguments.scenario or SCENARIOS:
        for row in measure(name, pools, rounds, arguments.quick):
            rows.append(row)
            if not arguments.json:
                show(row, pools)
    if arguments.json:
        print(json.dumps([row.for_machines() for row in rows], indent=2))
    missed = [
        row
        for row in rows
        if (row.bar.is_steady or not arguments.quick)
        and pools[0] in row.values
        and not row.bar.holds(row.values[pools[0]])
    ]
    if arguments.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    run()
