"""What a user writes: typed, frozen descriptions of databases."""

from sqlspec.config.base import (
    InstrumentationConfig,
    NoPoolSyncConfig,
    PoolConfig,
    SyncDatabaseConfig,
)
from sqlspec.config.url import build_secure_url

__all__ = [
    "InstrumentationConfig",
    "NoPoolSyncConfig",
    "PoolConfig",
    "SyncDatabaseConfig",
    "build_secure_url",
]
