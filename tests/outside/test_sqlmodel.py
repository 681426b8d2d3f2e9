"""A FastAPI application with SQLModel on our pools, in threads and in tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sqlspec import PoolTimeout
from sqlspec.pool import AsyncFairQueuePool, FairQueuePool
from tests.outside.packages import need

need("asyncpg")
httpx = need("httpx2")
testclient = need("fastapi.testclient")
notes = need("tests.outside.sqlmodel_notes")

NOTES = [f"note {number:02}" for number in range(40)]


@pytest.fixture
def app(plugin_url: Callable[[str], str]) -> Any:
    """The application on two connections for threads and two for tasks, of which nobody gets both."""
    urls = [f"{plugin_url(driver)}&sqlspec_nested_checkout=refuse" for driver in ("psycopg", "asyncpg")]
    return notes.create_app(*urls, pool_size=2, max_overflow=0, pool_timeout=20)


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Any]:
    """Run the application in this loop, and give a client of it."""
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        yield client
        assert app.state.async_engine.pool.stats().checked_out == 0


async def until(state: Callable[[], bool]) -> None:
    """Let the loop run until a state is reached."""
    async with asyncio.timeout(10):
        while not state():
            await asyncio.sleep(0.01)


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def in_loop(test: Callable[[Any], Awaitable[None]]) -> Callable[[Any], None]:
    """Run a test in a loop of its own."""

    def run(app: Any) -> None:
        asyncio.run(test(app))

    run.__name__ = test.__name__
    return run


def test_more_threads_than_connections_keep_every_note(app: Any) -> None:
    with testclient.TestClient(app) as client, ThreadPoolExecutor(8) as executor:
        pool = app.state.engine.pool
        assert type(pool) is FairQueuePool
        answers = executor.map(lambda text: client.post("/notes", json={"text": text, "author": "ann"}), NOTES)
        assert {answer.status_code for answer in answers} == {201}
        found = client.get("/notes", params={"author": "ann"}).json()
        assert [note["text"] for note in found] == NOTES
        assert client.get(f"/notes/{found[0]['id']}").json() == found[0]
        assert client.get("/notes/0").status_code == 404
        stats = pool.stats()
        assert (stats.checked_out, stats.timeouts) == (0, 0)
        assert stats.total <= 2


@in_loop
async def test_more_tasks_than_connections_keep_every_note(app: Any) -> None:
    async with running(app) as client:
        pool = app.state.async_engine.pool
        assert type(pool) is AsyncFairQueuePool
        sent = [client.post("/tasks/notes", json={"text": text, "author": "bob"}) for text in NOTES]
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {201}
        found = (await client.get("/tasks/notes", params={"author": "bob"})).json()
        assert [note["text"] for note in found] == NOTES
        assert pool.stats().timeouts == 0
        assert pool.total() <= 2


@in_loop
async def test_a_thread_that_serves_one_request_after_the_other_holds_nothing_meanwhile(app: Any) -> None:
    async with running(app) as client:
        first = asyncio.create_task(client.get("/meeting"))
        # now the only thread that has done anything is idle, and the next to be taken
        await until(lambda: app.state.meeting.n_waiting == 1)
        assert (await client.get("/meeting")).json() == (await first).json() is True


@in_loop
async def test_a_request_whose_client_has_gone_gives_its_connection_back(app: Any) -> None:
    async with running(app) as client:
        pool = app.state.async_engine.pool
        requests = [asyncio.create_task(client.get("/tasks/sleep")) for _ in range(3)]
        await until(lambda: pool.stats().checked_out == 2 and pool.stats().waiters == 1)
        for request in requests:
            await cancel(request)
        assert (pool.stats().checked_out, pool.stats().waiters) == (0, 0)
        assert (await client.get("/tasks/notes", params={"author": "bob"})).json() == []


@in_loop
async def test_a_request_that_finds_no_connection_is_told_which_route_holds_them(app: Any) -> None:
    async with running(app) as client:
        pool = app.state.async_engine.pool
        pool._timeout = 0.1
        requests = [asyncio.create_task(client.get("/tasks/sleep")) for _ in range(2)]
        await until(lambda: pool.stats().checked_out == 2)
        with pytest.raises(PoolTimeout, match=r"2 held at \S*sqlmodel_notes\.py:\d+ in sleep"):
            await client.get("/tasks/notes", params={"author": "bob"})
        for request in requests:
            await cancel(request)
