"""FastAPI applications: sessions of requests, the lifetime of pools, and the pages for operators."""

# no `from __future__ import annotations`: FastAPI reads those of the endpoints, which name what is local to a test

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import pytest
from anyio import CancelScope
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette

from sqlspec import AsyncSession, ConfigError, PoolStats, Session, SQLSpec
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig
from sqlspec.extensions import fastapi as extension
from sqlspec.extensions import starlette as starlette_extension
from sqlspec.extensions.fastapi import FastAPISQLSpec
from sqlspec.extensions.starlette import database_lifespan
from sqlspec.testing import FaultProxy, isolated
from tests.asgi import CancelOnDisconnect, Client, served
from tests.conftest import Database
from tests.servers import free_port, wait_until

ROOT = Path(__file__).parent.parent
INSERT = "INSERT INTO users (name) VALUES (?)"
Make = Callable[[FastAPI, FastAPISQLSpec, Callable[[], None]], None]


def names(spec: SQLSpec) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY name").scalars())


@pytest.fixture
def app(spec: SQLSpec) -> FastAPI:
    """An application that writes: in a thread at /threads, in a task at /tasks; `after` is what it does then."""
    db = FastAPISQLSpec(spec)
    app = FastAPI(lifespan=db.lifespan)
    app.state.db = db
    app.state.after = lambda: {"stored": True}

    @app.post("/threads")
    def in_a_thread(session: Annotated[Session, db.session("primary")]) -> Any:
        session.execute(INSERT, ("Alice",))
        return app.state.after()

    @app.post("/tasks")
    async def in_a_task(session: Annotated[AsyncSession, db.async_session("primary")]) -> Any:
        await session.execute(INSERT, ("Alice",))
        return app.state.after()

    return app


