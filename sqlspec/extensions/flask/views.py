"""The pages for operators, as a blueprint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from flask import Blueprint, Response, abort, current_app
from flask.blueprints import BlueprintSetupState

from sqlspec.extensions.flask.current import current_spec, spec_of
from sqlspec.extensions.pages import (
    NOT_KEPT,
    Page,
    PageName,
    choose_pages,
    health_page,
    holders_page,
    metrics_of,
    names_of,
    readiness_page,
)
from sqlspec.health import check_health
from sqlspec.telemetry import PrometheusMetrics

__all__ = ["build_blueprint"]

# Where the metrics of an application are, in its extensions.
_METRICS = "sqlspec.metrics"
# Seconds for which a verdict is told again: however many ask, the databases are not asked more often.
_MAX_AGE = 1.0


def build_blueprint(
    name: str, pages: tuple[PageName, ...], auth: Callable[[], bool] | None, needed: Iterable[str] | None
) -> Blueprint:
    """Return the blueprint of `FlaskSQLSpec.blueprint`."""
    wanted = choose_pages(pages, auth, asked="a function", offer="there are")
    names = names_of(needed)
    views: dict[str, Callable[[], Response]] = {
        "health": _health,
        "ready": lambda: _ready(names),
        "metrics": _metrics,
        "holders": _holders,
    }
    blueprint = Blueprint(name, __name__)
    blueprint.before_request(lambda: _admit(auth))
    blueprint.after_request(_keep_out_of_caches)
    for page in wanted:
        blueprint.add_url_rule(f"/{page}", page, views[page])
    blueprint.record(partial(_know, names))
    if "metrics" in wanted:
        blueprint.record(_have_metrics)
    return blueprint


def _admit(auth: Callable[[], bool] | None) -> None:
    # Nothing but True: a coroutine would be true as well, and so would an answer that refuses.
    if auth is not None and current_app.ensure_sync(auth)() is not True:
        abort(403)


def _keep_out_of_caches(response: Response) -> Response:
    response.headers.update(NOT_KEPT)
    return response


def _have_metrics(state: BlueprintSetupState) -> None:
    """Have the metrics from the beginning on: each worker tells its own, whichever is asked for the page."""
    if _METRICS not in state.app.extensions:
        state.app.extensions[_METRICS] = metrics_of(spec_of(state.app))


def _know(names: list[str] | None, state: BlueprintSetupState) -> None:
    """Refuse a name that the application does not have when the pages are registered, and not when they are asked."""
    for name in names or ():
        spec_of(state.app).get_config(name)


def _health() -> Response:
    spec = current_spec()
    return _response(health_page(spec, check_health(spec, max_age=_MAX_AGE)))


def _ready(names: list[str] | None) -> Response:
    return _response(readiness_page(check_health(current_spec(), names, max_age=_MAX_AGE)))


def _metrics() -> Response:
    metrics: PrometheusMetrics = current_app.extensions[_METRICS]
    return _response(Page(200, *metrics.render()))


def _holders() -> Response:
    return _response(holders_page(current_spec()))


def _response(page: Page) -> Response:
    return Response(page.body, page.status, content_type=page.content_type)
