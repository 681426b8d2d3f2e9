"""Compare sessions with plain SQLAlchemy on a SQLite file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import sqlalchemy as sa
from report import Comparison, compare, run

from sqlspec import SQLSpec
from sqlspec.adapters.sqlite import SQLiteConfig

BARS = {"one-row session": 0.40, "thousand rows": 1.05, "savepoint": 0.30}


def measure(rounds: int) -> dict[str, Comparison]:
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


if __name__ == "__main__":
    run(measure, BARS, rounds=15)
