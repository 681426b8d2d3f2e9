"""The last statement of each connection, so that holders can be asked what they are at, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

__all__ = ["count_error", "follow_statements", "slot_of"]


def slot_of(proxy: Any) -> Any:
    """Return what remembers the statement of a pooled connection, in its attribute ``statement``.

    It takes the text of a statement, never its values. Other pools' records take it as well, and do nothing with it.
    """
    return proxy._connection_record


def count_error(slot: Any) -> None:
    """Count an error of the driver, where the pool has a strategy of recycling that may want to know."""
    count = getattr(slot, "count_error", None)
    if count is not None:
        count()


def follow_statements(engine: Engine) -> None:
    """Remember the statements that run through this engine.

    Not by an event: a listener would cost every statement far more, and slow down all that SQLAlchemy does when
    nobody listens.
    """
    dialect: Any = engine.dialect

    def noting(execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_and_note(cursor: Any, statement: str, *arguments: Any, **options: Any) -> Any:
            context = options.get("context") or (arguments[-1] if arguments else None)
            connection = getattr(context, "root_connection", None)
            slot = getattr(getattr(connection, "_dbapi_connection", None), "_connection_record", None)
            if slot is not None:
                slot.statement = statement
            try:
                return execute(cursor, statement, *arguments, **options)
            except dialect.loaded_dbapi.Error:
                count_error(slot)
                raise

        return execute_and_note

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, noting(getattr(dialect, name)))
    if getattr(engine.pool, "_recycling", None) is not None:
        dialect.do_commit = _counting_errors(dialect.do_commit, dialect)


def _counting_errors(commit: Callable[[Any], Any], dialect: Any) -> Callable[[Any], Any]:
    def commit_and_count(connection: Any) -> None:
        try:
            commit(connection)
        except dialect.loaded_dbapi.Error:
            count_error(getattr(connection, "_connection_record", None))
            raise

    return commit_and_count
