"""Units of work on one connection: DB-API connections and sessions."""

from sqlspec.session.aio import AsyncConnection, AsyncCursor, AsyncSavepoint, AsyncSession, AsyncStream, PendingResult
from sqlspec.session.bulk import copy_rows
from sqlspec.session.connection import Connection, Cursor
from sqlspec.session.prepared import PreparedStatement, PreparedStatementCache
from sqlspec.session.savepoint import Savepoint
from sqlspec.session.session import Session

__all__ = [
    "AsyncConnection",
    "AsyncCursor",
    "AsyncSavepoint",
    "AsyncSession",
    "AsyncStream",
    "Connection",
    "Cursor",
    "PendingResult",
    "PreparedStatement",
    "PreparedStatementCache",
    "Savepoint",
    "Session",
    "copy_rows",
]