@pytest.fixture(params=["/threads", "/tasks"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_request_is_committed_before_its_response_is_sent(spec: SQLSpec, app: FastAPI, path: str) -> None:
    seen: list[tuple[int, list[str], int]] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def watch(message: Any) -> None:
            if message["type"] == "http.response.start":
                in_use = spec.get_pool_stats("primary").checked_out
                seen.append((message["status"], await asyncio.to_thread(names, spec), in_use))
            await send(message)

        await app(scope, receive, watch)

    assert TestClient(watched).post(path).json() == {"stored": True}
    assert seen == [(200, ["Alice"], 0)]


@pytest.mark.parametrize("error", [RuntimeError("no"), HTTPException(409)])
def test_an_exception_rolls_back(spec: SQLSpec, app: FastAPI, path: str, error: Exception) -> None:
    def fail() -> None:
        raise error

    app.state.after = fail
    answer = TestClient(app, raise_server_exceptions=False).post(path)
    assert answer.status_code == (409 if isinstance(error, HTTPException) else 500)
    assert names(spec) == []


def test_a_response_that_is_returned_commits_whatever_its_status(spec: SQLSpec, app: FastAPI, path: str) -> None:
    app.state.after = lambda: Response(status_code=409)
    assert TestClient(app).post(path).status_code == 409
    assert names(spec) == ["Alice"]


def test_a_response_that_cannot_be_built_rolls_back(spec: SQLSpec, app: FastAPI, path: str) -> None:
    app.state.after = lambda: object()
    assert TestClient(app, raise_server_exceptions=False).post(path).status_code == 500
    assert names(spec) == []


DEFERRED = "CREATE TABLE notes (user_id INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)"


def test_a_commit_that_fails_is_a_500_and_stores_nothing(
    spec: SQLSpec, database: Database, app: FastAPI, path: str
) -> None:
    if database.name != "postgresql":
        pytest.skip("only PostgreSQL checks constraints at the COMMIT without further ado")
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS notes")
        session.execute(DEFERRED)
    db = app.state.db

    @app.post("/notes/threads")
    def in_a_thread(session: Annotated[Session, db.session("primary")]) -> dict[str, bool]:
        session.execute("INSERT INTO notes VALUES (?)", (99,))
        return {"stored": True}

    @app.post("/notes/tasks")
    async def in_a_task(session: Annotated[AsyncSession, db.async_session("primary")]) -> dict[str, bool]:
        await session.execute("INSERT INTO notes VALUES (?)", (99,))
        return {"stored": True}

    answer = TestClient(app, raise_server_exceptions=False).post(f"/notes{path}")
    assert answer.status_code == 500
    assert "stored" not in answer.text
    with spec.get_session("primary") as session:
        assert session.execute("SELECT count(*) FROM notes").scalar() == 0
        session.execute("DROP TABLE notes")
    assert spec.get_pool_stats("primary").checked_out == 0


def test_a_connection_is_checked_out_by_the_first_statement_only() -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:"))
        db = FastAPISQLSpec(spec)
        app = FastAPI(lifespan=db.lifespan)

        @app.get("/")
        def idle(session: Annotated[Session, db.session()]) -> str:
            return repr(session)

        with TestClient(app) as client:
            assert "idle" in client.get("/").json()
            assert spec.get_pool_stats().created == 0


def test_a_request_has_one_session_of_a_name_and_others_of_others(spec: SQLSpec, database: Database) -> None:
    spec.register_config(database.config(), name="other")
    db = FastAPISQLSpec(spec)
    app = FastAPI()

    def user(session: Annotated[Session, db.session("primary")]) -> Session:
        session.execute(INSERT, ("Alice",))
        return session

    @app.get("/")
    def look(
        first: Annotated[Session, Depends(user)],
        same: Annotated[Session, db.session("primary")],
        other: Annotated[Session, db.session("other")],
        reading: Annotated[Session, db.session("primary", read_only=True)],
    ) -> list[bool]:
        count = "SELECT count(*) FROM users"
        seen = [session.execute(count).scalar() == 1 for session in (same, other, reading)]
        return [first is same, *seen]

    assert TestClient(app).get("/").json() == [True, True, False, False]
    assert names(spec) == ["Alice"]


def test_a_dependency_that_uses_the_session_and_fails_after_the_endpoint_rolls_back(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    app = FastAPI()
    Primary = Annotated[Session, db.session("primary")]  # noqa: N806  # a type

    def audited(session: Primary) -> Iterator[Session]:
        yield session
        session.execute(INSERT, ("audit",))
        if session.execute("SELECT count(*) FROM users WHERE name = 'wrong'").scalar():
            raise HTTPException(409)

    @app.post("/{name}")
    def create(name: str, session: Annotated[Session, Depends(audited, scope="function")]) -> None:
        session.execute(INSERT, (name,))

    client = TestClient(app)
    assert (client.post("/wrong").status_code, names(spec)) == (409, [])
    assert (client.post("/right").status_code, names(spec)) == (200, ["audit", "right"])


def test_a_session_of_a_websocket_commits_at_its_end_and_rolls_back_where_the_client_goes(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    app = FastAPI(lifespan=db.lifespan)

    @app.websocket("/{name}")
    async def talk(name: str, socket: WebSocket, session: Annotated[AsyncSession, db.async_session("primary")]) -> None:
        await socket.accept()
        await session.execute(INSERT, (name,))
        await socket.send_text(await socket.receive_text())

    with TestClient(app) as client:
        with client.websocket_connect("/stays") as socket:
            socket.send_text("hello")
            assert socket.receive_text() == "hello"
            wait_until(lambda: names(spec) == ["stays"])
        # unless the endpoint is cancelled before it is told
        with contextlib.suppress(WebSocketDisconnect), client.websocket_connect("/goes"):
            pass
        wait_until(lambda: spec.get_pool_stats("primary").checked_out == 0)
    assert names(spec) == ["stays"]


def test_an_override_takes_the_place_of_a_session(app: FastAPI, spec: SQLSpec) -> None:
    dependency = app.state.db.session("primary").dependency
    with SQLSpec() as others:
        others.register_config(SQLiteConfig(database=":memory:"))
        with others.get_session() as session:
            session.execute("CREATE TABLE users (name TEXT)")
            app.dependency_overrides[dependency] = lambda: session
            assert TestClient(app).post("/threads").status_code == 200
            assert session.execute("SELECT name FROM users").scalar() == "Alice"
    assert names(spec) == []


# -- streams, and clients that go away


@pytest.fixture
def small(database: Database) -> Iterator[SQLSpec]:
    """A registry with two connections."""
    with SQLSpec() as registry:
        registry.register_config(database.config(pool_size=2, max_overflow=0, pool_timeout=10.0), name="primary")
        yield registry
        assert registry.get_pool_stats("primary").checked_out == 0


def test_requests_are_answered_while_more_streams_are_open_than_there_are_connections(small: SQLSpec) -> None:
    db = FastAPISQLSpec(small)
    app = FastAPI(lifespan=db.lifespan)
    over = threading.Event()

    async def events() -> AsyncIterator[str]:
        yield "data: begun\n\n"
        while not over.is_set():
            await asyncio.sleep(0.02)

    def blocking_events() -> Iterator[str]:
        yield "data: begun\n\n"
        over.wait(20)

    @app.get("/tasks/events")
    async def stream(session: Annotated[AsyncSession, db.async_session("primary")]) -> StreamingResponse:
        await session.execute("SELECT 1")
        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/threads/events")
    def stream_in_threads(session: Annotated[Session, db.session("primary")]) -> StreamingResponse:
        session.execute("SELECT 1")
        return StreamingResponse(blocking_events(), media_type="text/event-stream")

    @app.get("/tasks")
    async def in_a_task(session: Annotated[AsyncSession, db.async_session("primary")]) -> int:
        return int(await session.execute("SELECT 2").scalar())

    @app.get("/threads")
    def in_a_thread(session: Annotated[Session, db.session("primary")]) -> int:
        return int(session.execute("SELECT 2").scalar())

    with served(app) as port:
        try:
            streams = [Client(port, f"/{kind}/events") for kind in ("tasks", "threads") for _ in range(6)]
            for one in streams:
                one.read_until(b"begun")
            assert small.get_pool_stats("primary").checked_out == 0
            assert [Client(port, kind).answer() for kind in ("/tasks", "/threads")] == [(200, 2), (200, 2)]
        finally:
            over.set()
            for one in streams:
                one.close()


SLOW = {
    "postgresql": "SELECT pg_sleep(0.05)",
    "mariadb": "SELECT SLEEP(0.05)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT count(*) FROM n",
}


LONG = {
    "postgresql": "SELECT pg_sleep(20)",
    "mariadb": "SELECT SLEEP(20)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
}


@pytest.mark.parametrize("how", ["anyio", "asyncio"])
def test_requests_that_are_cancelled_since_their_clients_went_away_leave_no_connection_behind(
    small: SQLSpec, database: Database, how: Literal["anyio", "asyncio"], monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a machine that has much to do, threads wait for a connection longer than the usual time
    monkeypatch.setattr(extension, "_GRACE", 60.0)
    db = FastAPISQLSpec(small)
    app = FastAPI(lifespan=db.lifespan)
    begun: list[str] = []

    @app.get("/tasks")
    async def in_a_task(session: Annotated[AsyncSession, db.async_session("primary")]) -> str:
        begun.append("task")
        await session.execute(SLOW[database.name])
        return "done"

    @app.get("/threads")
    def in_a_thread(session: Annotated[Session, db.session("primary")]) -> str:
        begun.append("thread")
        session.execute(SLOW[database.name])
        return "done"

    cancelling = CancelOnDisconnect(app, how)
    with served(cancelling) as port:
        for number in range(40):
            begun.clear()
            client = Client(port, ("/tasks", "/threads")[number % 2])
            if number % 4 < 2:
                wait_until(lambda: len(begun) > 0)
            time.sleep(number % 7 * 0.01)
            client.close()
        wait_until(lambda: small.get_pool_stats("primary").checked_out == 0, seconds=60)
        assert [Client(port, kind).answer() for kind in ("/tasks", "/threads")] == [(200, "done")] * 2
        stats = small.get_pool_stats("primary")
        assert (stats.checked_out, stats.dropped, stats.closed.get("lost", 0)) == (0, 0, 0)
    assert cancelling.cancelled >= 5


def cancel_when(app: FastAPI, spec: SQLSpec, state: Callable[[], bool]) -> None:
    """Ask for /, have asyncio cancel the task of the request as soon as this is so, and wait for its connection."""

    async def main() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}

        async def send(message: Any) -> None: ...

        task = asyncio.create_task(app({**scope, "asgi": {"version": "3.0"}}, asyncio.Event().wait, send))
        while not state():
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: spec.get_pool_stats("primary").checked_out == 0)
        await asyncio.to_thread(wait_until, lambda: not extension._endings)

    asyncio.run(main())


def test_a_session_whose_endpoint_still_runs_in_a_thread_gives_nothing_back_until_it_has_ended(
    small: SQLSpec,
) -> None:
    db = FastAPISQLSpec(small)
    app = FastAPI()
    small.resize_pool("primary", pool_size=1, max_overflow=0)
    begun = threading.Event()
    seen: list[Any] = []

    @app.get("/")
    def slow(session: Annotated[Session, db.session("primary")]) -> None:
        session.execute("SELECT 1")
        begun.set()
        for _ in range(20):
            seen.append(session.execute("SELECT 1").scalar())
            seen.append(small.get_pool_stats("primary").checked_out)
            time.sleep(0.01)

    cancel_when(app, small, begun.is_set)
    assert seen == [1] * 40
    stats = small.get_pool_stats("primary")
    assert (dict(stats.closed), stats.dropped) == ({}, 0)


def noting(done: list[str]) -> Callable[[], AsyncIterator[None]]:
    """Return a dependency that notes when its endpoint has returned."""

    async def note() -> AsyncIterator[None]:
        yield
        done.append("endpoint")

    return note


def test_a_request_that_is_cancelled_on_the_way_to_its_commit_gives_its_connection_back(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    app = FastAPI()
    done: list[str] = []

    note = noting(done)

    @app.get("/")
    def write(
        session: Annotated[Session, db.session("primary")],
        last: Annotated[None, Depends(note, scope="function")],
    ) -> None:
        session.execute(INSERT, ("Alice",))

    # the dependency that was entered last ends first; then the end of the session is what waits first
    cancel_when(app, spec, lambda: bool(done))
    assert spec.get_pool_stats("primary").dropped == 0


def in_a_scope(app: FastAPI) -> Callable[[str], None]:
    """Return a function that asks for a path within a scope of anyio's, which `app.state.scope` can cancel."""

    def ask(path: str) -> None:
        async def main() -> None:
            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}

            async def send(message: Any) -> None: ...

            with CancelScope() as app.state.scope:
                await app({**scope, "asgi": {"version": "3.0"}}, asyncio.Event().wait, send)

        asyncio.run(main())

    return ask


@pytest.mark.parametrize("returns", [True, False])
def test_a_request_that_anyio_cancels_ends_its_transaction_and_keeps_its_connection(
    spec: SQLSpec, path: str, returns: bool
) -> None:
    db = FastAPISQLSpec(spec)
    app = FastAPI()

    @app.get("/tasks")
    async def in_a_task(session: Annotated[AsyncSession, db.async_session("primary")]) -> None:
        await session.execute(INSERT, ("Alice",))
        app.state.scope.cancel()
        if not returns:
            await asyncio.sleep(10)

    async def cancel() -> None:
        app.state.scope.cancel()

    async def wait(session: Annotated[Session, db.session("primary")]) -> None:
        await asyncio.to_thread(session.execute, INSERT, ("Alice",))
        app.state.scope.cancel()
        await asyncio.sleep(10)

    @app.get("/threads")
    def in_a_thread(
        session: Annotated[Session, db.session("primary")],
        waited: Annotated[None, Depends(cancel if returns else wait)],
    ) -> None:
        session.execute(INSERT, ("Alice",))

    in_a_scope(app)(path)
    # what was asked for is done once the endpoint has returned
    assert names(spec) == (["Alice"] if returns and path == "/tasks" else [])
    stats = spec.get_pool_stats("primary")
    assert (stats.checked_out, stats.dropped) == (0, 0)
    assert not stats.closed.keys() - {"closed"}


def test_a_statement_that_anyio_cancels_is_ended_and_its_connection_kept(spec: SQLSpec, database: Database) -> None:
    if database.name == "mariadb":
        pytest.skip("asyncmy cannot end a statement: its connection closes")
    db = FastAPISQLSpec(spec)
    app = FastAPI()
    spec._get_pool("primary").dispose()
    pools: list[PoolStats] = []

    @app.get("/")
    async def wait(session: Annotated[AsyncSession, db.async_session("primary")]) -> None:
        await session.execute(INSERT, ("Alice",))
        asyncio.get_running_loop().call_later(0.1, app.state.scope.cancel)
        try:
            await session.execute(LONG[database.name])
        finally:
            pools.append(spec.get_pool_stats("primary"))

    begin = time.monotonic()
    in_a_scope(app)("/")
    assert time.monotonic() - begin < 10
    assert [(stats.checked_out, dict(stats.closed)) for stats in pools] == [(1, {"disposed": 1})]
    assert names(spec) == []


def test_a_commit_that_fails_when_its_request_is_cancelled_already_is_logged(
    spec: SQLSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    db = FastAPISQLSpec(spec)
    app = FastAPI()
    done: list[str] = []

    note = noting(done)

    @app.get("/")
    def write(
        session: Annotated[Session, db.session("primary")],
        last: Annotated[None, Depends(note, scope="function")],
    ) -> None:
        session.execute(INSERT, ("Alice",))
        # no real one can be had at that moment
        monkeypatch.setattr(session, "commit", fail)

    def fail() -> None:
        raise RuntimeError("with a value")

    cancel_when(app, spec, lambda: bool(done))
    assert caplog.messages == ["the session of a cancelled request could not be ended: RuntimeError"]
    assert names(spec) == []


# -- the lifetime


def test_a_lifespan_opens_what_is_to_be_warm_and_closes_all_and_can_begin_again(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec, warm={"primary": 2})
    app = FastAPI(lifespan=db.lifespan)

    @app.get("/")
    async def look(session: Annotated[AsyncSession, db.async_session("primary")]) -> int:
        return int(await session.execute("SELECT 1").scalar())

    spec._get_pool("primary").dispose()
    for _ in range(2):
        assert spec.get_pool_stats("primary").total == 0
        with TestClient(app) as client:
            assert spec.get_pool_stats("primary").checked_in == 2
            assert client.get("/").json() == 1
        assert spec.get_pool_stats("primary").total == 0


def test_a_lifespan_that_ends_within_an_isolation_leaves_it_as_it_is(app: FastAPI, spec: SQLSpec) -> None:
    with isolated(spec):
        for _ in range(2):
            with TestClient(app) as client:
                client.post("/threads")
                assert names(spec) == ["Alice"]
                with spec.get_session("primary") as session:
                    session.execute("DELETE FROM users")
        with spec.get_session("primary") as session:
            session.execute(INSERT, ("Bob",))
    assert names(spec) == []


def test_a_lifespan_is_part_of_the_applications_own(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec, warm={"primary": 1})
    seen: list[int] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        async with db.lifespan(app):
            seen.append(spec.get_pool_stats("primary").checked_in)
            yield {"greeting": "hello"}
            async with spec.get_async_session("primary") as session:
                seen.append(await session.execute("SELECT 2").scalar())

    app = FastAPI(lifespan=lifespan)
    db.session("primary")
    with TestClient(app) as client:
        assert client.app_state["greeting"] == "hello"
    assert seen == [1, 2]


def test_starlette_alone_has_the_lifespan(spec: SQLSpec) -> None:
    app = Starlette(lifespan=lambda app: database_lifespan(spec, warm={"primary": 2}))
    spec._get_pool("primary").dispose()
    with TestClient(app):
        assert spec.get_pool_stats("primary").checked_in == 2
    assert spec.get_pool_stats("primary").total == 0


def test_a_dependency_of_an_unknown_name_is_told_when_the_application_starts(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    db.session("primay")
    with pytest.raises(ConfigError, match="did you mean 'primary'"), TestClient(FastAPI(lifespan=db.lifespan)):
        pytest.fail("it has started")


def test_a_page_that_needs_an_unknown_name_is_told_when_the_application_starts(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    with pytest.raises(ConfigError, match="needed='primary': give a list of names"):
        db.router("ready", auth=None, needed="primary")
    db.router("ready", auth=None, needed=["primay"])
    with pytest.raises(ConfigError, match="did you mean 'primary'"), TestClient(FastAPI(lifespan=db.lifespan)):
        pytest.fail("it has started")


def test_a_lifespan_waits_for_connections_in_use_as_long_as_it_may(
    spec: SQLSpec, caplog: pytest.LogCaptureFixture
) -> None:
    db = FastAPISQLSpec(spec, close_timeout=0.05)
    connection = spec.create_connection("primary")
    with TestClient(FastAPI(lifespan=db.lifespan)):
        pass
    assert "primary: 1 connections are still in use" in caplog.text
    connection.close()


def test_an_application_starts_while_its_database_is_away(caplog: pytest.LogCaptureFixture) -> None:
    with SQLSpec() as spec:
        spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=1, database="d"), name="primary")
        db = FastAPISQLSpec(spec, warm={"primary": 1})
        app = FastAPI(lifespan=db.lifespan)
        app.include_router(db.router("ready", auth=None))
        with TestClient(app) as client:
            assert client.get("/ready").status_code == 503
    assert "primary could not be warmed as asked" in caplog.text


@pytest.mark.parametrize("uses_threads", [True, False])
def test_databases_that_do_not_answer_keep_an_application_from_starting_for_a_while_only(
    postgresql_server: Any, monkeypatch: pytest.MonkeyPatch, uses_threads: bool
) -> None:
    monkeypatch.setattr(starlette_extension, "_WARMING", 0.2)
    with FaultProxy(postgresql_server.port) as proxy, SQLSpec() as spec:
        proxy.swallow(later_ones=True)
        for name in ("primary", "reports"):
            config = PostgreSQLConfig(host="127.0.0.1", port=proxy.port, database="postgres", connect_timeout=60.0)
            spec.register_config(config, name=name)
        db = FastAPISQLSpec(spec, warm={"primary": 5, "reports": 5})
        for name in spec.list_configs():
            (db.session if uses_threads else db.async_session)(name)
        begin = time.monotonic()
        with TestClient(FastAPI(lifespan=db.lifespan)):
            assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({"pool_size": 5, "max_overflow": 10}, 15),
        ({"pool_size": 5, "max_pool_size": 20, "max_overflow": 0}, 20),
        ({"pool_size": 20, "max_overflow": 20}, None),
    ],
)
def test_a_pool_with_room_for_fewer_than_there_are_threads_is_reported(
    options: dict[str, int], room: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for uses_threads in (True, False):
        caplog.clear()
        with SQLSpec() as spec:
            spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db"), **options), name="primary")
            db = FastAPISQLSpec(spec)
            (db.session if uses_threads else db.async_session)("primary")
            with TestClient(FastAPI(lifespan=db.lifespan)):
                pass
        told = f"primary: the application has 40 threads for requests, and the pool has room for {room} connections"
        assert (told in caplog.text) == (uses_threads and room is not None)


def test_an_application_with_fewer_threads_is_not_told_of_them(caplog: pytest.LogCaptureFixture) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:", pool_size=3, max_overflow=0))
        db = FastAPISQLSpec(spec)
        db.session()

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            current_default_thread_limiter().total_tokens = 3
            async with db.lifespan(app):
                yield

        with TestClient(FastAPI(lifespan=lifespan)):
            assert "threads" not in caplog.text


# -- the pages

PAGES = ("/health", "/ready", "/metrics", "/holders")


async def with_a_token(token: Annotated[str, Header()] = "") -> bool:
    if not token:
        raise HTTPException(401)
    return token == "right"


def test_no_page_is_there_unless_the_router_is_included(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    db.router(auth=None)
    client = TestClient(FastAPI(lifespan=db.lifespan))
    assert [client.get(page).status_code for page in PAGES] == [404] * 4


def test_pages_are_for_those_whom_auth_lets_in(spec: SQLSpec) -> None:
    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router(auth=with_a_token), prefix="/internal")
    client = TestClient(app)
    for token, status in (("", 401), ("wrong", 403), ("right", 200)):
        answers = [client.get(f"/internal{page}", headers={"token": token} if token else {}) for page in PAGES]
        assert [answer.status_code for answer in answers] == [status] * 4
        if status != 200:
            assert not [answer for answer in answers if "primary" in answer.text]


async def awaited_by_nobody() -> bool:
    return True


@pytest.mark.parametrize("answer", [lambda: None, lambda: {"user": 1}, lambda: Response(), awaited_by_nobody])
def test_an_auth_that_does_not_return_true_lets_nobody_in(spec: SQLSpec, answer: Callable[[], Any]) -> None:
    given: list[Any] = []

    def auth() -> Any:
        given.append(answer())
        return given[-1]

    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router(auth=auth))
    assert [TestClient(app).get(page).status_code for page in PAGES] == [403] * 4
    for one in given:
        if asyncio.iscoroutine(one):
            one.close()


def test_no_way_to_a_page_goes_around_its_own_auth(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec)
    closed, outer, sub = db.router(auth=lambda: False), APIRouter(prefix="/outer"), FastAPI()
    app = FastAPI()
    outer.include_router(closed, prefix="/inner")
    sub.include_router(closed)
    app.include_router(closed, prefix="/db")
    app.include_router(closed, prefix="/again")
    app.include_router(outer)
    app.include_router(db.router(auth=lambda: True), prefix="/open")
    app.mount("/sub", sub)
    client = TestClient(app)
    for prefix in ("/db", "/again", "/outer/inner", "/sub"):
        for path in (f"{prefix}{page}{end}" for page in PAGES for end in ("", "/", "?allowed=true")):
            assert {client.request(method, path).status_code for method in ("GET", "HEAD")} == {403}, path
            assert client.options(path).status_code == 405
    assert {client.get(f"/open{page}").status_code for page in PAGES} == {200}


def test_who_asks_for_the_head_of_a_page_gets_its_status(spec: SQLSpec) -> None:
    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router(auth=None))
    app.include_router(FastAPISQLSpec(spec).router(auth=with_a_token), prefix="/internal")
    with served(app) as port:
        assert [httpx2.head(f"http://127.0.0.1:{port}{page}").status_code for page in PAGES] == [200] * 4
        assert {httpx2.head(f"http://127.0.0.1:{port}/internal{page}").status_code for page in PAGES} == {401}


def test_an_auth_that_is_no_dependency_is_refused(spec: SQLSpec) -> None:
    for wrong in (False, "", "admin"):
        with pytest.raises(ConfigError, match="auth must be a dependency that returns True"):
            FastAPISQLSpec(spec).router(auth=wrong)


def test_an_application_in_the_place_of_the_registry_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes an SQLSpec, not FastAPI: db = FastAPISQLSpec\(spec\), and FastAPI\("):
        FastAPISQLSpec(FastAPI())


def test_metrics_without_prometheus_client_name_the_command_that_installs_it(
    spec: SQLSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    FastAPISQLSpec(spec).router("health", "ready", "holders", auth=None)
    with pytest.raises(ConfigError, match=r"pip install 'sqlspec-pool\[prometheus\]'"):
        FastAPISQLSpec(spec).router(auth=None)


def test_only_the_pages_that_are_asked_for_are_there(spec: SQLSpec) -> None:
    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router("ready", auth=None))
    client = TestClient(app)
    assert [client.get(page).status_code for page in PAGES] == [404, 200, 404, 404]
    assert client.get("/openapi.json").json()["paths"] == {}
    with pytest.raises(ConfigError, match="there is no page 'healthz': choose from health, ready"):
        FastAPISQLSpec(spec).router("healthz", auth=None)


def test_the_pages_say_how_databases_and_pools_are(spec: SQLSpec) -> None:
    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router(auth=None))
    client = TestClient(app)
    with spec.get_connection("primary"):
        health = client.get("/health")
        holders = client.get("/holders").json()["primary"]
        metrics = client.get("/metrics")
    assert health.status_code == 200
    assert health.json()["databases"]["primary"]["pool"]["checked_out"] == 1
    assert [holder["owner"] for holder in holders] == [f"thread {threading.current_thread().name}"]
    assert "test_fastapi.py:" in holders[0]["place"]
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    assert 'db_client_connection_pool_name="primary"' in metrics.text
    assert health.headers["cache-control"] == "no-store"


def test_what_is_not_needed_may_be_down_in_an_application_that_is_ready() -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
        spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=1, database="d"), name="reports")
        app = FastAPI()
        db = FastAPISQLSpec(spec)
        app.include_router(db.router("health", "ready", auth=None, needed=["primary"]))
        app.include_router(db.router("ready", auth=None), prefix="/all")
        client = TestClient(app)
        assert client.get("/ready").json() == {"ready": True}
        assert client.get("/all/ready").status_code == 503
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")


