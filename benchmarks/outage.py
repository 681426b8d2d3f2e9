"""What callers notice of a database that is away: `python benchmarks/outage.py`.

Sixteen threads read one row, again and again, through `with_retry`, from a private PostgreSQL and a private MariaDB.
restart: the server is stopped and started; counted are the reads that fail, and the time from the first sign that the
server is up to the next read of each thread. outage: the server stays away for a while under a pool with a breaker;
counted are the attempts of each call, and how often the driver was asked to connect. `--pool stock` does the latter
with SQLAlchemy's own pool and nothing around it.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from databases import StockSessions, servers
from sqlalchemy import exc

from sqlspec import CircuitBreaker, CircuitOpenError, SQLSpec, SQLSpecError, with_retry
from tests.servers import Server, wait_until

THREADS, CONNECTIONS = 16, 10
# seconds between two reads of a thread, which has something else to do as well
PAUSE = 0.005
RECOVERY_SECONDS = 0.25
ATTEMPTS, CONNECTS = 1.1, 20
FAILURES = exc.DBAPIError, SQLSpecError, OSError
MODULES = {"postgresql": "psycopg2", "mariadb": "MySQLdb"}


class Readers:
    """Read in many threads, and note when each read ended, and how."""

    def __init__(self, read: Callable[[], object], *, max_attempts: int = 1, **options: Any) -> None:
        self._read = read
        self._options = {"max_attempts": max_attempts, **options}
        self.succeeded: list[list[float]] = [[] for _ in range(THREADS)]
        self.failed: list[BaseException] = []
        self.attempts: list[None] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(ends,)) for ends in self.succeeded]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def calls(self) -> int:
        return sum(map(len, self.succeeded)) + len(self.failed)

    def _run(self, ends: list[float]) -> None:
        while not self._is_over.wait(PAUSE):
            try:
                with_retry(self._attempt, **self._options)
            except FAILURES as error:
                self.failed.append(error.with_traceback(None))
            else:
                ends.append(time.monotonic())

    def _attempt(self) -> None:
        self.attempts.append(None)
        self._read()

    def all_read_since(self, moment: float) -> bool:
        return all(ends and ends[-1] > moment for ends in self.succeeded)

    def first_since(self, moment: float) -> list[float]:
        """Return of each thread when its first read since then ended."""
        return [next(end for end in ends if end > moment) for ends in self.succeeded]


def reader(spec: SQLSpec) -> Callable[[], object]:
    def read() -> object:
        # reading, there is nothing to commit, and no COMMIT whose answer could be lost
        with spec.get_session(read_only=True) as session:
            return session.execute("SELECT 1").scalar_one()

    return read


def restart(name: str, server: Server, config: Any, times: int) -> bool:
    """Restart a server beneath the readers; tell whether every read came through, and soon."""
    downs, recoveries = [], list[float]()
    with SQLSpec() as spec:
        spec.register_config(config.model_copy(update={"pool_size": CONNECTIONS, "max_overflow": 0}))
        # the time decides, not the number
        patience = {"max_attempts": 10_000, "initial_delay": 0.02, "max_delay": 0.1, "timeout": 30.0}
        with Readers(reader(spec), **patience) as readers:
            for _ in range(times):
                began = time.monotonic()
                wait_until(lambda began=began: readers.all_read_since(began + 0.2), seconds=60)  # type: ignore[misc]  # a default binds it
                server.stop()
                stopped = time.monotonic()
                server.start()
                ready = time.monotonic()
                wait_until(lambda ready=ready: readers.all_read_since(ready), seconds=60)  # type: ignore[misc]  # as above
                firsts = readers.first_since(stopped)
                # who reads first may be earlier than who asks whether it is up
                up = min(ready, *firsts)
                downs.append(up - stopped)
                recoveries += [first - up for first in firsts]
    recoveries.sort()
    p99 = recoveries[int(len(recoveries) * 0.99)]
    print(
        f"{name:10} {times} restarts, down for {min(downs):.2f} to {max(downs):.2f} s: {len(readers.failed)} of "
        f"{readers.calls} reads failed; recovered within {p99 * 1000:.0f} ms (p99), {recoveries[-1] * 1000:.0f} ms at "
        f"most, bar {RECOVERY_SECONDS * 1000:.0f} ms"
    )
    return not readers.failed and p99 <= RECOVERY_SECONDS


@contextmanager
def noted_connects(name: str) -> Iterator[list[float]]:
    """Note when the driver is asked for a connection."""
    module, moments = importlib.import_module(MODULES[name]), list[float]()
    connect = module.connect

    def note_and_connect(*arguments: Any, **options: Any) -> Any:
        moments.append(time.monotonic())
        return connect(*arguments, **options)

    module.connect = note_and_connect
    try:
        yield moments
    finally:
        module.connect = connect


def outage(name: str, server: Server, config: Any, seconds: float, is_stock: bool) -> bool:
    """Stop a server for a while beneath the readers; tell whether they left it alone."""
    breaker = CircuitBreaker(recovery_timeout=1.0, name=name)
    with SQLSpec() as spec:
        spec.register_config(
            config.model_copy(update={"pool_size": CONNECTIONS, "max_overflow": 0, "breaker": breaker})
        )
        stock = StockSessions(spec.get_engine(), pool_size=CONNECTIONS, max_overflow=0)
        readers = Readers(lambda: read_stock(stock.engine)) if is_stock else Readers(reader(spec), max_attempts=3)
        with noted_connects(name) as connects, readers:
            time.sleep(2.0)
            server.stop()
            stopped = time.monotonic()
            time.sleep(seconds)
            moments = [moment - stopped for moment in list(connects) if moment > stopped]
            server.start()
            up = time.monotonic()
            wait_until(lambda: readers.all_read_since(up), seconds=60)
            healed = max(readers.first_since(up)) - up
            time.sleep(2.0)
        stock.engine.dispose()
    # the last second may not be a whole one
    worst = max((sum(int(moment) == second for moment in moments) for second in range(int(seconds))), default=0)
    refused = sum(isinstance(error, CircuitOpenError) for error in readers.failed)
    ratio = len(readers.attempts) / readers.calls
    print(
        f"{name:10} away for {seconds:.0f} s: {readers.calls} calls, {ratio:.3f} attempts each, bar {ATTEMPTS}; "
        f"{len(readers.failed)} failed, {refused} of them at once; {len(moments) / seconds:.1f} connects/s, "
        f"{worst} in the worst second, bar {CONNECTS}; all read again {healed:.2f} s after it was up"
    )
    return ratio <= ATTEMPTS and worst <= CONNECTS


def read_stock(engine: sa.Engine) -> object:
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT 1")).scalar_one()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=["ours", "stock"], default="ours")
    parser.add_argument("--only", choices=list(MODULES), default=None)
    parser.add_argument("--restarts", type=int, default=20, help="0: none")
    parser.add_argument("--outage", type=float, default=10.0, metavar="SECONDS", help="0: none")
    options = parser.parse_args()
    is_stock = options.pool == "stock"
    holds = True
    with servers(*([options.only] if options.only else MODULES)) as started:
        for name, (server, config) in started.items():
            if options.restarts and not is_stock:
                holds &= restart(name, server, config, options.restarts)
            if options.outage:
                holds &= outage(name, server, config, options.outage, is_stock)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
