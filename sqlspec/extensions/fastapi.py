"""FastAPI: sessions as dependencies, the lifetime of the pools, and pages for operators."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple

try:
    from anyio import CancelScope, CapacityLimiter, move_on_after
    from anyio.to_thread import run_sync
    from fastapi import APIRouter, HTTPException, Response, params
except ModuleNotFoundError as error:
    if error.name not in {"anyio", "fastapi"}:
        raise
    raise ModuleNotFoundError("fastapi is not installed: pip install 'sqlspec-pool[fastapi]'", name="fastapi") from None

from sqlspec.exceptions import ConfigError
from sqlspec.extensions.pages import (
    NOT_KEPT,
    Page,
    PageName,
    choose_pages,
    health_page,
    holders_page,
    metrics_of,
    names_of,
    readiness_page,
)
from sqlspec.extensions.starlette import database_lifespan
from sqlspec.health import health_check
from sqlspec.registry import SQLSpec
from sqlspec.session import AsyncSession, Session
from sqlspec.telemetry import PrometheusMetrics

__all__ = ["FastAPISQLSpec"]

_logger = logging.getLogger("sqlspec")

# Seconds in which a cancelled request must have been rolled back; then its connection is closed instead.
_GRACE = 5.0
# What its cancellations say, and by what it tells them from others itself.
_BY_ANYIO = "Cancelled via cancel scope"


class _Options(NamedTuple):
    """Be the options of a session."""

    timeout: float | None
    autocommit: bool | None
    read_only: bool
    isolation_level: str | None


_Make = Callable[[SQLSpec, str, _Options], Callable[[], AsyncIterator[Any]]]


class FastAPISQLSpec:
    """Give a FastAPI application the databases of a registry.

    ``lifespan`` is the application's, or part of its own; `session` and `async_session` are dependencies; `router` has
    the pages for operators, and none of them is there unless it is included. Nothing connects before the first
    statement of a request, unless a pool is to be warmed.

    Args:
        spec: the registry.
        warm: name to how many connections are opened before the first request comes.
        close_timeout: seconds for connections in use to come back, when the application ends.
    """

    def __init__(self, spec: SQLSpec, *, warm: Mapping[str, int] | None = None, close_timeout: float = 10.0) -> None:
        if not isinstance(spec, SQLSpec):
            raise ConfigError(
                f"FastAPISQLSpec() takes an SQLSpec, not {type(spec).__name__}: "
                "db = FastAPISQLSpec(spec), and FastAPI(lifespan=db.lifespan)"
            )
        self.spec = spec
        self._warm = warm
        self._close_timeout = close_timeout
        self._dependencies: dict[tuple[_Make, str, _Options], params.Depends] = {}
        self._needed: set[str] = set()
        self._metrics: PrometheusMetrics | None = None

    def __repr__(self) -> str:
        return f"<FastAPISQLSpec of {self.spec!r}>"

    def lifespan(self, app: object) -> AbstractAsyncContextManager[None]:
        """Return the lifespan: ``FastAPI(lifespan=db.lifespan)``, or an ``async with`` block in one's own.

        It warms and closes as `sqlspec.extensions.starlette.database_lifespan`, and reports a pool with room for fewer
        connections than there are threads where dependencies made by `session` use it.

        Raises:
            ConfigError: a dependency was made for a name that is not registered, or a page needs such a name.
        """
        for name in (*(name for _, name, _ in self._dependencies), *self._needed):
            self.spec.get_config(name)
        in_threads = {name for make, name, _ in self._dependencies if make is _in_threads}
        return database_lifespan(self.spec, warm=self._warm, in_threads=in_threads, close_timeout=self._close_timeout)

    def session(
        self,
        name: str = "default",
        *,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> params.Depends:
        """Return a dependency for endpoints that are no coroutines: ``Annotated[Session, db.session("primary")]``.

        Its first statement checks a connection out. When the endpoint has returned, and before the response is sent, it
        commits: where that fails, the response is an error. Any exception rolls back, `fastapi.HTTPException` included;
        a response that is returned commits, whatever its status. It is closed before the body of a response is
        streamed. The same arguments give the same dependency, and one session a request.
        """
        options = _Options(timeout, autocommit, read_only, isolation_level)
        return self._dependency(_in_threads, name, options)

    def async_session(
        self,
        name: str = "default",
        *,
        timeout: float | None = None,
        autocommit: bool | None = None,
        read_only: bool = False,
        isolation_level: str | None = None,
    ) -> params.Depends:
        """Return a dependency, as `session`, for ``Annotated[AsyncSession, …]`` in endpoints that are coroutines."""
        options = _Options(timeout, autocommit, read_only, isolation_level)
        return self._dependency(_in_tasks, name, options)

    def _dependency(self, make: _Make, name: str, options: _Options) -> params.Depends:
        key = make, name, options
        if key not in self._dependencies:
            # "function": its end comes before the response, since FastAPI 0.121
            self._dependencies.setdefault(key, params.Depends(make(self.spec, name, options), scope="function"))
        return self._dependencies[key]

    def router(
        self,
        *pages: PageName,
        auth: Callable[..., Any] | None,
        needed: Iterable[str] | None = None,
        timeout: float = 2.0,
        max_age: float = 5.0,
    ) -> APIRouter:
        """Return a router with pages for operators, to be included by ``app.include_router``.

        ``/health`` says how each database and its pool are, ``/ready`` whether requests may come, both with status
        503 where not; ``/metrics`` has the figures of the pools for Prometheus, ``/holders`` who holds connections.
        They name no host, no user and no statement, and stand in no schema.

        Args:
            pages: those to have; none: all.
            auth: a dependency that returns True for who may see them, and may have dependencies itself; everybody else
                gets a 403, or the `fastapi.HTTPException` that it raises. None: they are open to everybody.
            needed: the names without which this application is not ready; None: all.
            timeout: seconds after which a database that has not answered is down.
            max_age: seconds for which readiness may be told again.

        Raises:
            ConfigError: there is no such page, ``auth`` cannot be called, ``needed`` is no list, or prometheus_client
                is not installed, which metrics need.
        """
        wanted = choose_pages(pages, auth, asked="a dependency", offer="choose from")
        names = names_of(needed)
        self._needed.update(names or ())

        async def health() -> Response:
            # asked a hundred times a second, a database is still asked once
            return _response(health_page(self.spec, await health_check(self.spec, timeout=timeout, max_age=1.0)))

        async def ready() -> Response:
            return _response(readiness_page(await health_check(self.spec, names, timeout=timeout, max_age=max_age)))

        async def holders() -> Response:
            return _response(holders_page(self.spec))

        # it reads the files of all workers; and must not wait for the threads, which may all wait for connections
        async def metrics() -> Response:
            body, content_type = await run_sync(self._pool_metrics().render, limiter=CapacityLimiter(1))
            return _response(Page(200, body, content_type))

        if "metrics" in wanted:
            self._pool_metrics()
        router = APIRouter(dependencies=[] if auth is None else [params.Depends(_guard(auth))], include_in_schema=False)
        for view in (health, ready, metrics, holders):
            if view.__name__ in wanted:
                # balancers and monitors ask for the head alone
                router.add_api_route(f"/{view.__name__}", view, methods=["GET", "HEAD"])
        return router

    def _pool_metrics(self) -> PrometheusMetrics:
        if self._metrics is None:
            self._metrics = metrics_of(self.spec)
        return self._metrics


def _guard(auth: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, None]]:
    answer: Any = params.Depends(auth)

    async def guard(allowed: Any = answer) -> None:
        # Nothing but True: a coroutine that nobody has awaited would be true as well, and any user who is known.
        if allowed is not True:
            raise HTTPException(403)

    return guard


def _response(page: Page) -> Response:
    return Response(page.body, page.status, NOT_KEPT, media_type=page.content_type)


def _in_tasks(spec: SQLSpec, name: str, options: _Options) -> Callable[[], AsyncIterator[AsyncSession]]:
    async def async_session() -> AsyncIterator[AsyncSession]:
        session = spec.get_async_session(name, **options._asdict())
        try:
            yield session
        except BaseException as error:
            with move_on_after(_GRACE, shield=True):
                await session.__aexit__(type(error), error, error.__traceback__)
            raise
        # anyio cancels every await of a cancelled request, also the one that would have committed
        with CancelScope(shield=True):
            await session.__aexit__(None, None, None)

    return async_session


def _in_threads(spec: SQLSpec, name: str, options: _Options) -> Callable[[], AsyncIterator[Session]]:
    # a coroutine, since it has nothing to wait for at its beginning, and must wait for the endpoint at its end
    async def session() -> AsyncIterator[Session]:
        session = spec.get_session(name, **options._asdict())
        call = _begin_call()
        try:
            yield session
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) or await _has_ended(call, error):
                await _aside(session.__exit__, type(error), error, error.__traceback__)
            raise
        await _aside(session.__exit__, None, None, None)

    return session


async def _aside(work: Callable[..., Any], *arguments: Any) -> None:
    """Do this in a thread beside those of requests, which may all wait for the connection that it gives back."""
    # a task of its own: who is cancelled on the way to a thread never gets there
    task = asyncio.ensure_future(run_sync(work, *arguments, limiter=CapacityLimiter(1)))
    _endings.add(task)
    task.add_done_callback(_endings.discard)
    try:
        with CancelScope(shield=True):
            await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell_of_failure)
        raise


def _tell_of_failure(task: asyncio.Future[None]) -> None:
    """Log why a session could not be ended, now that nobody waits for it; without the words, which may have values."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _logger.error("the session of a cancelled request could not be ended: %s", type(error).__name__)


