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

__all__ = ["databases"]


@contextmanager
def databases(*wanted: str) -> Iterator[dict[str, Any]]:
    """Start these of postgresql, mariadb and sqlite; return their configs by name, and stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        servers = {
            "postgresql": (PostgreSQLServer(Path(folder) / "postgresql"), PostgreSQLConfig, "postgres"),
            "mariadb": (MariaDBServer(Path(folder) / "mariadb"), MySQLConfig, "app"),
        }
        configs: dict[str, Any] = {}
        started = []
        try:
            for name in wanted:
                if name == "sqlite":
                    configs[name] = SQLiteConfig(database=str(Path(folder) / "bench.db"))
                    continue
                server, kind, database = servers[name]
                server.start()
                started.append(server)
                place = {"host": "127.0.0.1", "port": server.port, "username": "app", "password": PASSWORD}
                configs[name] = kind(**place, database=database)
            yield configs
        finally:
            for server in started:
                server.stop()
