"""SQLAlchemy results over a driver's cursor, without the cost of a statement context."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from sqlalchemy import Engine, exc
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.cursor import CursorResultMetaData, null_dml_result
from sqlalchemy.engine.result import IteratorResult

from sqlspec.adapters import Driver
from sqlspec.session.placeholders import Statement

if TYPE_CHECKING:
    _Rows = IteratorResult[*tuple[Any, ...]]
else:
    _Rows = IteratorResult

__all__ = ["ClosedCursor", "DriverResult", "NoCursor", "StreamCursor", "columns_of"]

_NAME = operator.itemgetter(0)
# the metadata of a statement without rows: every use of them raises SQLAlchemy's ResourceClosedError
_NO_ROWS: Any = null_dml_result()._metadata


class Columns:
    """Hold what results with the same columns share: SQLAlchemy's metadata, and its maker of rows."""

    __slots__ = ("key", "metadata", "names", "row_getter")

    def __init__(self, key: Any, names: list[str], dialect: Dialect, description: Any) -> None:
        self.key = key
        self.names = names
        # As SQLAlchemy makes it for a statement in a string; of the context it asks no more than this.
        context = dialect.execution_ctx_cls.__new__(dialect.execution_ctx_cls)
        context.dialect, context.execution_options = dialect, cast("Any", {})
        self.metadata = CursorResultMetaData(cast("Any", SimpleNamespace(context=context)), description)
        self.row_getter: Any = IteratorResult(self.metadata, iter(()))._row_getter


def columns_of(statement: Statement, cursor: Any, driver: Driver, dialect: Dialect) -> Columns | None:
    """Return the columns of what the cursor holds, cached on the statement; None where it has no rows."""
    key = driver.describe(cursor)
    if not key:
        return None
    columns: Columns | None = statement.columns
    # the quick comparison first; some drivers put lengths of values into their descriptions
    if columns is None or columns.key != key:
        description = cursor.description
        names = list(map(_NAME, description))
        if columns is None or columns.names != names:
            columns = statement.columns = Columns(key, names, dialect, description)
    return columns


class NoCursor:
    """Stand for the cursor of a statement that did not run, since it had no rows of parameters."""

    description = None
    rowcount = 0
    lastrowid = None

    def close(self) -> None:
        """Do nothing."""


class ClosedCursor:
    """Stand for the cursor of a stream that its transaction has ended, to who still iterates over it."""

    def close(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> NoReturn:
        raise exc.ResourceClosedError(
            "This stream was closed with its transaction: read its rows before the end of it."
        )


class StreamCursor:
    """Be the cursor of a stream, whose rows are waited for no longer than the driver has patience.

    What comes behind the rows is read with the last of them: where the procedure fails there, who iterates is told.
    """

    def __init__(self, cursor: Any, driver: Driver, connection: Any) -> None:
        self._cursor = cursor
        self._driver = driver
        self._within = functools.partial(driver.within, connection)

    def fetchone(self) -> Any:
        row = self._within(self._cursor.fetchone)
        if row is None:
            self._skip_further()
        return row

    def fetchmany(self, *arguments: Any) -> Any:
        rows = self._within(self._cursor.fetchmany, *arguments)
        if not rows:
            self._skip_further()
        return rows

    def fetchall(self) -> Any:
        rows = self._within(self._cursor.fetchall)
        self._skip_further()
        return rows

    def _skip_further(self) -> None:
        self._within(self._driver.skip_further, self._cursor)

    def close(self) -> None:
        self._within(self._cursor.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Owner(Protocol):
    """Be the session of a result, which handles its errors."""

    _closed: bool
    _engine: Engine

    def _fail(self, error: BaseException, cursor: Any) -> NoReturn: ...


class DriverResult(_Rows):
    """Be a SQLAlchemy Result whose rows come straight from a driver's cursor.

    Attributes:
        lastrowid: the driver's last generated key.
        returns_rows: whether there are rows to fetch.
    """

    # what IteratorResult.__init__ sets, less the iterator: rows are fetched from the cursor
    raw = None
    context = None
    _source_supports_scalars = False
    # the row getter is given, and goes where SQLAlchemy's own would go: when the columns change
    _memoized_keys = frozenset({"_row_getter"})
    _rowcount = -1

    def __init__(self, columns: Columns | None, cursor: Any, owner: Owner) -> None:
        self._cursor = cursor
        self._owner = owner
        self.lastrowid: Any = getattr(cursor, "lastrowid", None)
        if columns is None:
            self.returns_rows = False
            self._metadata = _NO_ROWS
            self._soft_close()
        else:
            self.returns_rows = True
            self._metadata = columns.metadata
            self._row_getter = columns.row_getter  # type: ignore[misc]  # memoized, and this is its value

    def __repr__(self) -> str:
        columns = ", ".join(self.keys()) if self.returns_rows else "no rows"
        return f"<DriverResult: {columns}{', closed' if self._soft_closed else ''}>"

    @property
    def rowcount(self) -> int:
        """Return how many rows the statement changed or returned, as the driver says it; -1 unknown."""
        return self._rowcount if self._cursor is None else int(self._cursor.rowcount)

    def _soft_close(self, hard: bool = False, **kw: Any) -> None:
        if hard:
            self._hard_closed = True
        cursor = self._cursor
        if cursor is not None:
            self._rowcount = cursor.rowcount
            self._cursor = None
            self._soft_closed = True
            try:
                cursor.close()
            except Exception:  # as SQLAlchemy: the rows are read, or the connection is lost anyway
                self._owner._engine.pool.logger.error("Error closing cursor", exc_info=True)

    def _without_cursor(self) -> list[Any]:
        """Tell who asks for rows why there are none; return none where all have been read."""
        if not self.returns_rows:
            _NO_ROWS._we_dont_return_rows()
        if self._owner._closed:
            raise exc.ResourceClosedError("This result was closed with its session: fetch the rows inside its block.")
        if self._hard_closed:
            self._raise_hard_closed()
        return []

    def _fetchall_impl(self) -> Any:
        cursor = self._cursor
        if cursor is None:
            return self._without_cursor()
        try:
            rows = cursor.fetchall()
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        self._soft_close()
        return rows

    def _fetchone_impl(self, hard_close: bool = False) -> Any:
        cursor = self._cursor
        if cursor is None:
            self._without_cursor()
            self._hard_closed = hard_close
            return None
        try:
            row = cursor.fetchone()
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        if row is None:
            self._soft_close(hard=hard_close)
        elif cursor.rowcount == 1:
            # some drivers take long to say that there are no more
            self._soft_close()
        return row

    def _fetchmany_impl(self, size: int | None = None) -> Any:
        cursor = self._cursor
        if cursor is None:
            return self._without_cursor()
        try:
            rows = cursor.fetchmany() if size is None else cursor.fetchmany(size)
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        if not rows:
            self._soft_close()
        return rows

    def _fetchiter_impl(self) -> Iterator[Any]:
        # one by one: who stops in the middle finds the rest
        while (row := self._fetchone_impl()) is not None:
            yield row

    _raw_row_iterator = _fetchiter_impl
