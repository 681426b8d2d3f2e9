"""Compare one-row sessions with what people use instead, on a SQLite file and a private PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import asyncpg
import psycopg_pool
import sqlalchemy as sa
from databases import databases
from report import Comparison, Timer, compare_timers, run, timed
from sqlalchemy import orm

from sqlspec import SQLSpec
from sqlspec.adapters import PostgreSQLConfig

BARS = {"sqlite, litestar": 1.5, "psycopg, litestar": 0.8}
FOLDER = Path(__file__).parent
# the distribution that has our name, which only an environment of its own can hold
LITESTAR = "sqlspec[psycopg]==0.69.0"
REPEATS = 1000
BY_KEY = "SELECT id, name, price FROM items WHERE id = "


class Base(orm.DeclarativeBase):
    """Be the base of the mapped classes."""


class Item(Base):
    """Be a row, mapped."""

    __tablename__ = "items"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    price: orm.Mapped[int]


def by_core(engine: sa.Engine) -> Timer:
    """Return the timer of SQLAlchemy Core."""
    prebuilt = sa.text(BY_KEY + ":id")

    def row() -> object:
        with engine.begin() as connection:
            return connection.execute(prebuilt, {"id": 5}).one()

    return lambda: timed(row, REPEATS)


def by_orm(engine: sa.Engine) -> Timer:
    """Return the timer of SQLAlchemy's own session."""
    prebuilt = sa.select(Item).where(Item.id == 5)

    def row() -> object:
        with orm.Session(engine) as session, session.begin():
            return session.scalars(prebuilt).one()

    return lambda: timed(row, REPEATS)


def by_psycopg_pool(pool: psycopg_pool.ConnectionPool) -> Timer:
    """Return the timer of psycopg's own pool."""

    def row() -> object:
        with pool.connection() as connection:
            return connection.execute(BY_KEY + "%s", (5,)).fetchone()

    return lambda: timed(row, REPEATS)


async def open_pool(dsn: str) -> asyncpg.Pool:
    """Return asyncpg's own pool."""
    return await asyncpg.create_pool(dsn)


def by_asyncpg(runner: asyncio.Runner, pool: asyncpg.Pool) -> Timer:
    """Return the timer of asyncpg's own pool."""

    async def row() -> object:
        async with pool.acquire() as connection, connection.transaction():
            return await connection.fetchrow(BY_KEY + "$1", 5)

    return by_tasks(runner, row)


def by_tasks(runner: asyncio.Runner, work: Any) -> Timer:
    """Return the timer of a coroutine function."""

    async def repeat() -> None:
        for _ in range(REPEATS):
            await work()

    return lambda: timed(lambda: runner.run(repeat()), 1) / REPEATS


@contextmanager
def by_litestar(database: str, arguments: Mapping[str, Any]) -> Iterator[Timer]:
    """Start litestar-org's sqlspec in its own environment; yield its timer."""
    environment = FOLDER.parent / ".venv" / "litestar"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", LITESTAR, "psycopg[binary]", "psycopg_pool"], check=True)
    command = [python, FOLDER / "litestar_peer.py", database, json.dumps(dict(arguments))]
    # a path that leads to us would have it import us
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as peer:
        asked, answers = cast("IO[str]", peer.stdin), cast("IO[str]", peer.stdout)

        def time_it() -> float:
            print(REPEATS, file=asked, flush=True)
            return float(answers.readline())

        yield time_it
        asked.close()


def by_us(spec: SQLSpec, name: str) -> Timer:
    """Return our own timer."""

    def row() -> object:
        with spec.get_session(name) as session:
            return session.execute(BY_KEY + "?", (5,)).one()

    return lambda: timed(row, REPEATS)


def by_our_tasks(runner: asyncio.Runner, spec: SQLSpec, name: str) -> Timer:
    """Return our own timer for tasks."""

    async def row() -> object:
        async with spec.get_async_session(name) as session:
            return await session.execute(BY_KEY + "?", (5,)).one()

    return by_tasks(runner, row)


def measure(rounds: int) -> dict[str, Comparison]:
    """Run every comparison."""
    with ExitStack() as opened:
        configs = opened.enter_context(databases("sqlite", "postgresql"))
        runner = opened.enter_context(asyncio.Runner())
        spec = opened.enter_context(SQLSpec())
        place = configs["postgresql"].parsed_url.set(password=configs["postgresql"].reveal_password())
        psycopg_url = place.set(drivername="postgresql+psycopg")
        configs["psycopg"] = PostgreSQLConfig(url=psycopg_url.render_as_string(hide_password=False))
        for name, config in configs.items():
            spec.register_config(config, name)
        for name in ("sqlite", "postgresql"):
            with spec.get_session(name) as session:
                session.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
                session.load_rows("items", [(number, f"item {number}", number) for number in range(1000)])
        file = configs["sqlite"].database
        libpq = {"host": place.host, "port": place.port, "user": place.username, "password": place.password}
        libpq["dbname"] = place.database
        pool = opened.enter_context(psycopg_pool.ConnectionPool(kwargs=libpq, max_size=5))
        tasks_pool = runner.run(open_pool(place.set(drivername="postgresql").render_as_string(hide_password=False)))
        others = {
            "sqlite, Core": by_core(sa.create_engine(f"sqlite:///{file}")),
            "sqlite, ORM": by_orm(sa.create_engine(f"sqlite:///{file}")),
            "sqlite, litestar": opened.enter_context(by_litestar("sqlite", {"database": file})),
            "psycopg, Core": by_core(sa.create_engine(psycopg_url)),
            "psycopg, ORM": by_orm(sa.create_engine(psycopg_url)),
            "psycopg, its pool": by_psycopg_pool(pool),
            "psycopg, litestar": opened.enter_context(by_litestar("postgresql", libpq)),
            "asyncpg, its pool": by_asyncpg(runner, tasks_pool),
        }
        ours = {name: by_us(spec, name) for name in ("sqlite", "psycopg")}
        ours["asyncpg"] = by_our_tasks(runner, spec, "postgresql")
        found = {name: compare_timers(ours[name.split(",")[0]], timer, rounds) for name, timer in others.items()}
        runner.run(tasks_pool.close())
        runner.run(spec.aclose())
        return found


if __name__ == "__main__":
    run(measure, BARS, rounds=15)
