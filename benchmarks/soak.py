"""Whether anything grows in a long run with everything on: `python benchmarks/soak.py`.

Threads and tasks work on PostgreSQL, MariaDB and SQLite, through pools that recycle, ping, adapt, discard and watch
deadlines, while their statements fail, run out of time, are cancelled, their backends are ended, and event loops come
and go. Every few seconds all rest until the pools have shrunk to their minimum; then this process is looked at: its
memory, its files, its threads. From the third minute on none of these may grow.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import logging
import os
import statistics
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import asyncpg
import sqlalchemy as sa
from databases import servers

from sqlspec import InstrumentationConfig, PoolTimeout, RecyclingStrategy, SQLSpec
from sqlspec.testing import assert_no_leaks
from tests.servers import wait_until

THREADS, TASKS, SECONDS_OF_WORK, PAUSE = 9, 9, 6.0, 0.002
SETTLED, GROWTH = 120.0, 3.0
# this one, that of the housekeeping, and that of the deadlines, which keepalive needs
STANDING = 3
EVERYTHING: dict[str, Any] = {
    "command_timeout": 2.0,
    "pool_size": 4,
    "min_pool_size": 2,
    "max_pool_size": 12,
    "max_overflow": 4,
    "pool_timeout": 5.0,
    "pool_recycle": 20,
    "pool_reset_on_return": "discard",
    "pool_leak_seconds": 30.0,
    "pool_recycling": RecyclingStrategy(max_age=15.0, max_queries=5000, max_errors=50, jitter=0.2),
    "pool_idle_timeout": 1.0,
    "pool_keepalive": 0.5,
    "instrumentation": InstrumentationConfig(pool_name="soak", slow_statement_seconds=1.0),
}
SLOW = {"postgresql": "SELECT pg_sleep(0.05)", "mariadb": "SELECT SLEEP(0.05)", "sqlite": "SELECT 1"}
EXPECTED = (sa.exc.DBAPIError, PoolTimeout, TimeoutError, asyncpg.InterfaceError)


class Sample(NamedTuple):
    """Hold what this process has while all rest."""

    seconds: float
    megabytes: float
    files: int
    threads: int


def sample(begin: float) -> Sample:
    """Look at this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    tasks = len(os.listdir("/proc/self/task"))
    return Sample(time.monotonic() - begin, megabytes, len(os.listdir("/proc/self/fd")), tasks)


def one_of(statements: Iterator[int], kind: str) -> str:
    """Return a statement: one of many texts, now and then a slow one or a wrong one."""
    number = next(statements)
    if number % 50 == 7:
        return SLOW[kind]
    return "SELECT nothing FROM nowhere" if number % 100 == 13 else f"SELECT {number % 700}"


class Load:
    """Work in threads and in tasks until it is told to rest."""

    def __init__(self, spec: SQLSpec, counts: Counter[str]) -> None:
        self.spec = spec
        self.counts = counts
        self.rests = threading.Event()
        self.numbers = itertools.count()
        self.waits = itertools.cycle([None, None, 0.05])
        self.limits = itertools.cycle([1.0, 1.0, 0.02])

    def in_thread(self, name: str) -> None:
        """Run sessions, nested ones and streams."""
        while not self.rests.is_set():
            try:
                with self.spec.get_session(name, timeout=next(self.waits)) as session:
                    session.execute(one_of(self.numbers, name)).all()
                    with session.begin_nested():
                        session.execute("SELECT ?", (1,)).scalar_one()
                self.counts["sessions"] += 1
            except EXPECTED as error:
                self.counts[type(error).__name__] += 1
            # so that tasks and the servers have a processor as well
            time.sleep(PAUSE)

    async def in_task(self, name: str) -> None:
        """Do the same in a task, with limits that cancel some of it."""
        while not self.rests.is_set():
            try:
                async with asyncio.timeout(next(self.limits)):
                    async with self.spec.get_async_session(name) as session:
                        await session.execute(one_of(self.numbers, name)).all()
                self.counts["async sessions"] += 1
            except EXPECTED as error:
                self.counts[f"async {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE)

    async def in_loop(self) -> None:
        """Work in as many tasks as there are, and close the pools of this loop."""
        names = itertools.islice(itertools.cycle(self.spec.list_configs()), TASKS)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self.in_task(name))

    def run(self, started: dict[str, tuple[Any, Any]], seconds: float) -> None:
        """Work for so many seconds; end some of the servers' connections in between."""
        names = itertools.islice(itertools.cycle(self.spec.list_configs()), THREADS)
        threads = [threading.Thread(target=self.in_thread, args=(name,)) for name in names]
        threads.append(threading.Thread(target=lambda: asyncio.run(self.in_loop())))
        for thread in threads:
            thread.start()
        try:
            time.sleep(seconds / 2)
            for server, _ in started.values():
                if server is not None:
                    server.end_connections()
            time.sleep(seconds / 2)
        finally:
            self.rests.set()
            for thread in threads:
                thread.join()
            self.rests.clear()


