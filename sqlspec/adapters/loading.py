"""How rows are loaded: what is loaded into, COPY's text format, and values that a database does not take by itself."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import operator
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Dialect

__all__ = ["Converters", "Position", "Target", "batches", "copy_text"]

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

    def insert_into(self) -> str:
        """Return an INSERT as far as its values."""
        return f"INSERT INTO {self.name}{f' ({self._list})' if self.columns else ''}"

    def insert(self, mark: str, width: int) -> str:
        """Return an INSERT of one row with these placeholders."""
        return f"{self.insert_into()} VALUES ({', '.join([mark] * width)})"

    def copy(self) -> str:
        """Return the COPY that reads rows in text format."""
        return f"COPY {self.name}{f' ({self._list})' if self.columns else ''} FROM STDIN"


class Position:
    """Count the rows that are taken from an iterable, at no cost for each.

    Attributes:
        bad: the number of the row that the database refused, from 1, where it is known.
        failure: what the iterable raised.
    """

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self.bad: int | None = None
        self.failure: BaseException | None = None
        self._rows = rows if isinstance(rows, list) else self._watch(rows)
        self._count = itertools.count()
        self._looks = 0

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return map(operator.itemgetter(0), zip(self._rows, self._count, strict=False))

    @property
    def taken(self) -> int:
        """Return how many have been taken."""
        # looking counts as well
        self._looks += 1
        return next(self._count) - self._looks + 1

    def _watch(self, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        try:
            yield from rows
        except Exception as error:
            # a driver may make an error of its own of it
            self.failure = error
            raise


# Enough for the round trip not to count; where a row is bad, so many are tried one by one.
_ROWS_A_BATCH = 1000


def batches(rows: Iterable[Sequence[Any]], converters: Converters) -> Iterator[list[Sequence[Any]]]:
    """Return rows in lists, the values of these types converted."""
    source, types = iter(rows), converters.keys()
    while batch := list(itertools.islice(source, _ROWS_A_BATCH)):
        if not types.isdisjoint(map(type, itertools.chain.from_iterable(batch))):
            batch = [[converters[type(v)](v) if type(v) in converters else v for v in row] for row in batch]
        yield batch


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
