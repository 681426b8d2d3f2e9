"""Building an engine from a config."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.pool import NullPool

from sqlspec.adapters import Driver, driver_for
from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig, PoolConfig
from sqlspec.engine.connecting import connect_through, is_full
from sqlspec.engine.deadlines import execute_within
from sqlspec.engine.listeners import listen
from sqlspec.engine.transactions import asks_to_read_only, marking_commits, transact_through
from sqlspec.exceptions import ConfigError
from sqlspec.pool import (
    BEYOND_QUEUEPOOL,
    PING_AFTER,
    AdaptivePool,
    AsyncFairQueuePool,
    FairQueuePool,
    follow_statements,
    report_slow_statements,
)
from sqlspec.resilience import follow_failover

__all__ = ["build_engine"]


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
        if error.name == "greenlet":
            raise ConfigError(f"greenlet is not installed, which tasks need: {extra} 'sqlalchemy[asyncio]'") from None
        raise ConfigError(f"the driver {error.name} is not installed: {extra}") from None
    connect_through(engine, config, driver)
    transact_through(engine, driver)
    execute_within(engine, driver)
    follow_failover(engine.dialect, driver, asks_to_read_only)
    follow_statements(engine, None if driver.syntax == "sqlite" else marking_commits(driver))
    listen(engine, config, driver)
    if config.instrumentation.slow_statement_seconds is not None:
        report_slow_statements(engine, config.instrumentation.slow_statement_seconds)
    return engine


def _create_async_engine(url: sqlalchemy.URL, **options: Any) -> Engine:
    # SQLAlchemy misses it here or later, and says so in another way in each release
    import greenlet  # noqa: F401  # only to see that it is there
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
        "is_full": is_full,
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
