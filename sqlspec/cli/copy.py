"""``sqlspec copy``: copy the rows of a table into another one."""

from __future__ import annotations

import difflib
import warnings
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from sqlalchemy import Inspector, column, exc, func, inspect, select, table
from sqlalchemy.engine.interfaces import ReflectedColumn

from sqlspec.cli.registry import ConfigOption, PrefixOption, open_registry
from sqlspec.exceptions import ConfigError, LoadError, SQLSpecError
from sqlspec.registry import SQLSpec
from sqlspec.session import Session, copy_rows

__all__ = ["copy"]

_EXAMPLE = "the name of a database and a table, such as primary.orders or primary.public.orders"


class _Table(NamedTuple):
    """Say where a table is."""

    database: str
    schema: str | None
    name: str

    @property
    def path(self) -> str:
        """Return the name that the database knows it by."""
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


def copy(
    source: Annotated[str, typer.Argument(help=f"Where the rows are: {_EXAMPLE}.", metavar="SOURCE.table")],
    target: Annotated[str, typer.Argument(help="Where they go; the table is there already.", metavar="TARGET.table")],
    config: ConfigOption = None,
    prefix: PrefixOption = "DB_",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows between two commits.")] = 10_000,
) -> None:
    """Copy all rows of a table into a table of another database, with a commit after each batch.

    Columns go by their names; those that the target computes itself are left out. The exit code is 2 for a wrong name
    or config, and 1 when it ends before its end; what is committed by then is told, and stays.
    """
    console = Console(stderr=True)
    try:
        tables = _split(source), _split(target)
        # two of them, so that one database has two pools: two checkouts from one would be nested
        with open_registry(config, prefix) as from_spec, open_registry(config, prefix) as to_spec:
            count = _copy(from_spec, to_spec, *tables, batch_size, console)
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever it is, one line says more than a traceback
        console.print(Text(_line(error), style="red"), soft_wrap=True)
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, ConfigError) else 1
        raise typer.Exit(code) from None
    typer.echo(f"{count} rows copied from {source} to {target}")


def _split(argument: str) -> _Table:
    parts = argument.split(".")
    # what is not printable is no text in UTF-8, or nobody meant it
    if len(parts) not in {2, 3} or not all(parts) or not argument.isprintable():
        raise ConfigError(f"{argument!r}: write {_EXAMPLE}")
    return _Table(parts[0], parts[1] if len(parts) == 3 else None, parts[-1])


def _copy(
    from_spec: SQLSpec, to_spec: SQLSpec, source: _Table, target: _Table, batch_size: int, console: Console
) -> int:
    with (
        from_spec.get_session(source.database, autocommit=False) as from_session,
        to_spec.get_session(target.database, autocommit=False) as to_session,
    ):
        pairs = _pairs(_columns(from_session, source), _columns(to_session, target), target)
        if _whole(from_session, source) == _whole(to_session, target):
            raise ConfigError(f"{source.path} is the source and the target: its rows would be there twice")
        # SQLite lets nobody write who began by reading, once somebody else has written
        to_session.rollback()
        rows = table(source.name, schema=source.schema)
        total = from_session.execute(select(func.count()).select_from(rows)).scalar()
        shown = SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*shown, console=console) as progress:
            task = progress.add_task(f"{source.database}.{source.path}", total=total)
            return copy_rows(
                from_session,
                select(*map(column, pairs)).select_from(rows),
                to_session,
                target.path,
                columns=list(pairs.values()),
                batch_size=batch_size,
                progress=lambda count: progress.update(task, completed=count),
            )


def _whole(session: Session, place: _Table) -> _Table:
    """Return where a table is, with the schema that it has where none is named."""
    return place._replace(schema=place.schema or session.connection().dialect.default_schema_name)


def _columns(session: Session, place: _Table) -> list[ReflectedColumn]:
    try:
        inspector = inspect(session.connection())
        with warnings.catch_warnings():
            # SQLAlchemy warns of types that it does not know, and only the names are asked for
            warnings.simplefilter("ignore", exc.SAWarning)
            return _columns_of(inspector, place)
    except ConfigError:
        raise
    except Exception as error:
        error.add_note(f"{place.database}.{place.path} cannot be looked at")
        raise


def _columns_of(inspector: Inspector, place: _Table) -> list[ReflectedColumn]:
    try:
        return inspector.get_columns(place.name, place.schema)
    except (exc.NoSuchTableError, exc.DBAPIError) as error:
        # SQLite and MySQL cannot be asked about a schema that is not there
        is_there = place.schema is None or place.schema in inspector.get_schema_names()
        if is_there and isinstance(error, exc.DBAPIError):
            raise
    known = [*inspector.get_table_names(place.schema), *inspector.get_view_names(place.schema)] if is_there else []
    near = difflib.get_close_matches(place.name, known, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "create it first, or name its schema"
    raise ConfigError(f"there is no table {place.path} in {place.database}: {hint}")


def _pairs(given: list[ReflectedColumn], taken: list[ReflectedColumn], target: _Table) -> dict[str, str]:
    """Return the names of the columns to copy, in the source and in the target."""
    where = f"{target.database}.{target.path}"
    exact = {known["name"]: known for known in taken}
    in_any_case = {name.casefold(): known for name, known in exact.items()}
    found = {name["name"]: exact.get(name["name"]) or in_any_case.get(name["name"].casefold()) for name in given}
    missing = [name for name, known in found.items() if known is None]
    if missing:
        raise SQLSpecError(f"{where} has no column {', '.join(missing)}: add it, or copy from a view without it")
    pairs = {name: known["name"] for name, known in found.items() if known and known.get("computed") is None}
    targets = list(pairs.values())
    if not pairs:
        raise SQLSpecError(f"{where} computes all its columns itself: there is nothing to copy")
    together = [name for name, known in pairs.items() if targets.count(known) > 1]
    if together:
        names = " and ".join(together)
        raise SQLSpecError(f"{where} has one column for {names}: copy from a view where their names differ otherwise")
    return pairs


def _line(error: BaseException) -> str:
    told = [_told(error), *getattr(error, "__notes__", ())]
    if isinstance(error, LoadError) and error.__cause__ is not None:
        told.append(_told(error.__cause__))
    return "; ".join(" ".join(part.split()) for part in told)


def _told(error: BaseException) -> str:
    if isinstance(error, SQLSpecError):
        return str(error)
    # SQLAlchemy adds the statement, which nobody typed
    origin = getattr(error, "orig", None) or error
    return f"{type(origin).__name__}: {origin}".removesuffix(": ")
