"""Orders: from a file into a warehouse, summed up, and copied: `python docs/examples/pipeline/pipeline.py`."""

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sqlspec import EnvironmentConfig, LoadError, Session, SQLSpec, copy_rows
from sqlspec.adapters import SQLiteConfig
from sqlspec.config import SyncDatabaseConfig

ORDERS = Path(__file__).with_name("orders.csv")


def config(name: str) -> SyncDatabaseConfig:
    """Return a file of SQLite, unless WAREHOUSE_URL or ARCHIVE_URL names a server."""
    prefix = f"{name.upper()}_"
    return EnvironmentConfig.from_env(prefix) if f"{prefix}URL" in os.environ else SQLiteConfig(database=f"{name}.db")


def read(file: Path) -> Iterator[tuple[int, str, int]]:
    """Return the orders of a file one by one: there may be more than memory has room for."""
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield int(row["id"]), row["customer"], int(row["cents"])


def empty(session: Session) -> None:
    """Have a table without orders, so that whoever starts this again has each of them once."""
    columns = "id INTEGER PRIMARY KEY, customer VARCHAR(50) NOT NULL, cents INTEGER NOT NULL"
    session.execute(f"CREATE TABLE IF NOT EXISTS orders ({columns})")
    session.execute("DELETE FROM orders")


def spent(session: Session) -> Counter[str]:
    """Return how many cents each customer has spent."""
    sums: Counter[str] = Counter()
    with session.stream("SELECT customer, cents FROM orders") as orders:
        for order in orders:
            sums[order.customer] += order.cents
    return sums


def archived(count: int) -> None:
    """Tell how far it is."""
    print(f"{count} orders archived")


def main(file: Path) -> None:
    """Load all orders or none, print the best customers, and copy what is there, committed after each 25."""
    with SQLSpec() as spec:
        for name in ("warehouse", "archive"):
            spec.register_config(config(name), name=name)
        with spec.get_session("warehouse") as session:
            empty(session)
            print(f"{session.load_rows('orders', read(file))} orders loaded")
        with spec.get_session("warehouse", read_only=True) as source, spec.get_session("archive") as target:
            for customer, cents in spent(source).most_common(3):
                print(f"{customer:8} {cents / 100:8.2f}")
            empty(target)
            copy_rows(source, "SELECT * FROM orders", target, "orders", batch_size=25, progress=archived)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else ORDERS)
    except LoadError as error:
        sys.exit(f"{error}: {error.__cause__}")
