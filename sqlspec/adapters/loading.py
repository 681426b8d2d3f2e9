"""How rows are loaded: what is loaded into, COPY's text format, and values that a database does not take by itself."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Dialect

__all__ = ["Converters", "Position", "Target", "convert_rows", "copy_text"]

Converters = Mapping[type, Callable[[Any], Any]]


class Target:
    """Say what is loaded into, by its plain names, and quoted for the database where they must be.

    Attributes:
        schema: the schema, or None.
        table: the table.
        columns: the columns; empty: all of them, in their order.
        name: the quoted name.
    """

    def __init__(self, name: str, columns: Sequence[str], dialect: Dialect) -> None:
        quote = dialect.identifier_preparer.quote
        schema, point, self.table = name.rpartition(".")
        self.schema = schema if point else None
        self.columns = tuple(columns)
        self.name = f"{quote(schema)}.{quote(self.table)}" if point else quote(self.table)
        self._list = ", ".join(quote(column) for column in columns)

    def select_nothing(self) -> str:
        """Return a SELECT of the columns, without rows."""
        return f"SELECT {self._list or '*'} FROM {self.name} LIMIT 0"  # noqa: S608  # quoted

    def insert(self, mark: str, width: int) -> str:
        """Return an INSERT of one row with these placeholders."""
        columns = f" ({self._list})" if self.columns else ""
        return f"INSERT INTO {self.name}{columns} VALUES ({', '.join([mark] * width)})"  # noqa: S608  # quoted

    def copy(self) -> str:
        """Return the COPY that reads rows in text format."""
        return f"COPY {self.name}{f' ({self._list})' if self.columns else ''} FROM STDIN"


class Position:
    """Count the rows that are taken from an iterator.

    Attributes:
        taken: how many have been taken.
        bad: the number of the row that the database refused, from 1, where it is known.
        failure: what the iterator raised.
    """

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self.taken = 0
        self.bad: int | None = None
        self.failure: BaseException | None = None
        self._rows = iter(rows)

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            for row in self._rows:
                self.taken += 1
                yield row
        except BaseException as error:
            # a driver may make an error of its own of it
            self.failure = error
            raise


def convert_rows(rows: list[Sequence[Any]], converters: Converters) -> list[Sequence[Any]]:
    """Convert the values of these types."""
    if converters.keys().isdisjoint(map(type, itertools.chain.from_iterable(rows))):
        return rows
    return [[converters[type(value)](value) if type(value) in converters else value for value in row] for row in rows]


# -- COPY's text format: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format"

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ROWS_A_CHUNK = 1000


def _text(value: str) -> str:
    return value.translate(_ESCAPES)


def _bytes(value: bytes | bytearray | memoryview) -> str:
    return "\\\\x" + bytes(value).hex()


def _interval(value: datetime.timedelta) -> str:
    return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"


def _json(value: Any) -> str:
    return _text(json.dumps(value, default=str))


def _array(value: Sequence[Any]) -> str:
    return _text(_array_literal(value))


def _array_literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(map(_array_literal, value)) + "}"
    if value is None:
        return "NULL"
    # of the encoding for COPY, only its own escapes are undone: an element has those of arrays
    plain = value if isinstance(value, str) else _ENCODERS.get(type(value), _other)(value).replace("\\\\", "\\")
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _other(value: Any) -> str:
    return _text(str(value))


_ENCODERS: dict[type, Callable[[Any], str]] = {
    str: _text,
    int: str,
    float: repr,
    type(None): lambda _: "\\N",
    bool: lambda value: "t" if value else "f",
    decimal.Decimal: str,
    datetime.datetime: str,
    datetime.date: str,
    datetime.time: str,
    datetime.timedelta: _interval,
    uuid.UUID: str,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    dict: _json,
    list: _array,
    tuple: _array,
}


def copy_text(rows: Iterable[Sequence[Any]], json_columns: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """Encode rows for COPY, many at a time; ``json_columns`` are the positions whose lists are JSON and no arrays."""
    source = iter(rows)
    while lines := ["\t".join(_encode(row, json_columns)) for row in itertools.islice(source, _ROWS_A_CHUNK)]:
        lines.append("")
        yield "\n".join(lines).encode()


def _encode(row: Sequence[Any], json_columns: frozenset[int]) -> list[str]:
    if json_columns:
        return [
            _json(value)
            if position in json_columns and isinstance(value, (list, tuple))
            else _ENCODERS.get(type(value), _other)(value)
            for position, value in enumerate(row)
        ]
    return [_ENCODERS.get(type(value), _other)(value) for value in row]
