"""The ``sqlspec`` command."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

try:
    import typer

    from sqlspec.cli.check import check
    from sqlspec.cli.copy import copy
    from sqlspec.cli.demo import demo
except ModuleNotFoundError as error:
    if error.name not in {"typer", "rich"}:
        raise
    raise SystemExit("the command sqlspec needs its extra: pip install 'sqlspec-pool[cli]'") from None

__all__ = ["app"]

app = typer.Typer(
    name="sqlspec",
    help="Connections to databases, looked at from the shell.",
    no_args_is_help=True,
    # locals hold passwords
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sqlspec {version('sqlspec-pool')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Look at connections to databases from the shell."""


app.command()(check)
app.command()(copy)
app.command()(demo)
