"""``sqlspec copy``: copy the rows of a table into another one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from sqlalchemy import exc, func, select, table

from sqlspec.cli.registry import ConfigOption, PrefixOption, open_registry
from sqlspec.exceptions import SQLSpecError
from sqlspec.registry import SQLSpec
from sqlspec.session import copy_rows

__all__ = ["copy"]

_EXAMPLE = "the name of a database and a table, such as primary.orders or primary.public.orders"


def copy(
    source: Annotated[str, typer.Argument(help=f"Where the rows are: {_EXAMPLE}.", metavar="SOURCE.table")],
    target: Annotated[str, typer.Argument(help="Where they go; the table is there already.", metavar="TARGET.table")],
    config: ConfigOption = None,
    prefix: PrefixOption = "DB_",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows between two commits.")] = 10_000,
) -> None:
    """Copy all rows of a table into a table of another database, with a commit after each batch.

    The exit code is 1 when it ends before its end; what is committed by then is told, and stays.
    """
    console = Console(stderr=True)
    if source == target:
        raise typer.BadParameter(f"{source} is the source and the target: its rows would be there twice")
    with open_registry(config, prefix) as spec:
        try:
            count = _copy(spec, _split(source), _split(target), batch_size, console)
        except KeyboardInterrupt as interrupt:
            _explain(console, interrupt)
            raise typer.Exit(130) from None
        except (SQLSpecError, exc.SQLAlchemyError) as error:
            _explain(console, error)
            raise typer.Exit(1) from None
    typer.echo(f"{count} rows copied from {source} to {target}")


def _split(argument: str) -> tuple[str, str]:
    name, point, table_name = argument.partition(".")
    if not (point and all(argument.split("."))):
        raise typer.BadParameter(f"{argument!r}: write {_EXAMPLE}")
    return name, table_name


def _copy(spec: SQLSpec, source: tuple[str, str], target: tuple[str, str], batch_size: int, console: Console) -> int:
    columns = SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        spec.get_session(source[0], autocommit=False) as from_session,
        spec.get_session(target[0], autocommit=False) as to_session,
        Progress(*columns, console=console) as progress,
    ):
        schema, point, name = source[1].rpartition(".")
        rows = table(name, schema=schema if point else None)
        total = from_session.execute(select(func.count()).select_from(rows)).scalar()
        task = progress.add_task(f"{source[0]}.{source[1]}", total=total)
        return copy_rows(
            from_session,
            select("*").select_from(rows),
            to_session,
            target[1],
            batch_size=batch_size,
            progress=lambda count: progress.update(task, completed=count),
        )


def _explain(console: Console, error: BaseException) -> None:
    cause = error.__cause__ if isinstance(error.__cause__, exc.DBAPIError) else None
    told = [f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", ())]
    told += [] if cause is None else [f"{cause.orig}"]
    console.print("\n".join(f"[red]{escape(line)}[/red]" for line in told), soft_wrap=True)
