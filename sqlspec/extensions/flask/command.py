"""``flask sqlspec check``."""

from __future__ import annotations

import click
from flask.cli import AppGroup

from sqlspec.extensions.flask.current import KEY, current_spec
from sqlspec.health import check_health

__all__ = ["commands"]


def commands() -> AppGroup:
    """Return the commands of an application: ``check``."""
    group = AppGroup(KEY, help="Look at the application's databases.")

    @group.command()
    @click.option("--timeout", type=click.FloatRange(min=0.1), default=5.0, help="Seconds for all together.")
    @click.pass_context
    def check(context: click.Context, timeout: float) -> None:
        """Ask every database for a sign of life; the exit code is 1 when one is down."""
        report = check_health(current_spec(), timeout=timeout)
        for name, health in report.details.items():
            click.echo(f"{name}: {health.state}, {health.reason or f'{health.latency_seconds * 1000:.1f} ms'}")
        context.exit(0 if all(report.values()) else 1)

    return group
