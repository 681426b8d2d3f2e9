"""Rows for PostgreSQL's COPY: "Text Format" of https://www.postgresql.org/docs/current/sql-copy.html."""

from __future__ import annotations

import datetime
import decimal
import functools
import ipaddress
import json
import numbers
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from sqlspec.adapters.loading import Position, converted

__all__ = ["copy_text"]

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ADDRESSES = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def copy_text(rows: Position, json_columns: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """Encode rows, many at a time; note the one that cannot be encoded.

    ``json_columns`` are the positions whose lists are JSON and no arrays.
    """
    return converted(rows, lambda chunk: _lines(chunk, json_columns))


def _lines(rows: list[Any], json_columns: frozenset[int]) -> bytes:
    lines = ["\t".join(_encode(row, json_columns)) for row in rows]
    lines.append("")
    return "\n".join(lines).encode()


def _encode(row: Sequence[Any], json_columns: frozenset[int]) -> list[str]:
    # not by its truth, which an array of numpy's has not
    if len(row) == 0:
        raise ValueError("a row without values")
    if json_columns:
        return [
            _json(value)
            if position in json_columns and isinstance(value, (list, tuple))
            else _ENCODERS.get(type(value), _other)(value)
            for position, value in enumerate(row)
        ]
    return [_ENCODERS.get(type(value), _other)(value) for value in row]


def _text(value: str) -> str:
    return value.translate(_ESCAPES)


def _bytes(value: bytes | bytearray | memoryview) -> str:
    return "\\\\x" + bytes(value).hex()


def _interval(value: datetime.timedelta) -> str:
    # as a time of the day as well, which MySQL's drivers return so
    sign, value = "-" if value < datetime.timedelta() else "", abs(value)
    hours, minutes = value.days * 24 + value.seconds // 3600, value.seconds // 60 % 60
    return f"{sign}{hours}:{minutes:02}:{value.seconds % 60:02}.{value.microseconds:06}"


def _json(value: Any) -> str:
    return _text(json.dumps(value, default=str))


def _array(value: Sequence[Any]) -> str:
    return _text(_array_literal(value))


def _array_literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(map(_array_literal, value)) + "}"
    if value is None:
        return "NULL"
    if isinstance(value, Enum):
        value = value.value
    # of the encoding for COPY, only its own escapes are undone: an element has those of arrays
    plain = value if isinstance(value, str) else _encoded(value).replace("\\\\", "\\")
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _range(value: Any) -> str:
    if value.isempty:
        return "empty"
    lower, upper = ("" if bound is None else _array_literal(bound) for bound in (value.lower, value.upper))
    return _text(f"{'[' if value.lower_inc else '('}{lower},{upper}{']' if value.upper_inc else ')'}")


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


def _encoded(value: Any) -> str:
    return _ENCODERS.get(type(value), _other)(value)


def _other(value: Any) -> str:
    kind: Any = type(value)
    return _encoder_of(kind)(value)


@functools.lru_cache(maxsize=256)
def _encoder_of(kind: type[Any]) -> Callable[[Any], str]:
    """Return how values of a type are encoded that is not among the usual ones.

    Raises:
        TypeError: nobody knows; what ``str`` makes of an object is rarely what is meant.
    """
    if issubclass(kind, Enum):
        return lambda value: _encoded(value.value)
    if hasattr(kind, "dtype") and hasattr(kind, "item"):
        # a scalar of numpy
        return lambda value: _encoded(value.item())
    if issubclass(kind, numbers.Integral):
        return lambda value: str(int(value))
    if issubclass(kind, numbers.Real):
        return lambda value: repr(float(value))
    for base in kind.__mro__:
        if base in _ENCODERS:
            return _ENCODERS[base]
    if issubclass(kind, Mapping):
        return lambda value: _json(dict(value))
    if hasattr(kind, "lower_inc") and hasattr(kind, "isempty"):
        # of psycopg2, psycopg or asyncpg
        return _range
    if issubclass(kind, _ADDRESSES):
        return str
    raise TypeError(f"COPY has no text for values of type {kind.__name__}: convert them")
