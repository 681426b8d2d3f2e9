"""What a user writes: typed, frozen descriptions of databases."""

from sqlspec.config.base import (
    InstrumentationConfig,
    NoPoolSyncConfig,
    PoolConfig,
    ResetOnReturn,
    SyncDatabaseConfig,
)
from sqlspec.config.url import build_secure_url

__all__ = [
    "InstrumentationConfig",
    "NoPoolSyncConfig",
    "PoolConfig",
    "ResetOnReturn",
    "SyncDatabaseConfig",
    "build_secure_url",
]
