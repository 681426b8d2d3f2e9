"""How an engine connects: with the password of the moment, within the deadline, guarded by the breaker."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver
from sqlspec.adapters.shield import shield
from sqlspec.config import NoPoolSyncConfig
from sqlspec.exceptions import ConfigError
from sqlspec.pool import FairQueuePool, apart_from_forks, call_aside, seconds_left, sleep_in_task, within
from sqlspec.resilience import ErrorKind, classify

__all__ = ["connect_through", "is_full"]

# Seconds without an answer that say something about the server; of fewer, the caller was late.
_PATIENT = 1.0
# Seconds after which a task that goes on is cancelled once more.
_AGAIN = 0.05


def connect_through(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    """Let the engine connect in our way: with the password of the moment, within the deadline, prepared, guarded.

    This replaces the last step of SQLAlchemy's connecting, so that the application's own ``do_connect``
    listeners run before it and may set a password themselves; ``creator=`` would bypass them.
    """
    connect = engine.dialect.connect
    key = "passwd" if driver.name == "MySQLdb" else "password"
    abandon = functools.partial(_abandon, engine)
    open_driver = functools.partial(apart_from_forks, sleep_in_task if driver.is_async else time.sleep, connect)

    def open_prepared(seconds: float, *arguments: Any, **parameters: Any) -> Any:
        connection = None
        try:
            if config.password is None or key in parameters or "password" in parameters:
                connection = open_driver(*arguments, **parameters)
            else:
                connection = open_driver(
                    *arguments, **parameters, **{key: driver.password(config.reveal_password() or "")}
                )
            within(connection, seconds, driver.prepare, connection)
        except BaseException as error:
            if connection is not None:
                connection.close() if isinstance(error, Exception) else abandon(connection)
            elif isinstance(error, TypeError):
                raise ConfigError(f"the driver does not take an option of the url: {error}", "url") from None
            raise
        return connection

    def open_in_time(arguments: tuple[Any, ...], parameters: dict[str, Any]) -> Any:
        seconds = seconds_left(config.connect_timeout)
        driver.limit_connect(parameters, seconds)
        try:
            return _in_time(
                seconds, driver, functools.partial(open_prepared, seconds, *arguments, **parameters), abandon
            )
        except TimeoutError:
            told = f"connecting took longer than {seconds:.3g} s"
            failure: Any = driver.timeout_error(engine.dialect.loaded_dbapi, told)
            # for `sqlspec.resilience.is_unavailable`
            failure.says_nothing = seconds < min(_PATIENT, config.connect_timeout)
        except BaseException as error:  # noqa: BLE001  # raised again below, whatever it is
            failure = driver.connect_error(engine.dialect.loaded_dbapi, error)
            if is_full(error) and isinstance(engine.pool, FairQueuePool) and engine.pool.is_served():
                failure.says_nothing = True
        # The frames of a driver hold the password in their locals, and tracebacks may show locals.
        parameters.clear()
        _forget_frames(failure)
        try:
            raise failure.with_traceback(None)
        finally:
            # the error holds this frame; it must not hold the error
            del failure

    def open_connection(*arguments: Any, **parameters: Any) -> Any:
        connect = functools.partial(open_in_time, arguments, parameters)
        try:
            return connect() if config.breaker is None else config.breaker.call(connect)
        finally:
            # also where it is refused: this frame is in the traceback then
            parameters.clear()

    engine.dialect.connect = open_connection  # type: ignore[method-assign]  # one engine's dialect, see above


def is_full(error: BaseException) -> bool:
    """Tell whether the server has no connection left."""
    return classify(error) is ErrorKind.CAPACITY


def _in_time(seconds: float, driver: Driver, connect: Callable[[], Any], abandon: Callable[[Any], None]) -> Any:
    """Connect, and wait for it no longer than so many seconds: drivers count whole ones, and per host.

    Raises:
        TimeoutError: it is late.
    """
    if driver.syntax == "sqlite":
        return connect()
    if driver.is_async:
        return await_only(_task_in_time(seconds, connect, abandon))
    return call_aside(seconds, connect, abandon)


async def _task_in_time(seconds: float, connect: Callable[[], Any], abandon: Callable[[Any], None]) -> Any:
    """Connect in a task of its own, which is cancelled until it ends, where it is late or this one is cancelled.

    Once is not enough: asyncio.wait_for() of Python 3.11, by which asyncmy connects, drops a cancellation that comes at
    the moment of success; nothing would end the wait for the server's greeting.
    """
    # never eager, whatever the loop's factory makes
    connecting = asyncio.Task(greenlet_spawn(connect), loop=asyncio.get_running_loop())
    cancellation = await _wait_for(connecting, seconds)
    is_late = not connecting.done()
    with shield():
        while not connecting.done():
            connecting.cancel()
            again = await _wait_for(connecting, _AGAIN)
            # the first one: whoever came later lets it through, and anyio must know its own
            cancellation = cancellation or again
        if cancellation is not None:
            if not connecting.cancelled() and connecting.exception() is None:
                try:
                    # drivers say farewell first, up to 30 s over TLS; they close at once where that is cancelled
                    async with asyncio.timeout(_AGAIN):
                        await greenlet_spawn(abandon, connecting.result())
                except (Exception, asyncio.CancelledError) as error:
                    raise cancellation from error
            raise cancellation
    if is_late and connecting.cancelled():
        raise TimeoutError
    return connecting.result()


async def _wait_for(task: asyncio.Task[Any], seconds: float) -> asyncio.CancelledError | None:
    """Wait until a task ends, for so many seconds at most; return the cancellation of the one that waits."""
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError as error:
        return error
    return None


def _forget_frames(failure: BaseException) -> None:
    """Drop the tracebacks of an error and of what it was made from."""
    known: set[int] = set()
    todo: list[object] = [failure]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseException) and id(error) not in known:
            known.add(id(error))
            todo += [error.__context__, error.__cause__, *vars(error).values()]
            error.with_traceback(None)
    failure.__context__ = failure.__cause__ = None


def _abandon(engine: Engine, connection: Any) -> None:
    """Close a connection that nobody waits for any more; without waiting for the server, where the driver can."""
    if engine.dialect.has_terminate:
        engine.dialect.do_terminate(connection)
    else:
        connection.close()
