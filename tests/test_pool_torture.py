"""Many threads on a real database, which do everything at once; in between, the server's count must equal ours."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec.pool import FairQueuePool
from tests.conftest import PASSWORD
from tests.servers import Server, wait_until

SECONDS = float(os.environ.get("SQLSPEC_SECONDS", "2"))
THREADS = 40
ROUND = 1.0


@pytest.fixture
def engine(postgresql_server: Server) -> Iterator[sa.Engine]:
    place = {"host": "127.0.0.1", "port": postgresql_server.port, "database": "postgres"}
    url = sa.URL.create("postgresql+psycopg2", "app", PASSWORD, query={"plugin": "sqlspec"}, **place)
    engine = sa.create_engine(url, pool_size=5, max_overflow=3, pool_timeout=20)
    yield engine
    engine.dispose()


def misuse(engine: sa.Engine, chance: random.Random, token: int) -> None:
    """Ask something, and then part from the connection in one of many ways."""
    pool: Any = engine.pool
    connection = engine.connect()
    answer = connection.execute(sa.text("SELECT CAST(:token AS bigint)"), {"token": token}).scalar()
    assert answer == token, "that answer belongs to somebody else"
    dice = chance.random()
    if dice < 0.05:
        connection.invalidate()
    elif dice < 0.06:
        connection.detach()
    elif dice < 0.065:
        # dropped: in a transaction, it is an unreachable cycle
        return
    elif dice < 0.09:
        pool.resize(chance.randint(3, 8), chance.randint(0, 4))
    elif dice < 0.095:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    elif dice < 0.1:
        pool.dispose()
    connection.close()


def run_round(engine: sa.Engine, number: int) -> list[str]:
    """Have all threads misuse the pool for a while; return what went wrong that should not."""
    until, wrong = time.monotonic() + ROUND, []

    def work(seed: int) -> None:
        chance = random.Random(f"{number} {seed}")  # noqa: S311  # not for secrets
        while time.monotonic() < until:
            try:
                misuse(engine, chance, chance.getrandbits(60))
            except sa.exc.OperationalError:
                # the backend that it has terminated itself
                pass
            except BaseException as error:  # kept for the test
                wrong.append(repr(error))
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return wrong


@pytest.mark.fault(49)
def test_threads_that_misuse_it_in_every_way_lose_nothing_and_the_server_agrees(
    engine: sa.Engine, postgresql_server: Server
) -> None:
    pool: Any = engine.pool
    assert type(pool) is FairQueuePool
    known = len(postgresql_server.connections())
    rounds = max(1, round(SECONDS / ROUND))
    for number in range(rounds):
        assert run_round(engine, number) == []
        gc.collect()
        wait_until(lambda: pool.stats().connecting == 0 and pool.stats().waiters == 0)
        stats = pool.stats()
        assert stats.checked_out == 0
        assert stats.created - sum(stats.closed.values()) == stats.total == stats.checked_in
        wait_until(lambda: len(postgresql_server.connections()) - known == pool.stats().total)
        held = [engine.connect() for _ in range(stats.capacity)]
        for connection in held:
            connection.close()
    print(f"{rounds} rounds, {pool.stats().hold.count} checkouts, {dict(pool.stats().closed)}")  # noqa: T201  # for -s
