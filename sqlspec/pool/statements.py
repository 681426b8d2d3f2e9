"""What is known of statements: the last one of each connection, what is counted of them, and which were slow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool.base import _AdhocProxiedConnection

from sqlspec.pool.places import Place, find_place, quote_of, shape

__all__ = ["count_error", "follow_statements", "report_slow_statements", "slot_of"]

_logger = logging.getLogger("sqlspec.statements")
# In the info of a connection: when its statement began.
_BEGAN = "sqlspec_statement_began"


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


def follow_statements(engine: Engine, tell: Callable[[BaseException, str, Any], object] | None = None) -> None:
    """Remember the statements that run through this engine; of one that fails, tell the error, the text and the cursor.

    Not by an event: a listener would cost every statement far more, and slow down all that SQLAlchemy does when
    nobody listens.
    """
    dialect: Any = engine.dialect

    def noting(execute: Callable[..., Any]) -> Callable[..., Any]:
        def execute_and_note(cursor: Any, statement: str, *arguments: Any, **options: Any) -> Any:
            context = options.get("context") or (arguments[-1] if arguments else None)
            connection = getattr(context, "root_connection", None)
            proxy = getattr(connection, "_dbapi_connection", None)
            slot = getattr(proxy, "_connection_record", None)
            if slot is not None:
                slot.statement = statement
            try:
                return execute(cursor, statement, *arguments, **options)
            except BaseException as error:
                if isinstance(error, dialect.loaded_dbapi.Error):
                    count_error(slot)
                # what SQLAlchemy asks a new connection is no statement of anybody's
                if tell is not None and not isinstance(proxy, _AdhocProxiedConnection):
                    tell(error, statement, cursor)
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


def report_slow_statements(engine: Engine, limit: float) -> None:
    """Log the statements that take longer than so many seconds, without their values, whether they fail or not.

    Fetching rows is not counted, unless the driver fetches them all with the statement.
    """
    quote = quote_of(engine.dialect)
    further = getattr(engine.pool, "_further", None)

    def begin(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        connection.info[_BEGAN] = time.monotonic()

    def end(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        report(connection, statement, "took")

    def fail(context: Any) -> None:
        if context.connection is not None and context.statement is not None and not context.connection.invalidated:
            report(context.connection, context.statement, "failed after")

    def report(connection: Any, statement: str, verb: str) -> None:
        seconds = time.monotonic() - connection.info.pop(_BEGAN, time.monotonic())
        if seconds > limit:
            name, place = engine.pool._orig_logging_name, Place(*find_place(further))
            _logger.warning("%s: a statement %s %.3g s at %s: %s", name, verb, seconds, place, shape(statement, quote))

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)
