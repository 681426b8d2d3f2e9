"""Configs from environment variables and TOML files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.exceptions import ConfigError

__all__ = ["EnvironmentConfig", "read_toml"]

_ADAPTERS: dict[str, type[SyncDatabaseConfig]] = {
    scheme: config for config in (PostgreSQLConfig, MySQLConfig, SQLiteConfig) for scheme in config.schemes
}


class EnvironmentConfig(BaseSettings):
    """Read a database's config from the environment.

    ``DB_URL``, or ``DB_HOST``, ``DB_PORT``, ``DB_NAME``, ``DB_USER``, ``DB_PASSWORD``; ``DB_SCHEME`` selects
    the database (default postgresql); ``DB_PASSWORD_FILE`` and ``DB_URL_FILE`` name files that hold the value;
    pool options go by their names (``DB_POOL_SIZE``).
    """

    model_config = SettingsConfigDict(extra="ignore", hide_input_in_errors=True, env_ignore_empty=True)

    scheme: str | None = None
    url: SecretStr | None = None
    url_file: Path | None = None
    host: str | None = None
    port: int | None = None
    name: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None

    pool_size: int | None = None
    max_overflow: int | None = None
    pool_timeout: float | None = None
    pool_recycle: int | None = None
    pool_pre_ping: bool | None = None
    connect_timeout: float | None = None
    command_timeout: float | None = None
    autocommit: bool | None = None
    echo: bool | None = None

    @classmethod
    def from_env(cls, prefix: str = "DB_") -> SyncDatabaseConfig:
        """Return the config that the variables with this prefix describe.

        Raises:
            ConfigError: a variable cannot be used; the message names it, never its value.
        """
        problem = None
        try:
            read = cls(_env_prefix=prefix)  # type: ignore[call-arg]  # an argument of BaseSettings, hidden from checkers
        except ValidationError as error:
            problem = "; ".join(
                f"{prefix}{str(item['loc'][0]).upper()}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            )
        if problem is not None:
            raise ConfigError(problem)
        return read._build(prefix)

    def _build(self, prefix: str) -> SyncDatabaseConfig:
        url = self._secret("url", prefix)
        adapter = _adapter(url.get_secret_value() if url else None, self.scheme)
        if adapter is None:
            raise ConfigError(f"{prefix}{'URL' if url else 'SCHEME'}: {_NO_ADAPTER}")
        values: dict[str, Any] = {
            "url": url.get_secret_value() if url else None,
            "host": self.host,
            "port": self.port,
            "database": self.name,
            "username": self.user,
            "password": self._secret("password", prefix),
        }
        if not any(value is not None for value in values.values()):
            raise ConfigError(f"no variable names a database: set {prefix}URL, or {prefix}HOST and {prefix}NAME")
        options = self.model_dump(exclude_none=True, include=set(SyncDatabaseConfig.model_fields) - set(values))
        return adapter(**{key: value for key, value in values.items() if value is not None}, **options)

    def _secret(self, field: str, prefix: str) -> SecretStr | None:
        value: SecretStr | None = getattr(self, field)
        path: Path | None = getattr(self, f"{field}_file")
        if path is None:
            return value
        variable = f"{prefix}{field.upper()}"
        if value is not None:
            raise ConfigError(f"{variable} and {variable}_FILE are both set: keep one")
        return _read_secret(path, f"{variable}_FILE")


_NO_ADAPTER = f"there is no adapter for it; there are {', '.join(sorted(_ADAPTERS))}"
_FILES = {"password_file": "password", "url_file": "url"}


def read_toml(path: Path) -> dict[str, SyncDatabaseConfig]:
    """Return the configs that a TOML file describes, one table a name.

    In ``pyproject.toml`` the tables stand under ``[tool.sqlspec]``. A table has the options of a config;
    ``scheme`` selects the database where there is no ``url``, ``password_file`` and ``url_file`` name files.

    Raises:
        ConfigError: the file does not parse, or a value cannot be used; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not parse: {error}") from None
    section = ""
    if path.name == "pyproject.toml":
        section = "tool.sqlspec."
        content = content.get("tool", {}).get("sqlspec", {})
    configs = {}
    for name, table in content.items():
        try:
            configs[name] = _from_table(table)
        except ConfigError as error:
            place = _line_of(text, section + name, error.field)
            problem, field = f"{path}{place}, [{section}{name}]: {error}", error.field
            raise ConfigError(problem, field) from None
    if not configs:
        raise ConfigError(f"{path} describes no database: write a table such as [{section}primary] with a url")
    return configs


def _from_table(table: Any) -> SyncDatabaseConfig:
    if not isinstance(table, dict):
        raise ConfigError("a database is a table with the options of its config")
    values = dict(table)
    for key, field in _FILES.items():
        if key in values:
            if field in values:
                raise ConfigError(f"{field} and {key} are both given: keep one", key)
            values[field] = _read_secret(Path(str(values.pop(key))), key).get_secret_value()
    scheme = values.pop("scheme", None)
    adapter = _adapter(values.get("url"), scheme)
    if adapter is None:
        raise ConfigError(_NO_ADAPTER, "url" if "url" in values else "scheme")
    return adapter(**values)


def _adapter(url: str | None, scheme: str | None) -> type[SyncDatabaseConfig] | None:
    named = str(url).partition(":")[0].partition("+")[0] if url else scheme or "postgresql"
    return _ADAPTERS.get(named)


def _read_secret(path: Path, source: str) -> SecretStr:
    try:
        return SecretStr(path.read_text(encoding="utf-8").rstrip("\r\n"))
    except OSError as error:
        raise ConfigError(f"{source}: {path}: {error.strerror}", source) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: {path} is not UTF-8 text", source) from None


def _line_of(text: str, table: str, field: str | None) -> str:
    """Return where a table, or a field in it, stands, as far as a look at the text tells."""
    header = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]")
    inside, found = False, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            inside = header.match(line) is not None
            found = f", line {number}" if inside else found
        elif inside and field is not None and re.match(rf"\s*[\"']?{re.escape(field)}[\"']?\s*=", line):
            return f", line {number}"
    return found
