"""Where the commands find their databases."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sqlspec.exceptions import ConfigError
from sqlspec.registry import SQLSpec

__all__ = ["ConfigOption", "PrefixOption", "open_registry"]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file; default: sqlspec.toml, the tables tool.sqlspec.* in pyproject.toml, the environment."
    ),
]
PrefixOption = Annotated[str, typer.Option(help="How the environment's variables begin.")]


def open_registry(config: Path | None, prefix: str) -> SQLSpec:
    """Return the registry; explain a wrong config and end with exit code 2."""
    try:
        return _find(config, prefix)
    except ConfigError as error:
        Console(stderr=True).print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        raise typer.Exit(2) from None


def _find(config: Path | None, prefix: str) -> SQLSpec:
    if config is not None:
        return SQLSpec.from_toml(config)
    if Path("sqlspec.toml").exists():
        return SQLSpec.from_toml("sqlspec.toml")
    if _has_our_table(Path("pyproject.toml")):
        return SQLSpec.from_toml("pyproject.toml")
    return SQLSpec.from_env(prefix)


def _has_our_table(path: Path) -> bool:
    try:
        tools = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("tool")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not parse: {error}") from None
    return isinstance(tools, dict) and "sqlspec" in tools
