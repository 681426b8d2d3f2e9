"""What an application's configuration says of its databases."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import URL

from sqlspec.adapters.sqlite import SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig
from sqlspec.environment import from_table
from sqlspec.exceptions import ConfigError

__all__ = ["read_config"]

_OWN = "SQLSPEC_DATABASES"
_EXAMPLE = f'{_OWN} = {{"default": "postgresql://user:password@host/database"}}'


def read_config(app: Flask, registered: Mapping[str, NoPoolSyncConfig]) -> dict[str, NoPoolSyncConfig]:
    """Return the configs of an application: those registered in code, and those of its configuration.

    Raises:
        ConfigError: a key or a value cannot be used; the message names it, and no secret.
    """
    configs, problem = dict(registered), _strangers(app)
    if not problem:
        problem = _add(app, configs)
    if problem:
        # made here: the frames that hold passwords are not in its traceback
        raise ConfigError(problem)
    if not configs:
        raise ConfigError(f"the application names no database: set {_EXAMPLE}, or call register_config()")
    return configs


def _strangers(app: Flask) -> str:
    for key in app.config:
        if key.startswith("SQLSPEC_") and key != _OWN:
            near = difflib.get_close_matches(key, [_OWN], cutoff=0.5)
            return f"{key} is no key of sqlspec: {f'did you mean {_OWN}?' if near else f'its key is {_OWN}'}"
    return ""


def _add(app: Flask, configs: dict[str, NoPoolSyncConfig]) -> str:
    """Add the configs of the configuration; return what is wrong with it."""
    try:
        for place, name, given in _databases(app, only_own=bool(configs)):
            if name in configs:
                return f"{place}: the database {name!r} is there already: keep one"
            try:
                configs[name] = _config(app, name, given)
            except ConfigError as error:
                return f"{place}: {error}"
    except ConfigError as error:
        return str(error)
    return ""


def _databases(app: Flask, *, only_own: bool) -> Iterator[tuple[str, str, Any]]:
    """Return of each database where it stands, its name, and what is said of it."""
    own = app.config.get(_OWN)
    if own is not None:
        is_table = isinstance(own, Mapping) and not own.keys().isdisjoint({"url", "scheme"})
        whole = is_table or isinstance(own, (str, URL, NoPoolSyncConfig))
        yield from _named(_OWN, {"default": own} if whole else own)
        return
    if only_own:
        return
    uri = app.config.get("SQLALCHEMY_DATABASE_URI")
    if uri is not None:
        # as in Flask-SQLAlchemy, where the binds have options of their own
        options = app.config.get("SQLALCHEMY_ENGINE_OPTIONS") or {}
        yield "SQLALCHEMY_DATABASE_URI", "default", _with_options(uri, options)
    yield from _named("SQLALCHEMY_BINDS", app.config.get("SQLALCHEMY_BINDS") or {})
    yield from _named("SQLALCHEMY_ENGINES", app.config.get("SQLALCHEMY_ENGINES") or {})


def _named(key: str, given: Any) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} must map names to databases: set {_EXAMPLE}")
    for name, database in given.items():
        # Flask-SQLAlchemy's name for that of SQLALCHEMY_DATABASE_URI
        yield f"{key}[{name!r}]", "default" if name is None else name, _with_options(database, {})


def _with_options(database: Any, options: Mapping[str, Any]) -> Any:
    if isinstance(database, NoPoolSyncConfig):
        return database
    return {**options, **(database if isinstance(database, Mapping) else {"url": database})}


def _config(app: Flask, name: str, given: Any) -> NoPoolSyncConfig:
    if isinstance(given, NoPoolSyncConfig):
        return given
    values = dict(given)
    if isinstance(values.get("url"), URL):
        values["url"] = values["url"].render_as_string(hide_password=False)
    if "pool_reset_on_return" in values and values["pool_reset_on_return"] is None:
        # SQLAlchemy's word for it
        values["pool_reset_on_return"] = "none"
    config = from_table(name, values)
    return _in_instance_folder(app, config) if isinstance(config, SQLiteConnectionConfig) else config


def _in_instance_folder(app: Flask, config: SQLiteConnectionConfig) -> SQLiteConnectionConfig:
    file = config.parsed_url.database
    if config.in_memory or not file or file.startswith("file:") or Path(file).is_absolute():
        return config
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    url = config.parsed_url._replace(database=str(folder / file))
    return config.model_copy(update={"url": url.render_as_string(), "database": None})
