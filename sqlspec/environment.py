"""Configs from environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.exceptions import ConfigError

__all__ = ["EnvironmentConfig"]

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
            read = cls(_env_prefix=prefix)
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
        scheme = url.get_secret_value().partition(":")[0].partition("+")[0] if url else self.scheme or "postgresql"
        adapter = _ADAPTERS.get(scheme)
        if adapter is None:
            raise ConfigError(
                f"{prefix}{'URL' if url else 'SCHEME'}: there is no adapter for it; there are {', '.join(_ADAPTERS)}"
            )
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
        try:
            return SecretStr(path.read_text(encoding="utf-8").rstrip("\r\n"))
        except OSError as error:
            raise ConfigError(f"{variable}_FILE: {error.strerror}") from None
