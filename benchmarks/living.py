"""What a pool does by itself: `python benchmarks/living.py recycling`.

recycling: eight threads work on a pool of eight connections to a private PostgreSQL, for a while under each limit of a
`RecyclingStrategy`. No connection may be closed while somebody has it, none may cost more than one connect, and those
that were opened together must not be replaced together: counted is in how many slices of the time in which jitter may
spread them connections of the first generation were replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from typing import Any, NamedTuple

import sqlalchemy as sa
from databases import databases
from sqlalchemy import event

from sqlspec import RecyclingStrategy, SQLSpec, warm_pool

THREADS = 8
MAX_AGE, JITTER, SLICES = 2.0, 0.5, 8
# of eight draws, fewer would be in one run of two thousand
LEAST_SLICES = 3
LIMITS: dict[str, dict[str, Any]] = {
    "max_age": {"max_age": MAX_AGE, "jitter": JITTER},
    "max_age, no jitter": {"max_age": MAX_AGE, "jitter": 0.0},
    "max_queries": {"max_queries": 200},
    "max_errors": {"max_errors": 5},
}


class Watch(NamedTuple):
    """Hold what was seen of a pool: when connections were opened and closed, and how many were in use at that."""

    opened: list[float]
    closed: list[float]
    in_use: list[bool]


def watch(engine: sa.Engine) -> Watch:
    """Note what becomes of the connections of an engine."""
    seen = Watch([], [], [])

    @event.listens_for(engine.pool, "connect")
    def note_opened(connection: Any, record: Any) -> None:
        seen.opened.append(time.monotonic())

    @event.listens_for(engine.pool, "close")
    def note_closed(connection: Any, record: Any) -> None:
        seen.closed.append(time.monotonic())
        seen.in_use.append(record.in_use)

    return seen


def work(spec: SQLSpec, seconds: float, fails: bool) -> None:
    """Run sessions in eight threads."""
    until = time.monotonic() + seconds

    def loop() -> None:
        while time.monotonic() < until:
            with spec.get_session() as session:
                session.execute("SELECT 1")
                if fails:
                    with contextlib.suppress(sa.exc.DBAPIError):
                        session.execute("SELECT 1 / 0")
                    session.rollback()

    threads = [threading.Thread(target=loop) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def slices(seen: Watch) -> int:
    """Return in how many slices of the time that jitter may take connections of the first generation were closed."""
    first = max(seen.opened[:THREADS])
    begin, width = first + MAX_AGE * (1 - JITTER), MAX_AGE * JITTER / SLICES
    return len({int((moment - begin) / width) for moment in seen.closed[:THREADS]})


def recycling(config: Any, seconds: float) -> bool:
    """Measure under each limit; tell whether what must hold does."""
    holds = True
    print(
        f"{'limit':20} {'sessions':>9} {'opened':>7} {'recycled':>9} {'in use':>7} {'opened - first':>15} {'slices':>7}"
    )
    for name, limits in LIMITS.items():
        options = {"pool_size": THREADS, "max_overflow": 0, "pool_recycling": RecyclingStrategy(**limits)}
        with SQLSpec() as spec:
            spec.register_config(config.model_copy(update=options))
            seen = watch(spec.get_engine())
            warm_pool(spec, connections=THREADS)
            work(spec, seconds, fails="max_errors" in limits)
            stats = spec.get_pool_stats()
        recycled, beyond = stats.closed.get("recycled", 0), stats.created - THREADS
        spread = slices(seen) if "max_age" in limits else 0
        figures = f"{stats.hold.count:9} {stats.created:7} {recycled:9} {sum(seen.in_use):7} {beyond:15}"
        print(f"{name:20} {figures} {spread or '':>7}")
        holds &= recycled >= THREADS and beyond <= recycled and not any(seen.in_use)
        holds &= name != "max_age" or spread >= LEAST_SLICES
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["recycling"])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each limit; at least 3")
    options = parser.parse_args()
    with databases("postgresql") as started:
        holds = recycling(started["postgresql"], max(3.0, options.seconds))
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
