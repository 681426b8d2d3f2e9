"""The translation of a config into a SQLAlchemy engine."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import time
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from typing import Any, cast

import sqlalchemy
from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.pool import NullPool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver, TransactionOptions, connection_of, driver_for
from sqlspec.adapters.commits import commits
from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig, PoolConfig
from sqlspec.exceptions import ConfigError
from sqlspec.pool import (
    BEYOND_QUEUEPOOL,
    PING_AFTER,
    AdaptivePool,
    AsyncFairQueuePool,
    FairQueuePool,
    apart_from_forks,
    call_aside,
    follow_statements,
    report_slow_statements,
    seconds_left,
    within,
)
from sqlspec.resilience import ErrorKind, classify, follow_failover

__all__ = ["SESSION_STATE", "adopt_transaction", "borrow", "build_engine", "discard", "wanted_autocommit"]

_logger = logging.getLogger("sqlspec")

# The autocommit that who checks a connection out of this engine is about to set; where there is none, the config's.
wanted_autocommit: ContextVar[tuple[Engine, bool] | None] = ContextVar("wanted_autocommit", default=None)
# In the info of a connection: what is known of the server's session, until that is reset.
SESSION_STATE = "sqlspec_session_state"
# In the record_info of a connection: the options of its borrower's transactions, and, for a moment, that
# the transaction that SQLAlchemy is told to begin is there already.
_OPTIONS = "sqlspec_options"
_BEGUN = "sqlspec_begun"
# What SQLAlchemy's dialects ask the server by cursors of their own.
_ASKING = (
    "do_prepare_twophase",
    "do_commit_twophase",
    "do_rollback_twophase",
    "get_isolation_level",
    "set_isolation_level",
    "reset_isolation_level",
)
# Seconds, where only the checkout under way has a limit.
_LONGEST = 3600.0
# Seconds without an answer that say something about the server; of fewer, the caller was late.
_PATIENT = 1.0


def build_engine(config: NoPoolSyncConfig, name: str = "default", *, is_async: bool = False) -> Engine:
    """Translate a config into an engine, of an `AsyncEngine` the synchronous one inside. Connects to nothing.

    The engine's URL carries no password: it is added to each connect at the last moment.

    Raises:
        ConfigError: the config names no database, or its driver is not installed.
    """
    driver = driver_for(config, is_async=is_async)
    missing = driver.missing()
    if missing is not None:
        raise ConfigError(missing)
    options: dict[str, Any] = {
        "echo": config.echo or config.instrumentation.log_statements,
        "hide_parameters": not config.instrumentation.log_parameters,
        "pool_logging_name": config.instrumentation.pool_name or name,
        **_pool_options(config, driver),
    }
    if config.autocommit and driver.syntax != "sqlite":
        options["isolation_level"] = "AUTOCOMMIT"
        if driver.syntax == "mysql":
            options["skip_autocommit_rollback"] = True
    try:
        options["connect_args"] = driver.connect_args()
        engine = (_create_async_engine if is_async else sqlalchemy.create_engine)(driver.url(), **options)
    except ModuleNotFoundError as error:
        extra = f"pip install 'sqlspec-pool[{driver.extra}]'" if driver.extra else "install it"
        raise ConfigError(f"the driver {error.name} is not installed: {extra}") from None
    _connect_through(engine, config, driver)
    _transact_through(engine, driver)
    _execute_within(engine, driver)
    follow_failover(engine.dialect, driver, _asks_to_read_only)
    follow_statements(engine, None if driver.syntax == "sqlite" else _marking_commits(driver))
    _listen(engine, config, driver)
    if config.instrumentation.slow_statement_seconds is not None:
        report_slow_statements(engine, config.instrumentation.slow_statement_seconds)
    return engine


def _create_async_engine(url: sqlalchemy.URL, **options: Any) -> Engine:
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url, **options).sync_engine


def _pool_options(config: NoPoolSyncConfig, driver: Driver) -> dict[str, Any]:
    if not isinstance(config, PoolConfig):
        return {"poolclass": NullPool}
    options: dict[str, Any] = {
        "poolclass": AsyncFairQueuePool if driver.is_async else FairQueuePool,
        "pool_size": config.pool_size,
        "max_overflow": config.max_overflow,
        "pool_timeout": config.pool_timeout,
        "pool_recycle": config.pool_recycle,
        "pool_use_lifo": config.pool_use_lifo,
        "pool_reset_on_return": {"none": None, "discard": None}.get(
            config.pool_reset_on_return, config.pool_reset_on_return
        ),
        "max_waiters": config.pool_max_waiters,
        "is_full": _is_full,
        "nested_checkout": config.pool_nested_checkout,
        "leak_seconds": config.pool_leak_seconds,
        "slow_seconds": config.instrumentation.slow_checkout_seconds,
        "recycling": config.pool_recycling,
        "min_pool_size": config.min_pool_size,
        "idle_timeout": config.pool_idle_timeout,
        **BEYOND_QUEUEPOOL,
    }
    if config.pool_pre_ping and getattr(config, "ping_on_checkout", True) and driver.syntax != "sqlite":
        options["ping_after"] = PING_AFTER
    if driver.syntax != "sqlite":
        options["keepalive"] = config.pool_keepalive
    if config.max_pool_size is not None and config.max_pool_size > (config.min_pool_size or config.pool_size):
        options["adaptive"] = AdaptivePool(config)
    if isinstance(config, SQLiteConnectionConfig) and config.in_memory:
        # the database is its one connection: it must neither multiply nor be replaced
        options |= {"pool_size": 1, "max_overflow": 0, "pool_recycle": -1, "recycling": None, "idle_timeout": None}
    return options


def _connect_through(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    """Let the engine connect in our way: with the password of the moment, within the deadline, prepared, guarded.

    This replaces the last step of SQLAlchemy's connecting, so that the application's own ``do_connect``
    listeners run before it and may set a password themselves; ``creator=`` would bypass them.
    """
    connect = engine.dialect.connect
    key = "passwd" if driver.name == "MySQLdb" else "password"
    open_driver = functools.partial(apart_from_forks, _sleep_in_task if driver.is_async else time.sleep, connect)

    def open_prepared(seconds: float, *arguments: Any, **parameters: Any) -> Any:
        connection = None
        try:
            if config.password is None or key in parameters or "password" in parameters:
                connection = open_driver(*arguments, **parameters)
            else:
                connection = open_driver(*arguments, **parameters, **{key: config.reveal_password()})
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
            failure = error
            if _is_full(error) and isinstance(engine.pool, FairQueuePool) and engine.pool.total():
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


def _is_full(error: BaseException) -> bool:
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


def _sleep_in_task(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))


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


def borrow(
    proxy: PoolProxiedConnection, driver: Driver, autocommit: bool, options: TransactionOptions | None = None
) -> None:
    """Change a connection for its borrower; whatever way it comes back, it is changed back for the next one.

    With the autocommit that it has anyway nothing is sent, and what the borrower does to that is changed back.

    Raises:
        Exception: the driver's error; the connection is closed then.
    """
    record: Any = cast("Any", proxy)._connection_record

    def give_back(connection: Any) -> None:
        record.record_info.pop(_OPTIONS, None)
        try:
            if options is not None:
                driver.restore(connection, options)
            if not driver.autocommit_stays:
                driver.set_autocommit(connection, driver.autocommit)
        except Exception as error:  # noqa: BLE001  # a connection that cannot be changed back is not used again
            record.invalidate(error)

    record.finalize_callback.append(give_back)
    if options is not None:
        # with the connection that they are for: its place in the pool may get another one
        record.record_info[_OPTIONS] = (proxy.dbapi_connection, options)
    try:
        driver.set_autocommit(proxy.dbapi_connection, autocommit)
    except BaseException:
        discard(proxy)
        raise


def discard(proxy: PoolProxiedConnection) -> None:
    """Close a connection whose state is unknown, and check its place in."""
    if proxy.is_valid:
        proxy.invalidate()
        proxy.close()


def adopt_transaction(connection: Connection) -> None:
    """Let SQLAlchemy's connection know of a transaction without sending anything."""
    info: Any = connection.connection.record_info
    try:
        info[_BEGUN] = True
        connection.begin()
    finally:
        info.pop(_BEGUN, None)


