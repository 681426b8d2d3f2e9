"""Private servers for the benchmarks, as the tests start them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from tests.servers import PASSWORD, MariaDBServer, PostgreSQLServer

__all__ = ["databases", "servers"]


@contextmanager
def databases(*wanted: str) -> Iterator[dict[str, Any]]:
    """Start these of postgresql, mariadb and sqlite; return their configs by name, and stop them at the end."""
    with servers(*wanted) as started:
        yield {name: config for name, (_, config) in started.items()}


@contextmanager
def servers(*wanted: str) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Start them, and return each with its config; of SQLite there is no server."""
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        kinds = {
            "postgresql": (PostgreSQLServer, PostgreSQLConfig, "postgres"),
            "mariadb": (MariaDBServer, MySQLConfig, "app"),
        }
        started: dict[str, tuple[Any, Any]] = {}
        try:
            for name in wanted:
                if name == "sqlite":
                    started[name] = (None, SQLiteConfig(database=str(Path(folder) / "bench.db")))
                    continue
                kind, config, database = kinds[name]
                server = kind(Path(folder) / name)
                server.start()
                place = {"host": "127.0.0.1", "port": server.port, "username": "app", "password": PASSWORD}
                started[name] = (server, config(**place, database=database))
            yield started
        finally:
            for server, _ in started.values():
                if server is not None:
                    server.stop()
