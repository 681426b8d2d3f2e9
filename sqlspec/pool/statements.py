"""The last statement of each connection, so that holders can be asked what they are at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from sqlspec.pool.slots import Slot

__all__ = ["follow_statements", "note_statement"]


def note_statement(proxy: Any, statement: str) -> None:
    """Remember the text of the statement that runs on a pooled connection. Values are not in it."""
    slot = proxy._connection_record
    if isinstance(slot, Slot):
        slot.statement = statement


def follow_statements(engine: Engine) -> None:
    """Remember the statements that run through this engine.

    Not by an event: a listener would cost every statement far more, and slow down all that SQLAlchemy does when
    nobody listens.
    """
    dialect: Any = engine.dialect

    def noting(execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_and_note(cursor: Any, statement: str, *arguments: Any) -> Any:
            context = arguments[-1]
            proxy = None if context is None else context.root_connection._dbapi_connection
            if proxy is not None:
                note_statement(proxy, statement)
            return execute(cursor, statement, *arguments)

        return execute_and_note

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, noting(getattr(dialect, name)))
