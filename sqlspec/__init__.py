"""The connection layer between Python applications and PostgreSQL, MySQL/MariaDB and SQLite."""

from sqlspec.config import InstrumentationConfig, build_secure_url
from sqlspec.environment import EnvironmentConfig
from sqlspec.exceptions import (
    CircuitOpenError,
    ConfigError,
    ConnectionLost,
    ConnectionTimeout,
    LoadError,
    PoolClosed,
    PoolTimeout,
    SQLSpecError,
    SQLSpecWarning,
)
from sqlspec.operations import WarmUp, awarm_pool, warm_pool
from sqlspec.pool import ConnectionFacts, Holder, PoolStats, RecyclingStrategy
from sqlspec.registry import SQLSpec
from sqlspec.resilience import CircuitBreaker, ErrorKind, awith_retry, classify, with_retry
from sqlspec.session import (
    AsyncConnection,
    AsyncCursor,
    AsyncSavepoint,
    AsyncSession,
    AsyncStream,
    Connection,
    Cursor,
    PendingResult,
    PreparedStatement,
    PreparedStatementCache,
    Savepoint,
    Session,
    copy_rows,
)

__all__ = [
    "AsyncConnection",
    "AsyncCursor",
    "AsyncSavepoint",
    "AsyncSession",
    "AsyncStream",
    "CircuitBreaker",
    "CircuitOpenError",
    "ConfigError",
    "Connection",
    "ConnectionFacts",
    "ConnectionLost",
    "ConnectionTimeout",
    "Cursor",
    "EnvironmentConfig",
    "ErrorKind",
    "Holder",
    "InstrumentationConfig",
    "LoadError",
    "PendingResult",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PreparedStatement",
    "PreparedStatementCache",
    "RecyclingStrategy",
    "SQLSpec",
    "SQLSpecError",
    "SQLSpecWarning",
    "Savepoint",
    "Session",
    "awith_retry",
    "WarmUp",
    "awarm_pool",
    "build_secure_url",
    "classify",
    "copy_rows",
    "with_retry",
    "warm_pool",
]
