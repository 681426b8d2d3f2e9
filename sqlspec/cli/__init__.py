"""The ``sqlspec`` command."""

from __future__ import annotations

import typer

from sqlspec.cli.demo import demo

__all__ = ["app"]

app = typer.Typer(name="sqlspec", help="Connections to databases, looked at from the shell.", no_args_is_help=True)
app.command()(demo)


@app.callback()
def _commands() -> None:
    """Keep the command's name necessary while there is only one."""
