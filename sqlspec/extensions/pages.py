"""What an application shows its operators, the same in every framework: health, readiness, metrics, holders.

No page names a host, a user, a statement or a folder.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlspec.exceptions import PoolClosed
from sqlspec.health import HealthReport
from sqlspec.pool import Holder
from sqlspec.registry import SQLSpec

__all__ = ["Page", "health_page", "holders_page", "readiness_page"]

_WORST = ("down", "degraded", "up")


class Page(NamedTuple):
    """Be an answer to a request."""

    status: int
    body: bytes
    content_type: str = "application/json"


def health_page(spec: SQLSpec, report: HealthReport) -> Page:
    """Return how each database is, and its pool; with status 503 where one is down."""
    databases = {
        name: {
            "state": health.state,
            "latency_seconds": round(health.latency_seconds, 6),
            "reason": health.reason,
            "pool": _pool(spec, name),
        }
        for name, health in report.details.items()
    }
    states = {health.state for health in report.details.values()}
    state = next((state for state in _WORST if state in states), "up")
    return _page(503 if state == "down" else 200, {"status": state, "databases": databases})


def readiness_page(report: HealthReport) -> Page:
    """Return whether requests may come: every database can be used; otherwise with status 503."""
    ready = all(report.values())
    return _page(200 if ready else 503, {"ready": ready})


def holders_page(spec: SQLSpec) -> Page:
    """Return who holds connections, where they were checked out, and for how long."""
    holders = {
        name: [
            {"place": _without_folders(holder.place), "owner": holder.owner, "seconds": round(holder.seconds, 3)}
            for holder in _holders(spec, name)
        ]
        for name in spec.list_configs()
    }
    return _page(200, holders)


def _holders(spec: SQLSpec, name: str) -> list[Holder]:
    try:
        return spec.get_holders(name)
    except PoolClosed:
        return []


def _without_folders(place: str) -> str:
    """Return a place with the last folder of its file only: the others tell of the machine, and of who runs it."""
    return "/".join(place.replace("\\", "/").split("/")[-2:])


def _pool(spec: SQLSpec, name: str) -> dict[str, int] | None:
    try:
        stats = spec.get_pool_stats(name)
    except PoolClosed:
        return None
    figures = ("size", "checked_in", "checked_out", "overflow", "total", "waiters")
    return {figure: getattr(stats, figure) for figure in figures}


def _page(status: int, content: Any) -> Page:
    return Page(status, json.dumps(content).encode())
