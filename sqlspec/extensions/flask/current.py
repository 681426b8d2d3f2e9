"""The registry of the current application."""

from __future__ import annotations

from flask import current_app
from flask.sansio.app import App

from sqlspec.registry import SQLSpec

__all__ = ["KEY", "current_spec", "spec_of"]

# Where the registry of an application is, in its extensions.
KEY = "sqlspec"


def spec_of(app: App) -> SQLSpec:
    """Return the registry of an application.

    Raises:
        RuntimeError: it has none.
    """
    spec = app.extensions.get(KEY)
    if not isinstance(spec, SQLSpec):
        raise RuntimeError(f"the application {app.name!r} has no FlaskSQLSpec yet: call init_app(app) first")
    return spec


def current_spec() -> SQLSpec:
    """Return the registry of the application whose context it is.

    Raises:
        RuntimeError: there is no context, or the application has no registry.
    """
    return spec_of(current_app._get_current_object())  # type: ignore[attr-defined]  # of werkzeug's proxies