def _bare(connection: Any) -> Any:
    return getattr(connection, "dbapi_connection", connection)


def _asks_to_read_only(connection: Any) -> bool:
    borrowed, options = (getattr(connection, "record_info", None) or {}).get(_OPTIONS, (None, None))
    return options is not None and options.read_only and borrowed is _bare(connection)


def _transact_through(engine: Engine, driver: Driver) -> None:
    """Let SQLAlchemy begin and end transactions in our way: with the options of the borrower.

    sqlite3 would send BEGIN before INSERT, UPDATE and DELETE only, and SQLAlchemy leaves it to that.
    """

    def do_begin(connection: Any) -> None:
        info = connection.record_info or {}
        borrowed, options = info.get(_OPTIONS, (None, None))
        if _BEGUN not in info:
            driver.begin(connection.dbapi_connection, options if borrowed is connection.dbapi_connection else None)

    dialect: Any = engine.dialect
    dialect.do_begin = do_begin
    dialect.do_terminate = driver.terminate(dialect)
    dialect.do_commit = lambda connection: driver.end(_bare(connection), "commit")
    if type(driver)._end is not Driver._end or driver.patience is not None:
        dialect.do_rollback = lambda connection: driver.end(_bare(connection), "rollback")
    if driver.syntax == "sqlite":
        # pysqlite's own would leave another isolation_level on the connection than the config's
        set_level, reset_level = dialect.set_isolation_level, dialect.reset_isolation_level

        def set_isolation_level(connection: Any, level: Any) -> None:
            set_level(connection, level)
            driver.set_autocommit(connection, level == "AUTOCOMMIT")

        def reset_isolation_level(connection: Any) -> None:
            reset_level(connection)
            driver.set_autocommit(connection, driver.autocommit)

        dialect.set_isolation_level, dialect.reset_isolation_level = set_isolation_level, reset_isolation_level


