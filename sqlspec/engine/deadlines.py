"""How long SQLAlchemy waits for an answer on an engine's connections."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from sqlspec.adapters import Driver, connection_of
from sqlspec.engine.transactions import bare

__all__ = ["execute_within"]

# What SQLAlchemy's dialects ask the server by cursors of their own.
_ASKING = (
    "do_prepare_twophase",
    "do_commit_twophase",
    "do_rollback_twophase",
    "get_isolation_level",
    "set_isolation_level",
    "reset_isolation_level",
)


def execute_within(engine: Engine, driver: Driver) -> None:
    """Let SQLAlchemy's statements wait no longer than the driver has patience; of many by one call, each of them."""
    if driver.patience is None:
        return
    dialect: Any = engine.dialect

    def limited(execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_in_time(cursor: Any, *arguments: Any, **options: Any) -> Any:
            return driver.within(connection_of(cursor), execute, cursor, *arguments, **options)

        return execute_in_time

    def limited_by_itself(ask: Callable[..., Any]) -> Callable[..., Any]:
        def ask_within(connection: Any, *arguments: Any, **options: Any) -> Any:
            # of SQLAlchemy's, of the pool, or the driver's own
            return driver.within(
                bare(getattr(connection, "connection", connection)), ask, connection, *arguments, **options
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
