"""A pool that follows its load: `python benchmarks/adaptive.py`.

Threads use connections of a private PostgreSQL one after the other: few, then more and more, then fewer again. Printed
is the size of the pool over the time. It ends with 1 where the size or the connections at the server leave their
bounds, where the pool does not follow the load up and down, or goes to and fro on the way.

The pool decides by what it sees in a window: ten seconds by default, here less, so that the run does not take minutes.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import threading
import time
from typing import Any

import sqlalchemy as sa
from databases import servers

from sqlspec import AdaptivePool
from sqlspec.config import PoolConfig
from sqlspec.pool import BEYOND_QUEUEPOOL, FairQueuePool
from tests.servers import PASSWORD

LOWEST, BEGIN, HIGHEST, OVERFLOW = 2, 5, 25, 2
# how many threads, for which share of the time
LOAD = [(2, 0.1), (8, 0.1), (16, 0.1), (30, 0.2), (3, 0.2), (0, 0.3)]
STATEMENT = sa.text("SELECT pg_sleep(0.02)")


class Threads:
    """Use connections one after the other, in so many threads as are wanted."""

    def __init__(self, engine: sa.Engine, most: int) -> None:
        self._engine = engine
        self.wanted, self.is_over = 0, False
        self.calls, self.errors = [0] * most, 0
        self._threads = [threading.Thread(target=self._loop, args=(number,)) for number in range(most)]
        for thread in self._threads:
            thread.start()

    def _loop(self, number: int) -> None:
        while not self.is_over:
            if number >= self.wanted:
                time.sleep(0.05)
                continue
            try:
                with self._engine.connect() as connection:
                    connection.execute(STATEMENT)
                self.calls[number] += 1
            except sa.exc.SQLAlchemyError:
                self.errors += 1

    def end(self) -> None:
        self.is_over = True
        for thread in self._threads:
            thread.join(30)


class Steps(logging.Handler):
    """Collect the sizes that the log tells of."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.sizes = [BEGIN]
        logger = logging.getLogger("sqlspec.pool")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage())
        if isinstance(record.args, tuple) and record.args[2] == self.sizes[-1]:
            self.sizes.append(record.args[3])


def watch(pool: Any, server: Any, seconds: float, wanted: int) -> list[tuple[int, int]]:
    """Print what there is each second; return the sizes and the connections at the server, looked at more often."""
    seen, until = [], time.monotonic() + seconds
    shown = 0.0
    while (now := time.monotonic()) < until:
        stats = pool.stats()
        seen.append((stats.size, len(server.connections())))
        if now - shown >= 1.0:
            shown, bar = now, "#" * stats.size
            print(f"{wanted:3} threads {bar:{HIGHEST}} {stats.size:3}  open {stats.total:3}  waiting {stats.waiters:3}")
        time.sleep(0.05)
    return seen


def verdict(sizes: list[int], seen: list[tuple[int, int]], stats: Any, errors: int) -> dict[str, bool]:
    ups = [after > before for before, after in itertools.pairwise(sizes)]
    return {
        f"the size stays within {LOWEST} and {HIGHEST}": all(
            LOWEST <= size <= HIGHEST for size in [*sizes, *(size for size, _ in seen)]
        ),
        f"the server has {HIGHEST + OVERFLOW} connections at most": max(n for _, n in seen) <= HIGHEST + OVERFLOW,
        f"it grows to {HIGHEST}": max(sizes) == HIGHEST,
        f"it shrinks to {LOWEST}": sizes[-1] == LOWEST,
        "five is the longest step": all(abs(after - before) <= 5 for before, after in itertools.pairwise(sizes)),
        # one step to and fro may come of where a level of the load lies
        "it does not go to and fro": sum(a is not b for a, b in itertools.pairwise(ups)) <= 3,
        "each step is counted": stats.grown + stats.shrunk == len(sizes) - 1,
        "no call fails": errors == 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the whole run")
    options = parser.parse_args()
    config = PoolConfig(pool_size=BEGIN, min_pool_size=LOWEST, max_pool_size=HIGHEST, max_overflow=OVERFLOW)
    window = options.seconds / 20
    with servers("postgresql") as started:
        server, place = started["postgresql"]
        url = sa.URL.create("postgresql+psycopg2", "app", PASSWORD, place.host, place.port, place.database)
        engine = sa.create_engine(
            url,
            poolclass=FairQueuePool,
            pool_size=config.pool_size,
            max_overflow=config.max_overflow,
            adaptive=AdaptivePool(config, window_seconds=window),
            **{**BEYOND_QUEUEPOOL, "linger_seconds": window},
        )
        pool: Any = engine.pool
        steps = Steps()
        threads = Threads(engine, max(count for count, _ in LOAD))
        seen: list[tuple[int, int]] = []
        try:
            for threads.wanted, share in LOAD:
                seen += watch(pool, server, share * options.seconds, threads.wanted)
        finally:
            threads.end()
        stats = pool.stats()
        engine.dispose()
    print(f"{sum(threads.calls)} calls, grown {stats.grown} times, shrunk {stats.shrunk} times")
    holds = verdict(steps.sizes, seen, stats, threads.errors)
    for bound, is_held in holds.items():
        print(f"{'holds' if is_held else 'DOES NOT HOLD'}: {bound}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
