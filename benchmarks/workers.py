"""What users of a Flask application notice of a restart of its database: `python benchmarks/workers.py`.

gunicorn serves it with four preloaded workers of eight threads each; 32 clients ask it for one row, again and again,
while a private PostgreSQL stops and starts. The application reads through `with_retry`. No request may fail, no
connection of the server may be two workers' own, and the page of metrics of any worker must have the sum of what all
workers count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from databases import servers

from tests.preloaded import PRELOADED, checkouts, served
from tests.servers import PASSWORD, Server, wait_until

THREADS, CLIENTS = 8, 32
# seconds between two requests of a client, who has something else to do as well
PAUSE = 0.02


class Clients:
    """Ask in many threads, and note every answer."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask
        self.seconds: list[float] = []
        self.failed: list[BaseException] = []
        self.owners: defaultdict[int, set[int]] = defaultdict(set)
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(PAUSE):
            begin = time.monotonic()
            try:
                answer = json.loads(self._ask("retried"))
            except (OSError, ValueError) as error:
                self.failed.append(error.with_traceback(None))
            else:
                self.seconds.append(time.monotonic() - begin)
                self.owners[answer["backend"]].add(answer["worker"])


def restart(server: Server, clients: Clients, times: int) -> list[float]:
    """Restart the server beneath the clients; return for how many seconds it was down each time."""
    downs = []
    for _ in range(times):
        answered = len(clients.seconds)
        wait_until(lambda answered=answered: len(clients.seconds) > answered + 200, seconds=60)  # type: ignore[misc]  # a default binds it
        stopped = time.monotonic()
        server.restart()
        downs.append(time.monotonic() - stopped)
    answered = len(clients.seconds)
    wait_until(lambda: len(clients.seconds) > answered + 200, seconds=60)
    return downs


def adds_up(ask: Callable[[str], str]) -> tuple[float, float]:
    """Return how many checkouts the four workers count, each by itself, and how many the page of metrics has."""
    counts: dict[int, int] = {}

    def has_all() -> bool:
        told = json.loads(ask("up"))
        counts[told["worker"]] = told["checkouts"]
        return len(counts) == 4

    wait_until(has_all, seconds=60)
    # and that of the process which was forked
    expected = sum(counts.values()) + 1
    deadline = time.monotonic() + 5
    while (told := checkouts(ask("db/metrics"))) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    return expected, told


def measure(server: Server, config: Any, folder: Path, times: int) -> bool:
    """Print what the clients noticed; tell whether every bar holds."""
    place = f"host='127.0.0.1', port={config.port}, username='app', password={PASSWORD!r}, database='postgres'"
    code = f"PostgreSQLConfig({place}, pool_size={THREADS}, max_overflow=0)"
    with served(folder, PRELOADED.format(config=code, who="SELECT pg_backend_pid()"), THREADS) as ask:
        with Clients(ask) as clients:
            downs = restart(server, clients, times)
        expected, told = adds_up(ask)
    seconds = sorted(clients.seconds)
    shared = sum(len(workers) > 1 for workers in clients.owners.values())
    print(
        f"{times} restarts, down for {min(downs):.2f} to {max(downs):.2f} s: {len(clients.failed)} of "
        f"{len(seconds) + len(clients.failed)} requests failed; {len(clients.owners)} backends, {shared} of them "
        f"shared; median {seconds[len(seconds) // 2] * 1000:.0f} ms, {seconds[-1]:.2f} s at most; the workers count "
        f"{expected:.0f} checkouts, the page {told:.0f}"
    )
    for error in clients.failed[:3]:
        print(repr(error))
    return not clients.failed and shared == 0 and expected == told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=10)
    options = parser.parse_args()
    with servers("postgresql") as started, tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        holds = measure(*started["postgresql"], Path(folder), options.restarts)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
