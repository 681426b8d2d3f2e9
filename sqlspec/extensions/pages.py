"""What an application shows its operators, the same in every framework: health, readiness, metrics, holders.

No page names a host, a user, a statement or a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from sqlspec.exceptions import ConfigError, PoolClosed
from sqlspec.health import HealthReport
from sqlspec.pool import Holder
from sqlspec.registry import SQLSpec
from sqlspec.telemetry import PrometheusMetrics

__all__ = [
    "NOT_KEPT",
    "Page",
    "PageName",
    "choose_pages",
    "health_page",
    "holders_page",
    "metrics_of",
    "names_of",
    "readiness_page",
]

PageName = Literal["health", "ready", "metrics", "holders"]
# what every page says to caches
NOT_KEPT = {"Cache-Control": "no-store"}

_WORST = ("down", "degraded", "up")


class Page(NamedTuple):
    """Be an answer to a request."""

    status: int
    body: bytes
    content_type: str = "application/json"


def choose_pages(pages: tuple[PageName, ...], auth: object, *, asked: str, offer: str) -> tuple[PageName, ...]:
    """Return the pages that are wanted, none standing for all; the other two are words of the framework's.

    Raises:
        ConfigError: there is no such page, or nothing can be asked who may see them.
    """
    there_are = get_args(PageName)
    for page in pages:
        if page not in there_are:
            raise ConfigError(f"there is no page {page!r}: {offer} {', '.join(there_are)}")
    if auth is not None and not callable(auth):
        raise ConfigError(f"auth must be {asked} that returns True for who may see the pages, or None", "auth")
    return pages or there_are


def names_of(needed: Iterable[str] | None) -> list[str] | None:
    """Return the names without which an application is not ready; None: all.

    Raises:
        ConfigError: it is one name.
    """
    if isinstance(needed, str):
        raise ConfigError(f"needed={needed!r}: give a list of names", "needed")
    return None if needed is None else list(needed)


def metrics_of(spec: SQLSpec) -> PrometheusMetrics:
    """Return the metrics of a registry's pools alone: the global ones of an application refuse the same figures twice.

    Raises:
        ConfigError: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ModuleNotFoundError:
        raise ConfigError(
            "the page metrics needs prometheus_client: pip install 'sqlspec-pool[prometheus]', or name the other pages"
        ) from None
    return PrometheusMetrics(spec, CollectorRegistry())


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
