"""The translation of a config into a SQLAlchemy engine."""

from __future__ import annotations

import ipaddress
import logging
import time
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.pool import NullPool

from sqlspec.adapters import Driver, driver_for
from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig, PoolConfig
from sqlspec.exceptions import ConfigError
from sqlspec.pool import DeadlinePool, PrePing, checkout_deadline

__all__ = ["build_engine"]

_logger = logging.getLogger("sqlspec")


def build_engine(config: NoPoolSyncConfig, name: str = "default") -> Engine:
    """Translate a config into an engine. Connects to nothing.

    The engine's URL carries no password: it is added to each connect at the last moment.

    Raises:
        ConfigError: the config names no database, or its driver is not installed.
    """
    driver = driver_for(config)
    missing = driver.missing()
    if missing is not None:
        raise ConfigError(missing)
    options: dict[str, Any] = {
        "connect_args": driver.connect_args(),
        "echo": config.echo or config.instrumentation.log_statements,
        "hide_parameters": not config.instrumentation.log_parameters,
        "pool_logging_name": config.instrumentation.pool_name or name,
        **_pool_options(config),
    }
    if config.autocommit and driver.syntax != "sqlite":
        options["isolation_level"] = "AUTOCOMMIT"
        if driver.syntax == "mysql":
            options["skip_autocommit_rollback"] = True
    try:
        engine = sqlalchemy.create_engine(driver.url(), **options)
    except ModuleNotFoundError as error:
        extra = f"pip install 'sqlspec-pool[{driver.extra}]'" if driver.extra else "install it"
        raise ConfigError(f"the driver {error.name} is not installed: {extra}") from None
    _connect_through(engine, config, driver)
    _listen(engine, config, driver)
    return engine


def _pool_options(config: NoPoolSyncConfig) -> dict[str, Any]:
    if not isinstance(config, PoolConfig):
        return {"poolclass": NullPool}
    options: dict[str, Any] = {
        "poolclass": DeadlinePool,
        "pool_size": config.pool_size,
        "max_overflow": config.max_overflow,
        "pool_timeout": config.pool_timeout,
        "pool_recycle": config.pool_recycle,
        "pool_use_lifo": config.pool_use_lifo,
        "pool_reset_on_return": {"none": None, "discard": None}.get(
            config.pool_reset_on_return, config.pool_reset_on_return
        ),
    }
    if isinstance(config, SQLiteConnectionConfig) and config.in_memory:
        # the database is its one connection: it must neither multiply nor be replaced
        options |= {"pool_size": 1, "max_overflow": 0, "pool_recycle": -1}
    return options


def _connect_through(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    """Let the engine connect in our way: with the password of the moment, within the deadline, prepared.

    This replaces the last step of SQLAlchemy's connecting, so that the application's own ``do_connect``
    listeners run before it and may set a password themselves; ``creator=`` would bypass them.
    """
    connect = engine.dialect.connect
    key = "passwd" if driver.syntax == "mysql" else "password"

    def open_connection(*arguments: Any, **parameters: Any) -> Any:
        deadline = checkout_deadline.get()
        if deadline is not None:
            driver.limit_connect(parameters, max(0.001, deadline - time.monotonic()))
        connection, failure = None, None
        try:
            if config.password is None or key in parameters or "password" in parameters:
                connection = connect(*arguments, **parameters)
            else:
                connection = connect(*arguments, **parameters, **{key: config.reveal_password()})
            driver.prepare(connection)
        except BaseException as error:  # noqa: BLE001  # raised again below, whatever it is
            failure = error
        if failure is None:
            return connection
        if connection is not None:
            connection.close()
        # The frames of a driver hold the password in their locals, and tracebacks may show locals.
        failure.__context__ = failure.__cause__ = None
        raise failure.with_traceback(None)

    engine.dialect.connect = open_connection  # type: ignore[method-assign]  # one engine's dialect, see above


def _listen(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    if driver.sends_begin:
        # SQLAlchemy leaves BEGIN to sqlite3, which sends it before INSERT, UPDATE and DELETE only.
        def do_begin(connection: Any) -> None:
            driver.begin(getattr(connection, "dbapi_connection", connection), None)

        engine.dialect.do_begin = do_begin  # type: ignore[method-assign, assignment]  # one engine's dialect
    if getattr(config, "tls", "") is None:
        event.listen(engine, "first_connect", _warning_of_plain_text(driver))
    if not isinstance(config, PoolConfig):
        return
    if config.pool_reset_on_return == "discard":
        event.listen(engine, "reset", _discarding(driver))
    if config.pool_pre_ping and getattr(config, "ping_on_checkout", True) and driver.syntax != "sqlite":
        ping = PrePing(engine.dialect)
        event.listen(engine, "checkin", ping.checkin)
        event.listen(engine, "checkout", ping.checkout)
    if driver.syntax == "mysql":
        event.listen(engine, "first_connect", _compare_wait_timeout(config))


def _discarding(driver: Driver) -> Any:
    def discard(connection: Any, record: object, state: Any) -> None:
        if not state.terminate_only and connection is not None:
            driver.discard(connection)

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
        with connection.cursor() as cursor:
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
