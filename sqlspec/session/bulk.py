"""Many rows at once: what `Session.load_rows` takes, and copying between databases."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Executable

from sqlspec.adapters.loading import Position, RowProblem, checked
from sqlspec.exceptions import LoadError
from sqlspec.session.recovery import clean_up_after

if TYPE_CHECKING:
    from sqlspec.session.aio import AsyncSession
    from sqlspec.session.session import Session

__all__ = ["copy_rows", "sequences_of"]


def sequences_of(rows: Iterable[Any], columns: Sequence[str]) -> tuple[Sequence[str], Position]:
    """Return the columns of rows and the rows as sequences, counted as they are taken.

    Raises:
        TypeError: the columns are a string, whose letters would be taken for names.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns={columns!r} is a string: give a list of names, such as [{columns!r}]")
    if isinstance(rows, list) and rows and not isinstance(rows[0], Mapping):
        return columns, Position(rows)
    source = iter(rows)
    first = list(itertools.islice(source, 1))
    together = itertools.chain(first, source)
    if not first or not isinstance(first[0], Mapping):
        return columns, Position(together)
    names = list(columns or first[0])
    return names, Position(_values(together, names, () if columns else names))


def _values(rows: Iterable[Any], names: Sequence[str], all_names: Sequence[str]) -> Iterator[Any]:
    """Return the values of mappings; where ``all_names`` are given, there must not be others."""
    if not names:
        raise RowProblem(1, "it is a mapping without values")
    get, count = itemgetter(*names), len(all_names)
    for before, batch in checked(rows, _is_mapping, "a mapping, as the first row"):
        for position, row in enumerate(batch, before + 1):
            try:
                values = get(row)
            except KeyError as error:
                raise RowProblem(position, f"it has no value for {error}") from None
            if count and len(row) != count:
                others = ", ".join(sorted(str(name) for name in row if name not in all_names))
                raise RowProblem(position, f"it has values for {others}, which the first row has not: give columns=")
            yield values if len(names) > 1 else (values,)


def _is_mapping(kind: type) -> bool:
    return issubclass(kind, Mapping)


@overload
def copy_rows(
    source: Session,
    query: str | Executable,
    target: Session,
    table: str,
    *,
    parameters: Any = None,
    columns: Sequence[str] = (),
    batch_size: int = 10_000,
    progress: Callable[[int], object] | None = None,
) -> int: ...


@overload
def copy_rows(
    source: AsyncSession,
    query: str | Executable,
    target: AsyncSession,
    table: str,
    *,
    parameters: Any = None,
    columns: Sequence[str] = (),
    batch_size: int = 10_000,
    progress: Callable[[int], object] | None = None,
) -> Awaitable[int]: ...


def copy_rows(source: Any, query: str | Executable, target: Any, table: str, **options: Any) -> Any:
    """Copy the rows of a query into a table of another session; return how many.

    The rows are streamed; the target commits after each ``batch_size`` of them, and what it had not committed before
    goes along. What ends it early rolls the target back. Of asynchronous sessions, await it.

    Args:
        source: the session that runs the query.
        query: a string or an executable of SQLAlchemy.
        target: the session of the table; another one than the source.
        table: its name, with a schema and a point before it or without.
        parameters: those of the query.
        columns: what the values are for; without, the columns of the query.
        batch_size: rows between two commits.
        progress: called after each commit with the number of rows that are committed.

    Raises:
        sqlspec.exceptions.LoadError: a row does not fit; ``position`` tells which, ``committed`` how many before it
            are in the table. What else interrupts it has a note that says so. Foreign keys have no position on
            PostgreSQL, which checks them at the end of a batch.
        ValueError: source and target are one session, or a batch would have no rows.
    """
    if source is target:
        raise ValueError("copy_rows() needs two sessions: a commit would end the query")
    batch_size = options.get("batch_size", 1)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one row")
    inner = getattr(source, "_session", None), getattr(target, "_session", None)
    if inner == (None, None):
        return _copy(source, query, target, table, **options)
    if None in inner:
        raise TypeError("copy_rows() takes two sessions of one kind: both synchronous, or both asynchronous")
    from sqlalchemy.util import greenlet_spawn

    copy = functools.partial(_copy, source._session, query, target._session, table, **options)
    return greenlet_spawn(source._session._in_task, target._session._in_task, copy)


def _copy(
    source: Session,
    query: str | Executable,
    target: Session,
    table: str,
    *,
    parameters: Any = None,
    columns: Sequence[str] = (),
    batch_size: int = 10_000,
    progress: Callable[[int], object] | None = None,
) -> int:
    committed = under_way = 0
    try:
        with source._text_of_json(), source.stream(query, parameters, chunk_size=batch_size) as rows:
            names = columns or list(rows.keys())
            for batch in rows.partitions(batch_size):
                target.load_rows(table, batch, names)
                under_way = len(batch)
                target.commit()
                committed, under_way = committed + under_way, 0
                if progress is not None:
                    progress(committed)
    except LoadError as error:
        cause, position = error.__cause__ or error, error.position
        failed = LoadError(table, cause, None if position is None else committed + position, committed)
        clean_up_after(failed, "the rollback", target.rollback)
        raise failed from cause
    except BaseException as error:
        perhaps = f", and perhaps {under_way} more, whose COMMIT was under way" if under_way else ""
        error.add_note(f"sqlspec: {committed} rows are committed in {table}{perhaps}")
        clean_up_after(error, "the rollback", target.rollback)
        raise
    return committed
