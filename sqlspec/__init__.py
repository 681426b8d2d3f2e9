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
from sqlspec.health import DatabaseHealth, HealthReport, check_health, health_check
from sqlspec.operations import WarmUp, awarm_pool, warm_pool
from sqlspec.pool import AdaptivePool, ConnectionFacts, Holder, PoolMetrics, PoolStats, RecyclingStrategy
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
    "AdaptivePool",
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
    "DatabaseHealth",
    "EnvironmentConfig",
    "ErrorKind",
    "HealthReport",
    "Holder",
    "InstrumentationConfig",
    "LoadError",
    "PendingResult",
    "PoolClosed",
    "PoolMetrics",
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
    "WarmUp",
    "awarm_pool",
    "awith_retry",
    "build_secure_url",
    "check_health",
    "classify",
    "copy_rows",
    "health_check",
    "warm_pool",
    "with_retry",
]
