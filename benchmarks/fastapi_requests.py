"""What requests of a FastAPI application find in its pool: `python benchmarks/fastapi_requests.py`.

An application on a private PostgreSQL, with five connections for tasks and five for threads, served by uvicorn.

streams: 50 event streams are open, each begun with a statement; requests that read come one after the other.
commits: requests whose COMMIT fails, by a constraint that is checked then. Each must be answered by a 500, and nothing
of it be stored.
disconnects: requests that write and then read slowly, from clients of which most go away at a random moment; requests
that run then are cancelled, by anyio and by asyncio in turn. Afterwards no connection may be checked out, none may have
come back by the garbage collector, and the server may have no more than the pool knows of.

`--scope request` ends the sessions after the responses, as dependencies of FastAPI do by themselves.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import anyio
from databases import servers
from fastapi import FastAPI, params
from fastapi.responses import StreamingResponse

from sqlspec import Session, SQLSpec
from sqlspec.extensions.fastapi import FastAPISQLSpec
from tests.asgi import CancelOnDisconnect, Client, served
from tests.servers import wait_until

STREAMS, BAR = 50, 0.05
Scope = Literal["function", "request"]


def build(spec: SQLSpec, scope: Scope, over: threading.Event) -> FastAPI:
    """Return the application."""
    db = FastAPISQLSpec(spec)
    app = FastAPI(lifespan=db.lifespan)
    in_threads: Any = params.Depends(db.session().dependency, scope=scope)
    in_tasks: Any = params.Depends(db.async_session().dependency, scope=scope)

    async def events() -> AsyncIterator[str]:
        yield "data: begun\n\n"
        while not over.is_set():
            await anyio.sleep(0.05)

    @app.get("/events")
    async def stream(session: Any = in_tasks) -> StreamingResponse:
        await session.execute("SELECT 1")
        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/tasks")
    async def read(session: Any = in_tasks) -> int:
        return int(await session.execute("SELECT 1").scalar())

    @app.get("/threads")
    def read_in_a_thread(session: Session = in_threads) -> int:
        return int(session.execute("SELECT 1").scalar())

    @app.post("/tasks/slow")
    async def write(session: Any = in_tasks) -> None:
        await session.execute("INSERT INTO things VALUES (1, NULL)")
        await session.execute("SELECT pg_sleep(0.01)")

    @app.post("/threads/slow")
    def write_in_a_thread(session: Session = in_threads) -> None:
        session.execute("INSERT INTO things VALUES (1, NULL)")
        session.execute("SELECT pg_sleep(0.01)")

    @app.post("/tasks/broken")
    async def write_what_cannot_be_committed(session: Any = in_tasks) -> None:
        await session.execute("INSERT INTO things VALUES (2, 99)")

    @app.post("/threads/broken")
    def write_in_a_thread_what_cannot_be_committed(session: Session = in_threads) -> None:
        session.execute("INSERT INTO things VALUES (2, 99)")

    return app


def streams(port: int, over: threading.Event) -> bool:
    """Time requests while more streams are open than there are connections."""
    opened = [Client(port, "/events") for _ in range(STREAMS)]
    try:
        begun = sum(_begins(stream) for stream in opened)
        seconds = {path: [_timed(port, path) for _ in range(100)] for path in ("/tasks", "/threads")}
    finally:
        over.set()
        for stream in opened:
            stream.close()
    print(f"streams: {begun} of {STREAMS} open")
    holds = begun == STREAMS
    for path, each in seconds.items():
        answered = sorted(second for second in each if second is not None)
        median = statistics.median(answered) if answered else float("inf")
        holds &= len(answered) == 100 and median < BAR
        worst = answered[-1] if answered else float("inf")
        print(
            f"  {path:9} {len(answered)} of 100 answered, median {median * 1000:.1f} ms, longest {worst * 1000:.1f} ms"
        )
    return holds


def _begins(stream: Client) -> bool:
    try:
        return b"begun" in stream.read_until(b"begun")
    except (AssertionError, OSError):
        return False


def _timed(port: int, path: str) -> float | None:
    begin = time.perf_counter()
    status, _ = Client(port, path).answer()
    return time.perf_counter() - begin if status == 200 else None


def commits(port: int, spec: SQLSpec, count: int) -> bool:
    """Have COMMITs fail."""
    paths = ["/tasks/broken", "/threads/broken"] * (count // 2)
    statuses = [Client(port, path, "POST").answer()[0] for path in paths]
    with spec.get_session() as session:
        stored = session.execute("SELECT count(*) FROM things WHERE id = 2").scalar()
    print(f"commits: {statuses.count(500)} of {len(paths)} that failed are a 500, {stored} stored")
    return statuses == [500] * len(paths) and stored == 0


def disconnects(port: int, spec: SQLSpec, server: Any, app: CancelOnDisconnect, requests: int, clients: int) -> bool:
    """Have clients go away."""
    answers: list[int | None] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # nothing is secret
        for _ in range(requests // clients):
            client = Client(port, chance.choice(["/tasks/slow", "/threads/slow"]), "POST")
            if chance.random() < 0.2:
                answers.append(client.answer()[0])
            else:
                time.sleep(chance.random() * 0.08)
                client.close()
                answers.append(None)

    _together(clients, ask)
    wait_until(lambda: spec.get_pool_stats().checked_out == 0, seconds=30)
    stats = spec.get_pool_stats()
    known = wait_for_equal(lambda: len(server.connections()), lambda: spec.get_pool_stats().total)
    gone, answered = answers.count(None), answers.count(200)
    print(
        f"disconnects: {len(answers)} requests, {gone} clients went away, {answered} answered\n"
        f"  {app.cancelled} cancelled, {stats.checked_out} checked out, {stats.dropped} dropped, "
        f"closed {dict(stats.closed)}; the server has {'the' if known else 'not the'} {stats.total} of the pools"
    )
    return known and stats.checked_out == stats.dropped == 0 and answered == len(answers) - gone and app.cancelled > 0


def _together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wait_for_equal(one: Callable[[], int], other: Callable[[], int]) -> bool:
    until = time.monotonic() + 5
    while one() != other():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["streams", "commits", "disconnects"])
    parser.add_argument("--requests", type=int, default=2000, help="of clients that may go away")
    parser.add_argument("--clients", type=int, default=16, help="at the same time")
    parser.add_argument("--scope", choices=["function", "request"], default="function")
    options = parser.parse_args()
    # it would print the errors of the COMMITs
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    over, holds = threading.Event(), True
    with servers("postgresql") as started, SQLSpec() as spec:
        server, config = started["postgresql"]
        patience = 30.0 if options.scope == "function" else 1.0
        limits = {"pool_size": 5, "max_overflow": 0, "pool_timeout": patience}
        spec.register_config(config.model_copy(update=limits))
        with spec.get_session() as session:
            session.execute("CREATE TABLE others (id INTEGER PRIMARY KEY)")
            session.execute("CREATE TABLE things (id INTEGER, other INTEGER REFERENCES others INITIALLY DEFERRED)")
        app = CancelOnDisconnect(build(spec, options.scope, over), "both")
        with served(app) as port:
            if options.only in {None, "commits"}:
                holds &= commits(port, spec, 100)
            if options.only in {None, "disconnects"}:
                holds &= disconnects(port, spec, server, app, options.requests, options.clients)
            if options.only in {None, "streams"}:
                holds &= streams(port, over)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
