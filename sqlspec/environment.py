"""Configs from environment variables and TOML files."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, driver_for
from sqlspec.config import SyncDatabaseConfig
from sqlspec.config.url import is_url
from sqlspec.exceptions import ConfigError, SQLSpecWarning

__all__ = ["EnvironmentConfig", "from_table", "read_toml"]

_Adapter = type[PostgreSQLConfig | MySQLConfig | SQLiteConfig]
_ADAPTERS: dict[str, _Adapter] = {
    scheme: config for config in (PostgreSQLConfig, MySQLConfig, SQLiteConfig) for scheme in config.schemes
}
# Where a variable is not called like the option of the config.
_VARIABLES = {"database": "name", "username": "user"}


class EnvironmentConfig(BaseSettings):
    """Read a database's config from the environment.

    ``DB_URL``, or ``DB_HOST``, ``DB_PORT``, ``DB_NAME``, ``DB_USER``, ``DB_PASSWORD``; ``DB_SCHEME`` selects
    the database (default postgresql); ``DB_PASSWORD_FILE`` and ``DB_URL_FILE`` name files that hold the value;
    every other option of the config goes by its name (``DB_POOL_SIZE``, ``DB_TLS``).
    """

    model_config = SettingsConfigDict(extra="ignore", hide_input_in_errors=True, env_ignore_empty=True)

    scheme: str | None = None
    url: SecretStr | None = None
    url_file: Path | None = None
    host: str | None = None
    port: str | None = None
    name: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None

    @classmethod
    def from_env(cls, prefix: str = "DB_") -> SyncDatabaseConfig:
        """Return the config that the variables with this prefix describe.

        Raises:
            ConfigError: a variable cannot be used; the message names it, never its value.
        """
        if is_url(prefix):
            raise ConfigError(
                "from_env() takes the prefix of variables, and this is a URL: give it to a config, as url"
            )
        config, problem = cls._read(prefix)
        if config is None:
            # made here: the frames that hold passwords are not in its traceback
            raise ConfigError(problem)
        return config

    @classmethod
    def _read(cls, prefix: str) -> tuple[SyncDatabaseConfig | None, str]:
        try:
            read = cls(_env_prefix=prefix)  # type: ignore[call-arg]  # of BaseSettings, hidden from checkers
            url = read._secret("url", prefix)
            adapter = _adapter_for(url.get_secret_value() if url else None, read.scheme)
            options: Any = {
                name: (str | None, None)
                for name in adapter.model_fields
                if name not in cls.model_fields and name not in {*_VARIABLES, "instrumentation"}
            }
            own: Any = create_model(cls.__name__, __base__=cls, **options)
            known: EnvironmentConfig = own(_env_prefix=prefix)
            _warn_of_strangers(prefix, {name.upper() for name in own.model_fields})
            return _build(adapter, known._values(prefix, list(options))), ""
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return None, f"{prefix}{str(first['loc'][0]).upper()}: {first['msg']}"
        except ConfigError as error:
            field = error.field or "*"
            reason = re.sub(rf"^(\w+Config: )?({re.escape(field)}: )?", "", str(error))
            return None, f"{prefix}{_VARIABLES.get(field, field).upper()}: {reason}"

    def _values(self, prefix: str, options: list[str]) -> dict[str, Any]:
        url, password = self._secret("url", prefix), self._secret("password", prefix)
        place: dict[str, Any] = {
            "url": url.get_secret_value() if url else None,
            "host": self.host,
            "port": self.port,
            "database": self.name,
            "username": self.user,
            "password": password,
        }
        if all(value is None for value in place.values()):
            raise ConfigError(f"none names a database: set {prefix}URL, or {prefix}HOST and {prefix}NAME")
        values = place | {name: getattr(self, name) for name in options}
        return {name: value for name, value in values.items() if value is not None}

    def _secret(self, field: str, prefix: str) -> SecretStr | None:
        value: SecretStr | None = getattr(self, field)
        path: Path | None = getattr(self, f"{field}_file")
        if path is None:
            return value
        if value is not None:
            raise ConfigError(f"{prefix}{field.upper()} is set as well: keep one", f"{field}_file")
        return _read_secret(path, f"{field}_file")


def _warn_of_strangers(prefix: str, known: set[str]) -> None:
    """Warn of variables that are not read, and look as if they were meant to be."""
    for variable in os.environ:
        name = variable.upper().removeprefix(prefix.upper())
        if not variable.upper().startswith(prefix.upper()) or name in known:
            continue
        near = [_VARIABLES[name.lower()].upper()] if name.lower() in _VARIABLES else []
        near = near or difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
        if near:
            warnings.warn(f"{variable} is not read: did you mean {prefix}{near[0]}?", SQLSpecWarning, stacklevel=4)


_NO_ADAPTER = f"there is no adapter for it; there are {', '.join(sorted(_ADAPTERS))}"
_FILES = {"password_file": "password", "url_file": "url"}


def read_toml(path: Path) -> dict[str, SyncDatabaseConfig]:
    """Return the configs that a TOML file describes, one table a name.

    In ``pyproject.toml`` the tables stand under ``[tool.sqlspec]``. A table has the options of a config;
    ``scheme`` selects the database where there is no ``url``, ``password_file`` and ``url_file`` name files.

    Raises:
        ConfigError: the file does not parse, or a value cannot be used; the message names the line.
    """
    configs, problem, field = _read_file(path)
    if problem:
        # made here: the frames that hold passwords are not in its traceback
        raise ConfigError(problem, field)
    return configs


def _read_file(path: Path) -> tuple[dict[str, SyncDatabaseConfig], str, str | None]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables: Any = tomllib.loads(text)
    except OSError as error:
        return {}, f"{path}: {error.strerror}", None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, f"{path} does not parse: {error}", None
    section = ("tool", "sqlspec") if path.name == "pyproject.toml" else ()
    for key in section:
        tables = tables.get(key, {}) if isinstance(tables, dict) else {}
    configs: dict[str, SyncDatabaseConfig] = {}
    if isinstance(tables, dict):
        for name, table in tables.items():
            try:
                configs[name] = from_table(name, table)
            except ConfigError as error:
                line = _line_of(text, (*section, name), error.field)
                return {}, f"{path}, line {line}, [{'.'.join((*section, name))}]: {error}", error.field
    if not configs:
        table_name = ".".join((*section, "primary"))
        return {}, f"{path} describes no database: write a table such as [{table_name}] with a url", None
    return configs, "", None


def from_table(name: str, table: Any) -> SyncDatabaseConfig:
    """Return the config that a mapping describes, as a table of `read_toml` does; what calls this raises anew.

    Raises:
        ConfigError: a value cannot be used. Frames of its traceback hold passwords.
    """
    if not name:
        raise ConfigError("the name of a database must not be empty")
    if not isinstance(table, dict):
        raise ConfigError("a database is a table with the options of its config")
    values = dict(table)
    for key in ("url", "scheme", *_FILES):
        if key in values and not isinstance(values[key], str):
            raise ConfigError(f"{key} must be a string", key)
    for key, field in _FILES.items():
        if key in values:
            if field in values:
                raise ConfigError(f"{field} and {key} are both given: keep one", key)
            values[field] = _read_secret(Path(values.pop(key)), key).get_secret_value()
    adapter = _adapter_for(values.get("url"), values.pop("scheme", None))
    return _build(adapter, values)


def _adapter_for(url: str | None, scheme: str | None) -> _Adapter:
    written = url.partition(":")[0].partition("+")[0].strip() if url else None
    if scheme and written and _ADAPTERS.get(scheme) is not _ADAPTERS.get(written):
        raise ConfigError("the scheme of the url is another: keep one", "scheme")
    adapter = _ADAPTERS.get(written or scheme or "postgresql")
    if adapter is None:
        raise ConfigError(_NO_ADAPTER, "url" if written else "scheme")
    return adapter


def _build(adapter: _Adapter, values: dict[str, Any]) -> SyncDatabaseConfig:
    config = adapter(**values)
    missing = driver_for(config, is_async=config.is_async_only).missing()
    if missing is not None:
        raise ConfigError(missing)
    return config


def _read_secret(path: Path, field: str) -> SecretStr:
    try:
        return SecretStr(path.read_text(encoding="utf-8-sig").rstrip("\r\n"))
    except OSError as error:
        raise ConfigError(f"{field}: {path}: {error.strerror}", field) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{field}: {path} is not UTF-8 text", field) from None


def _line_of(text: str, table: tuple[str, ...], field: str | None) -> int:
    """Return the line where a table, or a field in it, begins: the first without which the parser misses it."""
    lines = text.splitlines(keepends=True)
    wanted, begins, complete = (table if field is None else (*table, field)), {table: 1}, 0
    found: set[tuple[str, ...]] = set()
    for number in range(1, len(lines) + 1):
        try:
            content: Any = tomllib.loads("".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            # in the middle of a value of several lines
            continue
        for path in {table, wanted} - found:
            if _has(content, path):
                begins[path] = complete + 1
                found.add(path)
        complete = number
    return begins.get(wanted, begins[table])


def _has(content: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
