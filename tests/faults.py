"""What the tests of faults ask of a server, and what must hold after every fault."""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
from collections.abc import Iterator
from typing import Any

from sqlspec import PoolStats
from sqlspec.testing import ScriptedDriver, assert_no_leaks
from tests.servers import PostgreSQLServer, Server, wait_until

# one thread of each serves all pools, and ends by itself when nothing needs it
STANDING = {"sqlspec-housekeeping", "sqlspec-deadlines"}
# what takes twenty seconds, and which connection it runs on
LONG = {
    "postgresql": "SELECT pg_sleep(20)",
    "mariadb": "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b",
}
NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}


def ask(spec: Any, statement: str = "SELECT 1", name: str = "primary", **options: Any) -> Any:
    with spec.get_session(name, **options) as session:
        return session.execute(statement).scalar_one()


def end(server: Server, number: int) -> None:
    """Have the server end a connection, and wait until it has."""
    server.end_connection(number)
    wait_until(lambda: number not in server.connections())


def tell(server: Server, sql: str) -> list[Any]:
    """Run a statement on a connection of its own; return the first column of its rows."""
    driver = importlib.import_module("psycopg2" if isinstance(server, PostgreSQLServer) else "MySQLdb")
    with contextlib.closing(driver.connect(**server.parameters())) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        rows = cursor.fetchall() if cursor.description else ()
        connection.commit()
        return [row[0] for row in rows]


def running(server: Server) -> list[int]:
    """Return the server's own ids of the connections on which a statement of `LONG` is under way."""
    if isinstance(server, PostgreSQLServer):
        return tell(server, "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'")
    return tell(server, "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT COUNT(*) FROM seq%'")


def deadlocks(server: Server) -> int:
    """Return how many deadlocks a server has broken."""
    if isinstance(server, PostgreSQLServer):
        # what a backend counted is seen by others when it has been idle for a moment
        (count,) = tell(server, "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")
    else:
        (count,) = tell(
            server,
            "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'INNODB_DEADLOCKS'",
        )
    return int(count)


def assert_nothing_is_lost(registry: Any, server: Server | None = None) -> None:
    """Check, with nothing in use, that each pool's figures agree and that it gives as many connections as it may.

    Of a pool whose database cannot be reached any more, such as one behind a proxy that is gone, only the figures.
    """
    assert_no_leaks(getattr(registry, "_registry", registry), timeout=10)
    for name in registry.list_configs():
        _check_figures(registry, name)
        config, stats = registry.get_config(name), registry.get_pool_stats(name)
        is_there = server is None or getattr(config, "port", None) == server.port
        if stats.created and is_there:
            held = [registry.create_connection(name, timeout=20) for _ in range(stats.capacity or 0)]
            for connection in held:
                connection.close()
            _check_figures(registry, name)


def _check_figures(registry: Any, name: str) -> None:
    def is_at_rest(stats: PoolStats) -> bool:
        return (stats.checked_out, stats.waiters, stats.connecting) == (0, 0, 0)

    wait_until(lambda: is_at_rest(registry.get_pool_stats(name)))
    # housekeeping may close one in this moment
    wait_until(lambda: _agrees(registry.get_pool_stats(name)), otherwise=str(registry.get_pool_stats(name)))


def _agrees(stats: PoolStats) -> bool:
    counts = (stats.total, stats.checked_in, stats.created, stats.failed_connects, stats.timeouts, stats.refused)
    return min(counts) >= 0 and stats.created - sum(stats.closed.values()) == stats.total == stats.checked_in


def assert_whole(pool: Any, driver: ScriptedDriver, interrupts: int = 0) -> None:
    """Check that nothing is in use, nothing is lost, and everything can be had.

    An interrupt may hit SQLAlchemy or the driver where they alone have a connection: it is garbage then, and a real
    driver closes it, but not the scripted one.
    """
    gc.collect()
    wait_until(lambda: pool.stats().connecting == 0)
    stats = pool.stats()
    assert (stats.checked_out, stats.waiters) == (0, 0)
    assert stats.created - sum(stats.closed.values()) == stats.total
    assert 0 <= driver.open_connections - stats.total <= interrupts
    held = [pool.connect(timeout=5) for _ in range(stats.capacity or 0)]
    for connection in held:
        connection.close()


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Check that whatever threads begin in the block end with it, but for those that serve all pools."""
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - before if thread.name not in STANDING]

    wait_until(lambda: not left(), otherwise=f"threads are left: {left()}")