def _marking_commits(driver: Driver) -> Callable[[Any, str, Any], None]:
    """Return what marks the error of a statement that commits, as `Driver.end` does: `is_ambiguous` tells the rest."""

    def mark(error: Any, statement: str, cursor: Any) -> None:
        error.in_commit = commits(statement, driver.syntax) or driver.is_autocommit(connection_of(cursor))

    return mark


def _execute_within(engine: Engine, driver: Driver) -> None:
    """Let SQLAlchemy's statements wait no longer than the driver has patience; of many by one call, each of them."""
    if driver.patience is None:
        return
    dialect: Any = engine.dialect

    def limited(execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_within(cursor: Any, *arguments: Any, **options: Any) -> Any:
            return driver.within(connection_of(cursor), execute, cursor, *arguments, **options)

        return execute_within

    def limited_by_itself(ask: Callable[..., Any]) -> Callable[..., Any]:
        def ask_within(connection: Any, *arguments: Any, **options: Any) -> Any:
            # of SQLAlchemy's, of the pool, or the driver's own
            return driver.within(
                _bare(getattr(connection, "connection", connection)), ask, connection, *arguments, **options
            )

        return ask_within

    for name in ("do_execute", "do_execute_no_params"):
        setattr(dialect, name, limited(getattr(dialect, name)))
    for name in _ASKING:
        setattr(dialect, name, limited_by_itself(getattr(dialect, name)))
    execute_many = dialect.do_executemany

    def execute_many_within(cursor: Any, *arguments: Any, **options: Any) -> Any:
        return driver.within_many(cursor, functools.partial(execute_many, cursor), *arguments, **options)

    dialect.do_executemany = execute_many_within


def _listen(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    if getattr(config, "tls", "") is None:
        event.listen(engine, "first_connect", _warning_of_plain_text(driver))
    if not isinstance(config, PoolConfig):
        return
    if config.pool_reset_on_return == "discard":
        event.listen(engine, "reset", _discarding(driver))
    if driver.autocommit_stays:
        event.listen(engine, "checkout", _switching_autocommit(engine, driver))
    if driver.syntax == "mysql":
        event.listen(engine, "first_connect", _compare_wait_timeout(config))


def _switching_autocommit(engine: Engine, driver: Driver) -> Any:
    def switch(connection: Any, record: object, proxy: object) -> None:
        wanted = wanted_autocommit.get()
        try:
            # of another engine: this one is asked for a password, say, while that one connects
            is_meant = wanted is not None and wanted[0] is engine
            enabled = wanted[1] if wanted is not None and is_meant else driver.autocommit
            within(connection, seconds_left(_LONGEST), driver.set_autocommit, connection, enabled)
        except engine.dialect.loaded_dbapi.Error as error:
            # as after a ping that failed: the pool connects anew within the same checkout
            raise exc.DisconnectionError("the connection does not take a switch of autocommit") from error

    return switch


def _discarding(driver: Driver) -> Any:
    def discard(connection: Any, record: Any, state: Any) -> None:
        record.info.pop(SESSION_STATE, None)
        if state.terminate_only or connection is None:
            return
        if not driver.within(connection, driver.discard, connection):
            record.invalidate()

    return discard


def _warning_of_plain_text(driver: Driver) -> Any:
    def warn(connection: Any, record: object) -> None:
        host = driver.host(connection)
        if host is not None and not _is_loopback(host) and driver.uses_tls(connection) is False:
            _logger.warning(
                "the connection to %s is in plain text: choose tls='verify-full', or tls='disable' where that is meant",
                host,
            )

    return warn


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _compare_wait_timeout(config: PoolConfig) -> Any:
    def compare(connection: Any, record: object) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT @@wait_timeout")
            (seconds,) = cursor.fetchone()
        if not 0 <= config.pool_recycle < seconds:
            _logger.warning(
                "pool_recycle=%s is not below the server's wait_timeout of %s s: idle connections will be "
                "ended by the server",
                config.pool_recycle,
                seconds,
            )

    return compare
