"""How long callers wait for servers that hang: `python benchmarks/hung.py`.

Each trial takes a connection through a proxy, has everything swallowed from then on, and asks for one row within
`command_timeout`: once right after the connection was used, once after it was idle for longer than `ping_after`. Then
the network works again, and the time is taken until the pool serves. With --freeze, a whole server is stopped for 30
seconds beneath 200 callers with deadlines of 2 seconds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import threading
import time
from collections import Counter
from typing import Any

import sqlalchemy as sa
from databases import servers
from sqlalchemy import exc

from sqlspec import ConnectionTimeout, SQLSpec, SQLSpecError
from sqlspec.testing import FaultProxy
from tests.servers import PASSWORD, Server, wait_until

LIMIT = 2.0
BAR, HEALED = 2.5, 1.0
AT_ONCE = 10


def limited(config: Any, **options: Any) -> Any:
    return config.model_copy(update={"command_timeout": LIMIT, "pool_size": 2, "max_overflow": 0, **options})


def trial(config: Any, is_stale: bool, is_stock: bool) -> tuple[float, float, str]:
    """Return the seconds until the call ended, those until the pool served again, and what was said."""
    with FaultProxy(config.port) as hole, SQLSpec() as spec:
        spec.register_config(limited(config, port=hole.port))
        if is_stock:
            return stock_trial(spec.get_engine(), hole, is_stale)
        with spec.get_session() as session:
            session.execute("SELECT 1")
        if is_stale:
            spec._get_pool()._ping_after = 0.0
        hole.swallow()
        begin = time.monotonic()
        try:
            with spec.get_session(timeout=LIMIT) as session:
                session.execute("SELECT 2")
            said = "a new connection served"
        except ConnectionTimeout as error:
            said = f"phase {error.phase}"
        except exc.DBAPIError as error:
            said = "a statement" if "no answer to a statement" in str(error) else f"unexplained: {error}"
        ended = time.monotonic() - begin
        begin = time.monotonic()
        with spec.get_session(timeout=10) as session:
            session.execute("SELECT 3")
        return ended, time.monotonic() - begin, said


def stock_trial(engine: sa.Engine, hole: FaultProxy, is_stale: bool) -> tuple[float, float, str]:
    url = engine.url.set(password=PASSWORD)
    stock = sa.create_engine(url, pool_pre_ping=is_stale, connect_args={"connect_timeout": 2})
    with stock.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    hole.swallow()
    is_over = threading.Event()

    def ask() -> None:
        with contextlib.suppress(exc.DBAPIError), stock.connect() as connection:
            connection.execute(sa.text("SELECT 2"))
        is_over.set()

    begin = time.monotonic()
    threading.Thread(target=ask, daemon=True).start()
    is_over.wait(10)
    return time.monotonic() - begin, 0.0, "ended" if is_over.is_set() else "still waiting after 10 s"


def swallow(name: str, config: Any, trials: int, is_stock: bool) -> bool:
    holds = True
    for is_stale in (False, True):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
            outcomes = list(threads.map(lambda _, stale=is_stale: trial(config, stale, is_stock), range(trials)))
        ended, healed = max(o[0] for o in outcomes), max(o[1] for o in outcomes)
        what = "idle for longer than ping_after" if is_stale else "just used"
        said = dict(Counter(o[2] for o in outcomes))
        print(f"{name:10} {what:32} ended within {ended:.2f} s, healed within {healed:.3f} s, {said}")
        holds &= ended <= BAR and healed <= HEALED and not any("unexplained" in o[2] for o in outcomes)
    return holds


def freeze(name: str, server: Server, config: Any, seconds: float) -> bool:
    """Stop a whole server beneath 200 callers."""
    with SQLSpec() as spec:
        spec.register_config(limited(config, pool_size=10, connect_timeout=LIMIT))
        with concurrent.futures.ThreadPoolExecutor(10) as threads:
            list(threads.map(lambda _: ask(spec), range(20)))
        server.freeze()
        until, calls = time.monotonic() + seconds, []

        def call(_: int) -> None:
            while time.monotonic() < until:
                calls.append(ask(spec))
                time.sleep(0.01)

        with concurrent.futures.ThreadPoolExecutor(200) as threads:
            list(threads.map(call, range(200)))
        server.thaw()
        begin = time.monotonic()
        wait_until(lambda: ask(spec)[1] == "served", seconds=10)
        healed = time.monotonic() - begin
        wait_until(lambda: len(server.connections()) <= 10, seconds=10)
        open_there = len(server.connections())
    # who waits for a statement has waited for its connection before
    print(
        f"{name:10} frozen for {seconds:.0f} s: {len(calls)} calls, at most {max(calls)[0]:.2f} s; "
        f"served {healed:.2f} s after the thaw, {open_there} connections at the server; "
        f"{dict(Counter(said for _, said in calls))}"
    )
    return max(calls)[0] <= 2 * LIMIT + 0.5 and open_there <= 10


def ask(spec: SQLSpec) -> tuple[float, str]:
    """Return the seconds until a call ended, and how."""
    begin, said = time.monotonic(), "served"
    try:
        with spec.get_session(timeout=LIMIT) as session:
            session.execute("SELECT 1")
    except ConnectionTimeout as error:
        said = f"phase {error.phase}"
    except (SQLSpecError, exc.DBAPIError) as error:
        said = str(getattr(error, "orig", error)).strip().splitlines()[-1]
    return time.monotonic() - begin, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=["ours", "stock"], default="ours")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--freeze", type=float, default=0.0, metavar="SECONDS", help="30 for the figure")
    options = parser.parse_args()
    holds = True
    with servers("postgresql", "mariadb") as started:
        for name, (server, config) in started.items():
            if options.freeze:
                holds &= freeze(name, server, config, options.freeze)
            else:
                holds &= swallow(name, config, options.trials, options.pool == "stock")
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