# the event loop knows its tasks weakly
_endings: set[asyncio.Future[None]] = set()


class _Call:
    """Be what the contexts of a request, and of the threads that work for it, refer to."""


_call: ContextVar[_Call | None] = ContextVar("sqlspec_call", default=None)


def _begin_call() -> weakref.ref[_Call]:
    call = _call.get() or _Call()
    _call.set(call)
    return weakref.ref(call)


async def _has_ended(call: weakref.ref[_Call], error: BaseException) -> bool:
    """Wait until no thread works for a cancelled request any more; tell whether that came to be.

    anyio waits for its threads. But where asyncio has cancelled the task, as a timeout of its does, the endpoint runs
    on in its thread, with the session. Its connection, given back now, would have two borrowers. The thread's context
    is a copy of the task's, and nothing else tells when it has ended. Where that takes long, or something else has such
    a copy, the pool gets the connection from the garbage collector.
    """
    if str(error).startswith(_BY_ANYIO):
        return True
    _call.set(None)
    # anyio has that context in a frame that the error has come through
    traceback.clear_frames(error.__traceback__)
    working = call()
    if working is None:
        return True
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        # the loop may have ended before the thread
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    weakref.finalize(working, tell).atexit = False
    del working
    with move_on_after(_GRACE, shield=True):
        await ended.wait()
    return ended.is_set()
