"""Load, stream and copy many rows, beside SQLAlchemy's ways."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from databases import databases

from sqlspec import SQLSpec, copy_rows

NAMES = ("postgresql", "mariadb", "sqlite")
COLUMNS = ("id", "name", "price")
TABLE = "CREATE TABLE {} (id INTEGER PRIMARY KEY, name VARCHAR(100), price INTEGER)"
MANY = {
    "postgresql": "SELECT n AS id, 'item ' || n AS name, n % 997 AS price FROM generate_series(1, {}) AS n",
    "mariadb": "SELECT seq AS id, CONCAT('item ', seq) AS name, seq % 997 AS price FROM seq_1_to_{}",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {}) "
    "SELECT n AS id, 'item ' || n AS name, n % 997 AS price FROM c",
}
# what loading must be at least, in times of what it is compared with
LOAD_BARS = {"postgresql": 5.0, "mariadb": 1.2, "sqlite": 1.0}


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def load(spec: SQLSpec, name: str, count: int) -> dict[str, Any]:
    """Load rows; on PostgreSQL compare with executemany of text(), elsewhere with SQLAlchemy's best way."""
    engine = spec.get_engine(name)
    table = sa.Table("loaded", sa.MetaData(), *(sa.Column(column) for column in COLUMNS))
    rows = [(number, f"item {number}", number % 997) for number in range(count)]
    mappings = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    text = sa.text("INSERT INTO loaded (id, name, price) VALUES (:id, :name, :price)")

    def ours() -> None:
        with spec.get_session(name) as session:
            session.load_rows("loaded", rows, COLUMNS)

    def with_core(statement: Any) -> Callable[[], None]:
        def work() -> None:
            with engine.begin() as connection:
                connection.execute(statement, mappings)

        return work

    def with_driver() -> None:
        with engine.begin() as connection:
            mark = "?" if name == "sqlite" else "%s"
            insert = f"INSERT INTO loaded (id, name, price) VALUES ({mark}, {mark}, {mark})"  # noqa: S608  # constants
            connection.exec_driver_sql(insert, rows)

    ways = {"text()": with_core(text)}
    if name != "postgresql":
        ways |= {"insert()": with_core(sa.insert(table)), "exec_driver_sql()": with_driver}
    seconds: dict[str, list[float]] = {way: [] for way in ("ours", *ways)}
    for _ in range(3):
        for way, work in {"ours": ours, **ways}.items():
            with spec.get_session(name) as session:
                session.execute("DROP TABLE IF EXISTS loaded")
                session.execute(TABLE.format("loaded"))
            seconds[way].append(timed(work))
    best = {way: min(times) for way, times in seconds.items()}
    ours_best = best.pop("ours")
    way = min(best, key=lambda way: best[way])
    return {
        "what": f"load {count:,} rows, {name}",
        "ours": ours_best,
        "theirs": best[way],
        "their way": way,
        "ratio": best[way] / ours_best,
        "bar": LOAD_BARS[name],
        "holds": best[way] / ours_best >= LOAD_BARS[name],
    }


class Peak:
    """Look at the memory of this process from time to time."""

    def __enter__(self) -> Peak:
        self.before = self.highest = self._now()
        self._goes_on = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._goes_on = False
        self._thread.join()

    def _watch(self) -> None:
        while self._goes_on:
            self.highest = max(self.highest, self._now())
            time.sleep(0.01)

    def _now(self) -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def stream(spec: SQLSpec, name: str, count: int) -> dict[str, Any]:
    """Stream rows; the first one must come soon, and the memory must not grow."""

    with spec.get_session(name) as session:
        session.execute("DROP TABLE IF EXISTS many")
        # of a table: a function in FROM is computed as a whole before its first row
        session.execute(f"CREATE TABLE many AS {MANY[name].format(count)}")

    def rows() -> Iterator[Any]:
        with spec.get_session(name) as session:
            yield from session.stream("SELECT * FROM many")

    # what the first use of a driver takes is no part of it
    next(rows())
    begin, seen, total = time.perf_counter(), 0, 0
    with Peak() as peak:
        for row in rows():
            if not seen:
                first = time.perf_counter() - begin
            seen += 1
            total += row.id
    assert (seen, total) == (count, count * (count + 1) // 2)  # noqa: S101  # a benchmark of something wrong is none
    grown = peak.highest - peak.before
    return {
        "what": f"stream {count:,} rows, {name}",
        "seconds": time.perf_counter() - begin,
        "first row": first,
        "grown by MB": grown,
        "bar": "0.05 s, 20 MB",
        "holds": first <= 0.05 and grown <= 20,
    }


def copy(spec: SQLSpec, source: str, target: str, count: int) -> dict[str, Any]:
    """Copy rows from one database to the next; count and sums must be equal."""
    sums = "SELECT count(*), sum(id), sum(price), sum(length(name)) FROM {}"
    with spec.get_session(target) as session:
        session.execute(TABLE.format("copied"))
    query = MANY[source].format(count) if source == "postgresql" else "SELECT id, name, price FROM copied"
    progress: list[int] = []
    begin = time.perf_counter()
    with spec.get_session(source) as from_session, spec.get_session(target) as to_session:
        copied = copy_rows(from_session, query, to_session, "copied", progress=progress.append)
    seconds = time.perf_counter() - begin
    with spec.get_session(source) as from_session, spec.get_session(target) as to_session:
        wanted = from_session.execute(sums.format(f"({query}) AS q")).one()
        found = to_session.execute(sums.format("copied")).one()
    equal = [int(value) for value in wanted] == [int(value) for value in found]
    return {
        "what": f"copy {count:,} rows, {source} to {target}",
        "seconds": seconds,
        "rows a second": count / seconds,
        "commits": len(progress),
        "bar": "all there",
        "holds": equal and copied == count == progress[-1],
    }


def run() -> None:
    """Measure, print, and exit with 1 where ``--check`` is given and something misses its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs=3, default=[100_000, 5_000_000, 1_000_000], metavar=("LOAD", "STREAM", "COPY")
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    loaded, streamed, copied = arguments.rows
    results = []
    with databases(*NAMES) as configs, SQLSpec() as spec:
        for name, config in configs.items():
            spec.register_config(config, name)
        steps: list[Callable[[], dict[str, Any]]] = [
            *(lambda name=name: load(spec, name, loaded) for name in NAMES),  # type: ignore[misc]  # a default binds it
            *(lambda name=name: stream(spec, name, streamed) for name in NAMES),  # type: ignore[misc]  # as above
            lambda: copy(spec, "postgresql", "mariadb", copied),
            lambda: copy(spec, "mariadb", "sqlite", copied),
        ]
        for step in steps:
            results.append(step())
            if not arguments.json:
                shown = (
                    f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in list(results[-1].items())[1:]
                )
                print(f"{results[-1]['what']:42}", ", ".join(shown), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if arguments.check and not all(result["holds"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    run()