def test_pages_of_a_registry_that_is_closed_say_so() -> None:
    spec = SQLSpec()
    spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
    app = FastAPI()
    app.include_router(FastAPISQLSpec(spec).router(auth=None))
    spec.close()
    client = TestClient(app)
    assert [client.get(page).status_code for page in PAGES] == [503, 503, 200, 200]


# -- the example


def test_the_example_serves_by_its_command(tmp_path: Path) -> None:
    port = free_port()
    command = ["uvicorn", "--app-dir", str(ROOT / "docs" / "examples" / "fastapi"), "--port", str(port), "app:app"]
    environment = {name: value for name, value in os.environ.items() if name != "DB_URL"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={**environment, "OPERATOR_TOKEN": "t0k3n"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: answers(client) or process.poll() is not None, seconds=30)
            assert client.post("/notes", json={"text": "hello"}).status_code == 201
            assert client.get("/notes").json() == ["hello"]
            assert client.get("/ready").json() == {"ready": True}
            assert client.get("/internal/health").status_code == 403
            with_token = {"token": "t0k3n"}
            assert client.get("/internal/health", headers=with_token).json()["status"] == "up"
            assert 'db_client_connection_pool_name="notes"' in client.get("/internal/metrics", headers=with_token).text
    finally:
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert "Application shutdown complete" in told
    assert "Error" not in told


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/notes").status_code == 200
    except httpx2.TransportError:
        return False
