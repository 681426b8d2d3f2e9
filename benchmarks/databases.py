"""Private servers for the benchmarks, as the tests start them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

sys.path.insert(0, str(Path(__file__).parent.parent))

from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from tests.servers import PASSWORD, MariaDBServer, PostgreSQLServer

__all__ = ["StockSessions", "databases", "servers"]


@contextmanager
def databases(*wanted: str, certificate: Path | None = None) -> Iterator[dict[str, Any]]:
    """Start these of postgresql, mariadb and sqlite; return their configs by name, and stop them at the end."""
    with servers(*wanted, certificate=certificate) as started:
        yield {name: config for name, (_, config) in started.items()}


@contextmanager
def servers(*wanted: str, certificate: Path | None = None) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Start them, with a certificate where there is one, and return each with its config; SQLite has no server."""
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
                own = None
                if certificate is not None:
                    # each server's user owns its copy
                    own = Path(folder) / f"{name}.pem"
                    own.write_bytes(certificate.read_bytes())
                server = kind(Path(folder) / name, own)
                server.start()
                place = {"host": "127.0.0.1", "port": server.port, "username": "app", "password": PASSWORD}
                started[name] = (server, config(**place, database=database))
            yield started
        finally:
            for server, _ in started.values():
                if server is not None:
                    server.stop()


class StockSessions:
    """Give sessions of SQLAlchemy's own pool, as far as the benchmarks ask them the same as ours."""

    def __init__(self, engine: sa.Engine, **options: Any) -> None:
        self.engine = sa.create_engine(engine.url.set(password=PASSWORD), **options)

    def get_session(self) -> _StockSession:
        """Check a connection out."""
        return _StockSession(self.engine.connect())


class _StockSession:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.execute = connection.exec_driver_sql
        self.rollback = connection.rollback

    def __enter__(self) -> _StockSession:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._connection.commit()
        except exc.SQLAlchemyError:
            # it has failed before
            self._connection.rollback()
        finally:
            self._connection.close()
