"""SQLAlchemy results over a driver's cursor, without the cost of a statement context."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from sqlalchemy import exc
from sqlalchemy.engine.cursor import null_dml_result
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from sqlspec.session.placeholders import Statement

if TYPE_CHECKING:
    _Rows = IteratorResult[*tuple[Any, ...]]
else:
    _Rows = IteratorResult

__all__ = ["DriverResult", "columns_of"]

_NAME = operator.itemgetter(0)
# the metadata of a statement without rows: every use of them raises SQLAlchemy's ResourceClosedError
_NO_ROWS = null_dml_result()._metadata


class _Metadata(SimpleResultMetaData):
    """Refuse a name that two columns share, as SQLAlchemy's own cursor results do."""

    def __init__(self, keys: Sequence[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(keys, *args, **kwargs)
        if len(self._keymap) < len(self._keys):
            for key in {key for key in keys if list(keys).count(key) > 1}:
                self._keymap[key] = (None, key, ())  # type: ignore[index]  # a plain dict, whatever its declared type
            self._key_to_index = self._make_key_to_index(self._keymap, 0)

    def _index_for_key(self, key: Any, raiseerr: bool = True) -> int:
        if isinstance(key, int):
            return key if key >= 0 else len(self._keys) + key
        record = self._keymap.get(key)
        if record is not None and record[0] is None:
            self._raise_for_ambiguous_column_name(record)
        return super()._index_for_key(key, raiseerr)

    def _raise_for_ambiguous_column_name(self, rec: Any) -> NoReturn:
        raise exc.InvalidRequestError(f"Ambiguous column name {rec[1]!r} in result set column descriptions")


class Columns:
    """Hold what results with the same columns share: SQLAlchemy's metadata, and its maker of rows."""

    __slots__ = ("metadata", "names", "row_getter")

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.metadata = _Metadata(names)
        self.row_getter: Any = IteratorResult(self.metadata, iter(()))._row_getter


def columns_of(statement: Statement, cursor: Any) -> Columns | None:
    """Return the columns of what the cursor holds, cached on the statement; None where it has no rows."""
    description = cursor.description
    if not description:
        return None
    names = list(map(_NAME, description))
    columns: Columns | None = statement.columns
    if columns is None or columns.names != names:
        columns = statement.columns = Columns(names)
    return columns


class Owner(Protocol):
    """Be the session of a result, which handles its errors."""

    def _fail(self, error: BaseException, cursor: Any) -> NoReturn: ...


class DriverResult(_Rows):
    """Be a SQLAlchemy Result whose rows come straight from a driver's cursor.

    Attributes:
        rowcount: rows that the statement changed or returned, as the driver says it; -1 unknown.
        lastrowid: the driver's last generated key.
        returns_rows: whether there are rows to fetch.
    """

    # what IteratorResult.__init__ sets, less the iterator: rows are fetched from the cursor
    raw = None
    context = None
    _source_supports_scalars = False
    # the row getter is given, and goes where SQLAlchemy's own would go: when the columns change
    _memoized_keys = frozenset({"_row_getter"})

    def __init__(self, columns: Columns | None, cursor: Any, owner: Owner) -> None:
        self._cursor = cursor
        self._owner = owner
        self.rowcount: int = cursor.rowcount
        self.lastrowid: Any = getattr(cursor, "lastrowid", None)
        if columns is None:
            self.returns_rows = False
            self._metadata = _NO_ROWS
            self._soft_close()
        else:
            self.returns_rows = True
            self._metadata = columns.metadata
            self._row_getter = columns.row_getter  # type: ignore[misc]  # memoized, and this is its value

    def _soft_close(self, hard: bool = False, **kw: Any) -> None:
        if hard:
            self._hard_closed = True
        cursor = self._cursor
        if cursor is not None:
            self._cursor = None
            self._soft_closed = True
            cursor.close()

    def _open_cursor(self) -> Any:
        if self._hard_closed:
            raise exc.ResourceClosedError(
                "This result is closed, perhaps with its session: fetch the rows inside its block."
            )
        return self._cursor

    def _fetchall_impl(self) -> Any:
        cursor = self._cursor or self._open_cursor()
        if cursor is None:
            return []
        try:
            rows = cursor.fetchall()
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        self._soft_close()
        return rows

    def _fetchone_impl(self, hard_close: bool = False) -> Any:
        cursor = self._cursor
        if cursor is None:
            return self._open_cursor()
        try:
            row = cursor.fetchone()
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        if row is None:
            self._soft_close(hard=hard_close)
        return row

    def _fetchmany_impl(self, size: int | None = None) -> Any:
        cursor = self._open_cursor()
        if cursor is None:
            return []
        try:
            rows = cursor.fetchmany() if size is None else cursor.fetchmany(size)
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._owner._fail(error, cursor)
        if not rows:
            self._soft_close()
        return rows

    def _fetchiter_impl(self) -> Iterator[Any]:
        while rows := self._fetchmany_impl(100):
            yield from rows

    _raw_row_iterator = _fetchiter_impl