@contextmanager
def registry(started: dict[str, tuple[Any, Any]]) -> Iterator[SQLSpec]:
    """Give a registry with everything on."""
    with SQLSpec() as spec:
        for name, (_, config) in started.items():
            # SQLite keeps the files of closed connections open as long as there is another one
            other = {"pool_keepalive": None, "min_pool_size": 0} if name == "sqlite" else {}
            spec.register_config(config.model_copy(update={**EVERYTHING, **other}), name=name)
        yield spec


def rest(spec: SQLSpec, begin: float, files: int | None) -> Sample:
    """Wait until nothing is checked out, and there is no more than there has been at rest before; look then."""
    assert_no_leaks(spec, timeout=10.0)
    minimum = {name: spec.get_config(name).min_pool_size for name in spec.list_configs()}
    wait_until(lambda: all(spec.get_pool_stats(name).total == least for name, least in minimum.items()), 20.0)
    gc.collect()
    # what the C library keeps of memory that nobody uses, thread by thread, is not ours
    ctypes.CDLL(None).malloc_trim(0)
    deadline = time.monotonic() + 10.0
    # a connection may just be in the course of being replaced, in a thread
    while True:
        seen = sample(begin)
        few = seen.threads <= STANDING and (files is None or seen.files <= files)
        if few or time.monotonic() > deadline:
            return seen
        time.sleep(0.02)


def soak(started: dict[str, tuple[Any, Any]], options: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    """Work and rest in turn."""
    counts: Counter[str] = Counter()
    samples: list[Sample] = []
    begin = time.monotonic()
    with registry(started) as spec:
        load = Load(spec, counts)
        while time.monotonic() - begin < options.seconds:
            load.run(started, options.work)
            least = min((one.files for one in samples if one.seconds >= options.settled), default=None)
            seen = rest(spec, begin, least)
            samples.append(seen)
            figures = f"{seen.megabytes:7.1f} MB {seen.files:4} files {seen.threads:3} threads"
            print(f"{seen.seconds:5.0f} s {figures}  {counts.total()} calls", flush=True)
    return samples, counts


def growth(values: list[float]) -> float:
    """Return by how much the last third is above the first."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) - statistics.median(values[:third])


def judge(samples: list[Sample], settled: float) -> bool:
    """Print what grew since all had settled; tell whether the bars hold."""
    late = [one for one in samples if one.seconds >= settled]
    if len(late) < 3:
        print("too short to tell")
        return False
    memory = growth([one.megabytes for one in late])
    files, threads = ([getattr(one, what) for one in late] for what in ("files", "threads"))
    ranges = f"files {min(files)} to {max(files)}, threads {min(threads)} to {max(threads)}"
    print(f"since second {settled:.0f}: memory {memory:+.1f} MB (bar {GROWTH:.0f}), {ranges} (bar: all the same)")
    return memory <= GROWTH and max(files) == min(files) and max(threads) <= STANDING


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--settled", type=float, default=SETTLED, help="from then on nothing may grow")
    parser.add_argument("--work", type=float, default=SECONDS_OF_WORK, help="between two looks")
    parser.add_argument("--trace", action="store_true", help="say at the end which lines hold the memory that grew")
    options = parser.parse_args()
    # what is logged here is expected: connections that the server has ended
    logging.getLogger("sqlspec").setLevel(logging.CRITICAL)
    if options.trace:
        tracemalloc.start(8)
    with servers("postgresql", "mariadb", "sqlite") as started:
        samples, counts = soak(started, options)
    if options.trace:
        for line in tracemalloc.take_snapshot().statistics("lineno")[:25]:
            print(line)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    holds = judge(samples, options.settled)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
