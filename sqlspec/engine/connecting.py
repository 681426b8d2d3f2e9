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
from sqlspec.config import NoPoolSyncConfig
from sqlspec.exceptions import ConfigError
from sqlspec.pool import FairQueuePool, apart_from_forks, call_aside, seconds_left, sleep_in_task, within
from sqlspec.resilience import ErrorKind, classify

__all__ = ["connect_through", "is_full"]

# Seconds without an answer that say something about the server; of fewer, the caller was late.
_PATIENT = 1.0


def connect_through(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    """Let the engine connect in our way: with the password of the moment, within the deadline, prepared, guarded.

    This replaces the last step of SQLAlchemy's connecting, so that the application's own ``do_connect``
    listeners run before it and may set a password themselves; ``creator=`` would bypass them.
    """
    connect = engine.dialect.connect
    key = "passwd" if driver.name == "MySQLdb" else "password"
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
                _close(engine, connection, error)
            elif isinstance(error, TypeError):
                raise ConfigError(f"the driver does not take an option of the url: {error}", "url") from None
            raise
        return connection

    def open_in_time(arguments: tuple[Any, ...], parameters: dict[str, Any]) -> Any:
        seconds = seconds_left(config.connect_timeout)
        driver.limit_connect(parameters, seconds)
        try:
            return _in_time(seconds, driver, functools.partial(open_prepared, seconds, *arguments, **parameters))
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


def _in_time(seconds: float, driver: Driver, connect: Callable[[], Any]) -> Any:
    """Connect, and wait for it no longer than so many seconds: drivers count whole ones, and per host.

    Raises:
        TimeoutError: it is late.
    """
    if driver.syntax == "sqlite":
        return connect()
    if not driver.is_async:
        return call_aside(seconds, connect, lambda connection: connection.close())

    async def connect_in_time() -> Any:
        async with asyncio.timeout(seconds):
            return await greenlet_spawn(connect)

    return await_only(connect_in_time())


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


def _close(engine: Engine, connection: Any, failure: BaseException) -> None:
    """Close a connection that could not be prepared; without waiting for the server where somebody has given up."""
    if engine.dialect.has_terminate and not isinstance(failure, Exception):
        engine.dialect.do_terminate(connection)
    else:
        connection.close()
