"""Compare asynchronous sessions with SQLAlchemy's AsyncEngine, both on asyncpg and a private PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from databases import databases
from report import Comparison, compare, run
from sqlalchemy.ext.asyncio import create_async_engine

from sqlspec import SQLSpec

BARS = {"one-row session": 0.75}
REPEATS = 100


def measure(rounds: int) -> dict[str, Comparison]:
    """Run every comparison."""
    with databases("postgresql") as configs, asyncio.Runner() as runner:
        config = configs["postgresql"]
        spec = SQLSpec()
        spec.register_config(config)
        url = config.parsed_url.set(drivername="postgresql+asyncpg", password=config.reveal_password())
        engine = create_async_engine(url)
        by_key = "SELECT id, name, price FROM items WHERE id = "
        prebuilt = sa.text(by_key + ":id")

        async def prepare() -> None:
            async with spec.get_async_session() as session:
                await session.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
                await session.load_rows("items", [(number, f"item {number}", number) for number in range(1000)])

        async def our_row() -> object:
            async with spec.get_async_session() as session:
                return await session.execute(by_key + "?", (5,)).one()

        async def their_row() -> object:
            async with engine.begin() as connection:
                return (await connection.execute(prebuilt, {"id": 5})).one()

        def often(work: Callable[[], Awaitable[object]]) -> Callable[[], object]:
            async def repeat() -> None:
                for _ in range(REPEATS):
                    await work()

            return lambda: runner.run(repeat())

        async def close() -> None:
            await spec.aclose()
            await engine.dispose()

        runner.run(prepare())
        found = compare(often(our_row), often(their_row), rounds, 3)
        runner.run(close())
    return {"one-row session": Comparison(found.ours / REPEATS, found.theirs / REPEATS, found.ratio)}


if __name__ == "__main__":
    run(measure, BARS, rounds=15)
