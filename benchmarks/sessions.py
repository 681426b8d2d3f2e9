"""Compare sessions with plain SQLAlchemy on a SQLite file."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from sqlspec import SQLSpec
from sqlspec.adapters.sqlite import SQLiteConfig

BARS = {"one-row session": 0.40, "thousand rows": 1.05, "savepoint": 0.30}


def timed(work: Callable[[], object], repeats: int) -> float:
    """Return the seconds that one call takes on average."""
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeats: int
) -> tuple[float, float, float]:
    """Return the medians of both, interleaved after one round of warming up, and the median of the ratios."""
    pairs = [(timed(ours, repeats), timed(theirs, repeats)) for _ in range(rounds + 1)][1:]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def measure(rounds: int) -> dict[str, tuple[float, float, float]]:
    """Run every comparison."""
    with tempfile.TemporaryDirectory() as folder, SQLSpec() as spec:
        path = str(Path(folder) / "bench.db")
        spec.register_config(SQLiteConfig(database=path))
        with spec.get_session() as session:
            session.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
            session.execute_many("INSERT INTO items VALUES (?, ?, ?)", [(i, f"item {i}", i) for i in range(1000)])
        engine = sa.create_engine(f"sqlite+pysqlite:///{path}")
        by_key, all_items = "SELECT id, name, price FROM items WHERE id = ", "SELECT id, name, price FROM items"
        prebuilt = sa.text(by_key + ":id")

        def our_row() -> object:
            with spec.get_session() as session:
                return session.execute(by_key + "?", (5,)).one()

        def their_row() -> object:
            with engine.begin() as connection:
                return connection.execute(prebuilt, {"id": 5}).one()

        results = {"one-row session": compare(our_row, their_row, rounds, 1000)}
        with spec.get_session() as session, engine.begin() as connection:
            results["thousand rows"] = compare(
                lambda: session.execute(all_items).all(),
                lambda: connection.exec_driver_sql(all_items).all(),
                rounds,
                50,
            )

            def our_savepoint() -> None:
                with session.begin_nested():
                    pass

            def their_savepoint() -> None:
                with connection.begin_nested():
                    pass

            connection.exec_driver_sql("BEGIN")
            results["savepoint"] = compare(our_savepoint, their_savepoint, rounds, 500)
        engine.dispose()
    return results


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    if arguments.json:
        rows = {
            name: {"ours": a, "sqlalchemy": b, "ratio": r, "bar": BARS[name]} for name, (a, b, r) in results.items()
        }
        print(json.dumps(rows, indent=2))  # noqa: T201  # its purpose
        return
    print(f"{'':16} {'ours':>10} {'sqlalchemy':>11} {'ratio':>6} {'bar':>5}")  # noqa: T201  # its purpose
    for name, (a, b, r) in results.items():
        print(f"{name:16} {a * 1e6:8.1f}µs {b * 1e6:9.1f}µs {r:6.2f} {BARS[name]:5.2f}")  # noqa: T201  # its purpose


if __name__ == "__main__":
    main()
