"""How rows are loaded: into what, how they are counted, and values that a database does not take by itself."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy.engine import Dialect

from sqlspec.resilience import ErrorKind, classify

__all__ = [
    "Converters",
    "Position",
    "RowProblem",
    "Target",
    "batches",
    "checked",
    "converted",
    "is_of_a_row",
    "is_of_numpy",
    "item_of",
    "value_of",
]

R = TypeVar("R")

# by type, for its subclasses as well
Converters = Mapping[type, Callable[[Any], Any]]


class RowProblem(Exception):
    """Say what is wrong with a row that no database has seen.

    Attributes:
        position: the number of the row, from 1.
    """

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position


def is_of_a_row(error: Exception) -> bool:
    """Tell whether a row may be to blame for an error, as none is for a lock, a deadlock or a full disk."""
    return classify(error) in {ErrorKind.INTEGRITY, ErrorKind.PROGRAMMING, ErrorKind.OTHER}


def value_of(member: Enum) -> Any:
    """Return what a member of an enumeration stands for."""
    return member.value


def is_of_numpy(kind: type) -> bool:
    """Tell whether a type is one of numpy's scalars, of which sqlite3 would store the bytes in memory."""
    return hasattr(kind, "dtype") and hasattr(kind, "item")


def item_of(scalar: Any) -> Any:
    """Return the value of Python's that a scalar of numpy stands for.

    Raises:
        ValueError: it is a time finer than Python's, which would become a number.
    """
    item = scalar.item()
    if scalar.dtype.kind in "mM" and isinstance(item, int):
        raise ValueError(f"{scalar!r} is finer than a microsecond: convert it")
    return item


class Target:
    """Say what is loaded into, by its plain names, and quoted for the database where they must be.

    Attributes:
        schema: the schema, or None.
        table: the table.
        columns: the columns; empty: all of them, in their order.
    """

    def __init__(self, name: str, columns: Sequence[str], dialect: Dialect) -> None:
        schema, point, self.table = name.rpartition(".")
        self.schema = schema if point else None
        self.columns = tuple(columns)
        self._quote = dialect.identifier_preparer.quote

    def _quoted(self, name: str, is_text_alone: bool) -> str:
        quoted = self._quote(name)
        # SQLAlchemy doubles percent signs for drivers that look for %s, which they do where there are parameters
        is_doubled = quoted.count("%") == 2 * name.count("%")
        return quoted.replace("%%", "%") if is_text_alone and is_doubled else quoted

    def _name(self, is_text_alone: bool = True) -> str:
        table = self._quoted(self.table, is_text_alone)
        return table if self.schema is None else f"{self._quoted(self.schema, is_text_alone)}.{table}"

    def _names(self, is_text_alone: bool = True) -> str:
        return ", ".join(self._quoted(column, is_text_alone) for column in self.columns)

    def _list(self, is_text_alone: bool = True) -> str:
        return f" ({self._names(is_text_alone)})" if self.columns else ""

    def select_types(self) -> str:
        """Return PostgreSQL's SELECT of the names and the types of all columns, in their order."""
        name = self._name().replace("'", "''")
        return (
            "SELECT a.attname, COALESCE(NULLIF(t.typbasetype, 0), t.oid) "  # noqa: S608  # the name is quoted
            "FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
            "WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' "
            f"AND a.attrelid = to_regclass('{name}') ORDER BY a.attnum"
        )

    def insert_into(self) -> str:
        """Return an INSERT as far as its values, to be run without parameters."""
        return f"INSERT INTO {self._name()}{self._list()}"

    def insert(self, mark: str, width: int) -> str:
        """Return an INSERT of one row with these placeholders."""
        into = f"INSERT INTO {self._name(is_text_alone=False)}{self._list(is_text_alone=False)}"
        return f"{into} VALUES ({', '.join([mark] * width)})"

    def insert_nothing(self) -> str:
        """Return an INSERT of no row: what the database says to it, no row is to blame for."""
        names = self._names() or "*"
        return f"{self.insert_into()} SELECT {names} FROM {self._name()} WHERE 1 = 0"  # noqa: S608  # they are quoted

    def copy(self) -> str:
        """Return the COPY that reads rows in text format, in UTF-8."""
        return f"COPY {self._name()}{self._list()} FROM STDIN (ENCODING 'UTF8')"


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
# what has a length and parts, which are not values of columns in their order
_NO_SEQUENCES = (str, bytes, bytearray, memoryview, Mapping, Set)


def batches(rows: Position, converters: Converters) -> Iterator[list[Sequence[Any]]]:
    """Return rows in lists of tuples, the values of these types converted; note the row that cannot be."""
    return converted(rows, lambda batch: _with_tuples(batch, converters))


def converted(rows: Position, convert: Callable[[list[Any]], R]) -> Iterator[R]:
    """Return what becomes of rows, many at a time; note the row of which nothing becomes."""
    for before, batch in checked(rows, _is_sequence, "a sequence of values"):
        try:
            outcome = convert(batch)
        except Exception:
            rows.bad = before + _first_bad(batch, convert)
            raise
        yield outcome


def checked(rows: Iterable[Any], is_row: Callable[[type], bool], wanted: str) -> Iterator[tuple[int, list[Any]]]:
    """Return rows, many at a time, after the number of those before.

    Raises:
        RowProblem: the type of one is no type of rows.
    """
    source, before = iter(rows), 0
    while batch := list(itertools.islice(source, _ROWS_A_BATCH)):
        if not all(map(is_row, set(map(type, batch)))):
            number, kind = next((n, type(row)) for n, row in enumerate(batch, 1) if not is_row(type(row)))
            raise RowProblem(before + number, f"it is of the type {kind.__name__}, and must be {wanted}")
        yield before, batch
        before += len(batch)


def _is_sequence(kind: type) -> bool:
    # rows of drivers, and arrays, are no sequences by their base class
    return issubclass(kind, Sized) and issubclass(kind, Iterable) and not issubclass(kind, _NO_SEQUENCES)


def _first_bad(batch: list[Any], convert: Callable[[list[Any]], object]) -> int:
    """Return the number of the first row that cannot be converted, from 1."""
    for number, row in enumerate(batch, 1):
        try:
            convert([row])
        except Exception:  # noqa: BLE001  # it is raised already, for all of them
            return number
    return 0


def _with_tuples(batch: list[Any], converters: Converters) -> list[Sequence[Any]]:
    # drivers want tuples, and not what only behaves like one
    if set(map(type, batch)) != {tuple}:
        batch = [tuple(row) for row in batch]
    if () in batch:
        raise ValueError("a row without values")
    types = set(map(type, itertools.chain.from_iterable(batch)))
    needed = {kind: found for kind in types if (found := _converter(kind, converters)) is not None}
    if needed:
        batch = [tuple([needed[type(v)](v) if type(v) in needed else v for v in row]) for row in batch]
    return batch


def _converter(kind: type, converters: Converters) -> Callable[[Any], Any] | None:
    if is_of_numpy(kind):
        return lambda scalar: _converted(item_of(scalar), converters)
    return next((converters[base] for base in kind.__mro__ if base in converters), None)


def _converted(value: Any, converters: Converters) -> Any:
    convert = _converter(type(value), converters)
    return value if convert is None else convert(value)
