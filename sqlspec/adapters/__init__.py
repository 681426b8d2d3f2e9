"""A config for each database, and how its drivers do what sqlspec needs."""

from sqlspec.adapters.driver import Driver, TransactionOptions, connection_of
from sqlspec.adapters.mysql import MySQLConfig, MySQLPoolConfig
from sqlspec.adapters.postgresql import PostgreSQLConfig, PostgreSQLPoolConfig
from sqlspec.adapters.sqlite import SQLiteConfig, SQLiteConnectionConfig
from sqlspec.exceptions import ConfigError

__all__ = [
    "Driver",
    "MySQLConfig",
    "MySQLPoolConfig",
    "PostgreSQLConfig",
    "PostgreSQLPoolConfig",
    "SQLiteConfig",
    "SQLiteConnectionConfig",
    "TransactionOptions",
    "connection_of",
    "driver_for",
]


def driver_for(config: object, *, is_async: bool = False) -> Driver:
    """Return what knows how to connect to the database of a config.

    Raises:
        sqlspec.exceptions.ConfigError: the config is of no database, or its URL names a driver of the other kind.
    """
    if isinstance(config, (PostgreSQLConfig, MySQLConfig, SQLiteConnectionConfig)):
        return config.async_driver() if is_async else config.driver()
    raise ConfigError(f"{type(config).__name__} names no database: use PostgreSQLConfig, MySQLConfig or SQLiteConfig")
