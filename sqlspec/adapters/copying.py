"""Rows for PostgreSQL's COPY: "Text Format" of https://www.postgresql.org/docs/current/sql-copy.html."""

from __future__ import annotations

import datetime
import decimal
import ipaddress
import json
import numbers
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from sqlspec.adapters.loading import Position, converted, is_of_numpy, item_of

__all__ = ["copy_text"]

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ADDRESSES = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


# object identifiers of PostgreSQL's own types
_JSON = frozenset({114, 3802})
_TIME = frozenset({1083, 1183, 1266, 1270})
# timestamp, and what is made of it; date
_WITHOUT_ZONE = frozenset({1114, 1115, 3908, 1082, 1182})


def copy_text(rows: Position, types: Sequence[int | None]) -> Iterator[bytes]:
    """Encode rows, many at a time, for columns of these types; note the row that cannot be encoded."""
    columns = [_Encoders(kind) for kind in types]
    return converted(rows, lambda chunk: _lines(chunk, columns))


def _lines(rows: list[Any], columns: list[_Encoders]) -> bytes:
    lines = ["\t".join(_encode(row, columns)) for row in rows]
    lines.append("")
    return "\n".join(lines).encode()


def _encode(row: Sequence[Any], columns: list[_Encoders]) -> list[str]:
    # not by its truth, which an array of numpy's has not
    if len(row) == 0:
        raise ValueError("a row without values")
    if len(row) > len(columns):
        # it is for the server to say that there is no such column, or no such table
        columns = columns + [_Encoders(None)] * (len(row) - len(columns))
    return [encoders[type(value)](value) for encoders, value in zip(columns, row, strict=False)]


def _text(value: str) -> str:
    return value.translate(_ESCAPES)


def _bytes(value: bytes | bytearray | memoryview) -> str:
    return "\\\\x" + bytes(value).hex()


def _interval(value: datetime.timedelta) -> str:
    # without the second sign, the first one might be that of both
    return f"{value.days} days +{_time(value - datetime.timedelta(value.days))}" if value.days else _time(value)


def _time(value: datetime.timedelta) -> str:
    # as a time of the day, which MySQL's drivers return so
    sign, value = "-" if value < datetime.timedelta() else "", abs(value)
    hours, minutes = value.days * 24 + value.seconds // 3600, value.seconds // 60 % 60
    return f"{sign}{hours}:{minutes:02}:{value.seconds % 60:02}.{value.microseconds:06}"


def _naive(value: datetime.datetime) -> str:
    if value.tzinfo is not None:
        # the server would drop the offset, and not even say so
        raise ValueError(f"{value} has a time zone, and its column has none: convert it")
    return str(value)


def _json(value: Any) -> str:
    return _text(json.dumps(value, default=str))


_USUAL: dict[type, Callable[[Any], str]] = {
    str: _text,
    int: str,
    float: repr,
    type(None): lambda _: "\\N",
    # spelled out, for columns of text
    bool: lambda value: "true" if value else "false",
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
}


class _Encoders(dict[type, Callable[[Any], str]]):
    """Be the encoders of one column by type; for types that are not among the usual ones they are found when met."""

    def __init__(self, column_type: int | None) -> None:
        super().__init__(_USUAL)
        # a list is an array or JSON, which it does not say itself
        self[list] = self[tuple] = _json if column_type in _JSON else self._array
        if column_type in _TIME:
            self[datetime.timedelta] = _time
        if column_type in _WITHOUT_ZONE:
            self[datetime.datetime] = _naive

    def __missing__(self, kind: type) -> Callable[[Any], str]:
        self[kind] = encoder = self._of(kind)
        return encoder

    def _of(self, kind: Any) -> Callable[[Any], str]:
        """Return how values of a type are encoded.

        Raises:
            TypeError: nobody knows; what ``str`` makes of an object is rarely what is meant.
        """
        if issubclass(kind, Enum):
            return lambda value: self._encoded(value.value)
        if is_of_numpy(kind):
            return lambda value: self._encoded(item_of(value))
        if issubclass(kind, numbers.Integral):
            return lambda value: str(int(value))
        if issubclass(kind, numbers.Real):
            return lambda value: repr(float(value))
        for base in kind.__mro__:
            if base in self:
                return self[base]
        if issubclass(kind, Mapping):
            return lambda value: _json(dict(value))
        if hasattr(kind, "lower_inc") and hasattr(kind, "isempty"):
            # of psycopg2, psycopg or asyncpg
            return self._range
        if issubclass(kind, _ADDRESSES):
            return str
        raise TypeError(f"COPY has no text for values of type {kind.__name__}: convert them")

    def _encoded(self, value: Any) -> str:
        return self[type(value)](value)

    def _array(self, value: Sequence[Any]) -> str:
        return _text(self._array_literal(value))

    def _array_literal(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return "{" + ",".join(map(self._array_literal, value)) + "}"
        if value is None:
            return "NULL"
        if isinstance(value, Enum):
            value = value.value
        # of the encoding for COPY, only its own escapes are undone: an element has those of arrays
        plain = value if isinstance(value, str) else self._encoded(value).replace("\\\\", "\\")
        escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    def _range(self, value: Any) -> str:
        if value.isempty:
            return "empty"
        lower, upper = ("" if bound is None else self._array_literal(bound) for bound in (value.lower, value.upper))
        return _text(f"{'[' if value.lower_inc else '('}{lower},{upper}{']' if value.upper_inc else ')'}")
