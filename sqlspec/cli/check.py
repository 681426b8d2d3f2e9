"""``sqlspec check``: connect to every configured database."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sqlspec.adapters import SQLiteConnectionConfig, driver_for
from sqlspec.config import PoolConfig
from sqlspec.exceptions import ConfigError
from sqlspec.registry import SQLSpec

__all__ = ["check"]

_YES_OR_NO: dict[bool | None, str] = {True: "yes", False: "no", None: ""}


def check(
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file; default: sqlspec.toml, the tables tool.sqlspec.* in pyproject.toml, the environment."
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="How the environment's variables begin.")] = "DB_",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for each database.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Connect to every configured database; the exit code is 1 when one cannot be reached, 2 for a wrong config."""
    console = Console(stderr=True)
    try:
        spec = _registry(config, prefix)
    except ConfigError as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        raise typer.Exit(2) from None
    with spec:
        reports = [_report(spec, name, timeout) for name in spec.list_configs()]
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    else:
        _print(Console(), reports)
    raise typer.Exit(0 if all(report["ok"] for report in reports) else 1)


def _registry(config: Path | None, prefix: str) -> SQLSpec:
    if config is not None:
        return SQLSpec.from_toml(config)
    if Path("sqlspec.toml").exists():
        return SQLSpec.from_toml("sqlspec.toml")
    if _has_our_table(Path("pyproject.toml")):
        return SQLSpec.from_toml("pyproject.toml")
    return SQLSpec.from_env(prefix)


def _has_our_table(path: Path) -> bool:
    try:
        return "sqlspec" in tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return False
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not parse: {error}") from None


def _report(spec: SQLSpec, name: str, timeout: float) -> dict[str, Any]:
    config = spec.get_config(name)
    driver = driver_for(config)
    report: dict[str, Any] = {"name": name, "adapter": config.adapter, "driver": driver.name, "ok": False}
    if isinstance(config, PoolConfig):
        report["pool"] = {
            field: getattr(config, field) for field in ("pool_size", "max_overflow", "pool_timeout", "pool_recycle")
        }
    file = Path(config.parsed_url.database or "")
    if isinstance(config, SQLiteConnectionConfig) and not config.in_memory and not file.exists():
        # connecting would create it
        return {**report, "error": f"there is no file {file}"}
    begin = time.monotonic()
    try:
        with spec.get_connection(name, timeout=timeout) as connection:
            connected = time.monotonic()
            connection.cursor().execute("SELECT 1")
            report["latency_ms"] = round((time.monotonic() - connected) * 1000, 2)
            report["connect_ms"] = round((connected - begin) * 1000, 2)
            live = connection.driver_connection
            report |= {"version": driver.server_version(live), "tls": driver.uses_tls(live), "ok": True}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the user asked for
        report["error"] = " ".join(f"{type(error).__name__}: {error}".split())
    return report


def _print(out: Console, reports: list[dict[str, Any]]) -> None:
    if out.width >= 80:
        out.print(_table(reports))
        return
    for report in reports:
        found = report.get("error") or f"{report['version']}, {report['latency_ms']} ms"
        out.print(f"{report['name']}: {'up' if report['ok'] else 'down'}, {found}", markup=False)


def _table(reports: list[dict[str, Any]]) -> Table:
    table = Table("name", "state", "server", "latency", "TLS", "pool")
    for report in reports:
        pool = report.get("pool")
        table.add_row(
            escape(report["name"]),
            "[green]up[/green]" if report["ok"] else "[red]down[/red]",
            escape(report.get("version") or report["error"]),
            f"{report['latency_ms']} ms" if report["ok"] else "",
            _YES_OR_NO[report.get("tls")],
            f"{pool['pool_size']}+{pool['max_overflow']}" if pool else "none",
        )
    return table
