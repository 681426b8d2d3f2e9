"""``sqlspec check``: connect to every configured database."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.util import greenlet_spawn

from sqlspec.adapters import Driver, SQLiteConnectionConfig, driver_for
from sqlspec.cli.registry import ConfigOption, PrefixOption, open_registry
from sqlspec.config import PoolConfig
from sqlspec.manager import PooledConnectionManager
from sqlspec.registry import SQLSpec

__all__ = ["check"]

_YES_OR_NO: dict[bool | None, str] = {True: "yes", False: "no", None: ""}


def check(
    config: ConfigOption = None,
    prefix: PrefixOption = "DB_",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for each database.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Connect to every configured database; the exit code is 1 when one cannot be reached, 2 for a wrong config."""
    with open_registry(config, prefix) as spec:
        reports = [_report(spec, name, timeout) for name in spec.list_configs()]
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    else:
        _print(Console(), reports)
    raise typer.Exit(0 if all(report["ok"] for report in reports) else 1)


def _report(spec: SQLSpec, name: str, timeout: float) -> dict[str, Any]:
    config = spec.get_config(name)
    driver = driver_for(config, is_async=config.is_async_only)
    report: dict[str, Any] = {"name": name, "adapter": config.adapter, "driver": driver.name, "ok": False}
    if isinstance(config, PoolConfig):
        report["pool"] = {
            field: getattr(config, field) for field in ("pool_size", "max_overflow", "pool_timeout", "pool_recycle")
        }
    file = Path(config.parsed_url.database or "")
    if isinstance(config, SQLiteConnectionConfig) and not config.in_memory and not file.exists():
        # connecting would create it
        return {**report, "error": f"there is no file {file}"}
    try:
        look = partial(_look, spec._manager(name), driver, timeout)
        report |= asyncio.run(greenlet_spawn(look)) if driver.is_async else look()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the user asked for
        report["error"] = " ".join(f"{type(error).__name__}: {error}".split())
    return report


def _look(manager: PooledConnectionManager, driver: Driver, timeout: float) -> dict[str, Any]:
    begin = time.monotonic()
    with manager.source(is_async=driver.is_async).get_connection(timeout) as connection:
        connected = time.monotonic()
        connection.cursor().execute("SELECT 1")
        done, live = time.monotonic(), connection.driver_connection
        return {
            "latency_ms": round((done - connected) * 1000, 2),
            "connect_ms": round((connected - begin) * 1000, 2),
            "version": driver.server_version(live),
            "tls": driver.uses_tls(live),
            "ok": True,
        }


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
