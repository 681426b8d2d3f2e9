"""The ``sqlspec`` command."""

from __future__ import annotations

import typer

from sqlspec.cli.check import check
from sqlspec.cli.demo import demo

__all__ = ["app"]

app = typer.Typer(name="sqlspec", help="Connections to databases, looked at from the shell.", no_args_is_help=True)
app.command()(check)
app.command()(demo)
