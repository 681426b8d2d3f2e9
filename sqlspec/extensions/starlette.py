"""The lifetime of a registry in an ASGI application: Starlette, FastAPI, and what else has a lifespan."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial

try:
    from anyio import CancelScope, CapacityLimiter
    from anyio.to_thread import current_default_thread_limiter, run_sync
except ModuleNotFoundError as error:
    if error.name != "anyio":
        raise
    raise ModuleNotFoundError(
        "anyio is not installed, as it is with Starlette: pip install starlette", name="anyio"
    ) from None

from sqlspec.config import PoolConfig
from sqlspec.exceptions import PoolClosed
from sqlspec.operations import WarmUp, awarm_pool, warm_pool
from sqlspec.registry import SQLSpec
from sqlspec.testing.isolation import is_isolated

__all__ = ["database_lifespan"]

_logger = logging.getLogger("sqlspec")

# Seconds that databases which do not answer may keep an application from starting, all together.
_WARMING = 10.0
# Of these, what each has at least.
_LEAST = 0.1


@asynccontextmanager
async def database_lifespan(
    spec: SQLSpec,
    *,
    warm: Mapping[str, int] | None = None,
    in_threads: Collection[str] = (),
    close_timeout: float = 10.0,
) -> AsyncIterator[None]:
    """Be the lifespan of an application, or a part of it: warm pools at the beginning, close all at the end.

    Databases that cannot be reached do not keep an application from starting, nor do those that do not answer for more
    than ten seconds, all together: the log tells of them, and so does its readiness. At the end idle connections close
    at once, and those in use as they come back. The registry keeps its configs, so that the same application can be
    started again, as tests do.

    Args:
        spec: the registry.
        warm: name to how many connections are opened before the first request comes.
        in_threads: the names that endpoints in threads use, those that are no coroutines. Of these, the pool of the
            threads is warmed, of others that of the event loop; and where a pool has room for fewer than there are
            threads, the log says so.
        close_timeout: seconds for all pools together, for connections in use to come back.

    Raises:
        ConfigError: there is no such name, it has no driver of that kind, or no pool to warm.
    """
    for name in in_threads:
        _compare_with_threads(spec, name)
    try:
        deadline = time.monotonic() + _WARMING
        for name, connections in (warm or {}).items():
            left = max(_LEAST, deadline - time.monotonic())
            await _warm(spec, name, connections, left, is_async=name not in in_threads)
        yield
    finally:
        # a server that is in a hurry cancels this; the deadline is what ends it
        with CancelScope(shield=True):
            await _close(spec, close_timeout)


def _compare_with_threads(spec: SQLSpec, name: str) -> None:
    config = spec.get_config(name)
    threads = current_default_thread_limiter().total_tokens
    if not isinstance(config, PoolConfig):
        return
    room = max(config.pool_size, config.max_pool_size or 0) + config.max_overflow
    if room < threads:
        _logger.warning(
            "%s: the application has %g threads for requests, and the pool has room for %d connections: the other "
            "threads wait, and serve nobody meanwhile. Let pool_size and max_overflow be %g together, or have fewer "
            "threads, set before this lifespan begins: anyio.to_thread.current_default_thread_limiter().total_tokens "
            "= %d",
            *(name, threads, room, threads, room),
        )


async def _warm(spec: SQLSpec, name: str, connections: int, timeout: float, *, is_async: bool) -> None:
    if is_async:
        done: WarmUp = await awarm_pool(spec, name, connections, timeout=timeout)
    else:
        done = await run_sync(partial(warm_pool, spec, name, connections, timeout=timeout))
    if done.failed or done.beyond_capacity:
        _logger.warning("%s could not be warmed as asked: %r", name, done)


async def _close(spec: SQLSpec, timeout: float) -> None:
    deadline = time.monotonic() + timeout

    def left() -> float:
        return max(0.0, deadline - time.monotonic())

    for name in reversed(spec.list_configs()):
        try:
            manager = spec._manager(name)
            if is_isolated(manager):
                # by a test that goes on, with the connection that it has for all
                continue
            # whoever asks from now on is served by a pool of its own
            spec.register_config(manager.config, name, replace=True)
        except PoolClosed:
            # by the application itself
            return
        in_use = await manager.aclose(left())
        if in_use:
            # the pool of the threads, for which only threads can wait
            in_use = await run_sync(partial(manager.close, left()), limiter=CapacityLimiter(1))
        if in_use:
            _logger.warning("%s: %d connections are still in use; they close when they come back", name, in_use)
