"""What it costs to see that connections are alive, and to replace those that are not: `python benchmarks/liveness.py`.

First the cycle of a checkout and a checkin on PostgreSQL, beside SQLAlchemy's pool with and without its pre-ping. Then
idle connections end: all are killed, the server is restarted, one is killed. Each borrower asks for one row; the
server's own ids tell which connections are new. With --pool stock, SQLAlchemy's pool is asked the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
import trustme
from databases import StockSessions, servers
from report import compare
from sqlalchemy import exc

from sqlspec import SQLSpec
from sqlspec.config import SyncDatabaseConfig
from tests.servers import PASSWORD, Server, wait_until
from tests.tasks import Loop, RegistryInTasks

SIZE = 10
BARS = {"without pre-ping": 1.3, "with pre-ping": 0.2}
_ID = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
# as the end of a URL's scheme, None for the usual driver; the last field is the kind of connection
_WAYS = {
    "postgresql": [(None, "tcp"), (None, "tls"), (None, "socket"), ("psycopg", "tcp"), ("psycopg", "tls")],
    "mariadb": [(None, "tcp"), (None, "tls"), (None, "socket")],
}
_WAYS_OF_TASKS = {
    "postgresql": [("asyncpg", "tcp"), ("asyncpg", "tls"), ("psycopg", "tcp")],
    "mariadb": [("asyncmy", "tcp"), ("asyncmy", "tls")],
}
_SCHEMES = {"postgresql": "postgresql", "mariadb": "mysql"}


def cycle(config: SyncDatabaseConfig, rounds: int) -> bool:
    """Compare the pools' cycles; tell whether the bars hold."""
    with SQLSpec() as spec:
        spec.register_config(config)
        url = spec.get_engine().url.set(password=PASSWORD)
        holds = True
        for what, bar in BARS.items():
            stock = sa.create_engine(url, pool_pre_ping=what == "with pre-ping")
            found = compare(
                lambda: spec.get_engine().raw_connection().close(),
                lambda stock=stock: stock.raw_connection().close(),
                rounds,
                2000,
            )
            stock.dispose()
            print(
                f"checkout and checkin: {found.ours * 1e6:.1f} µs, stock {what} {found.theirs * 1e6:.1f} µs: "
                f"{found.ratio:.2f} (bar {bar})"
            )
            holds &= found.ratio <= bar
    return holds


class Outcome(NamedTuple):
    """Hold what became of connections that ended while they were idle."""

    dead: int
    reconnects: int
    errors: int


def borrow_all(spec: Any, question: str) -> tuple[set[int], int]:
    """Have as many borrowers as there are connections, at once; return the server's ids, and how many failed."""
    found, errors, held = set(), 0, []
    for _ in range(SIZE):
        try:
            session = spec.get_session().__enter__()
            held.append(session)
            found.add(session.execute(question).scalar())
        except exc.DBAPIError:
            errors += 1
    for session in held:
        session.__exit__(None, None, None)
    return found, errors


def trial(spec: Any, question: str, end: Callable[[set[int]], set[int]]) -> Outcome:
    """End idle connections, and see what the next borrowers have of it."""
    before, errors = borrow_all(spec, question)
    if errors:
        raise RuntimeError("the server does not answer")
    dead = end(before)
    after, errors = borrow_all(spec, question)
    return Outcome(len(dead), len(after - (before - dead)), errors)


def faults(server: Server) -> dict[str, Callable[[set[int]], set[int]]]:
    """Return the ways in which idle connections end; each returns which of them did."""

    def all_killed(ids: set[int]) -> set[int]:
        server.end_connections()
        return ids

    def restarted(ids: set[int]) -> set[int]:
        server.restart()
        return ids

    def one_killed(ids: set[int]) -> set[int]:
        victim = min(ids)
        server.end_connection(victim)
        wait_until(lambda: victim not in server.connections())
        return {victim}

    return {"all killed": all_killed, "restarted": restarted, "one of ten killed": one_killed}


def config_for(config: Any, server: Server, name: str, driver: str | None, way: str) -> Any:
    changes: dict[str, Any] = {"pool_size": SIZE, "max_overflow": 0, "pool_nested_checkout": "allow"}
    if driver is not None:
        changes["url"] = f"{_SCHEMES[name]}+{driver}://"
    if way == "socket":
        changes["host"] = str(server.folder if name == "postgresql" else server.folder / "sock")
    changes["tls"] = "require" if way == "tls" else "disable"
    return config.model_copy(update=changes)


def end_all(config: Any, server: Server, name: str, what: str, is_stock: bool, loop: Loop | None) -> bool:
    holds = True
    for fault, end in faults(server).items():
        registry = SQLSpec()
        registry.register_config(config)
        spec: Any = registry if loop is None else RegistryInTasks(loop, registry)
        if is_stock:
            spec = StockSessions(registry.get_engine(), pool_size=SIZE)
        outcome = trial(spec, _ID[name], end)
        right = outcome.errors == 0 and outcome.reconnects == outcome.dead
        print(
            f"{name:10} {what:18} {fault:18} {outcome.errors} errors, {outcome.dead} dead, "
            f"{outcome.reconnects} reconnects{'' if right else '  <-'}",
            flush=True,
        )
        holds &= right
        spec.engine.dispose() if is_stock else spec.close()
        registry.close()
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=["ours", "stock"], default="ours")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="the usual drivers over TCP only")
    options = parser.parse_args()
    is_stock, holds = options.pool == "stock", True
    with (
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.tempfile() as certificate,
        servers("postgresql", "mariadb", certificate=Path(certificate)) as started,
    ):
        _, config = started["postgresql"]
        holds &= cycle(config.model_copy(update={"tls": "disable"}), options.rounds)
        for name, (server, config) in started.items():
            for driver, way in _WAYS[name][: 1 if options.quick else None]:
                own = config_for(config, server, name, driver, way)
                holds &= end_all(own, server, name, f"{driver or 'threads'} {way}", is_stock, None)
            if is_stock:
                continue
            loop = Loop()
            for driver, way in _WAYS_OF_TASKS[name][: 1 if options.quick else None]:
                own = config_for(config, server, name, driver, way)
                holds &= end_all(own, server, name, f"{driver} tasks {way}", is_stock, loop)
            loop.end()
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
