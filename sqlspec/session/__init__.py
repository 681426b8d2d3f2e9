"""Units of work on one connection: DB-API connections and sessions."""

from sqlspec.session.connection import Connection, Cursor
from sqlspec.session.session import Savepoint, Session

__all__ = ["Connection", "Cursor", "Savepoint", "Session"]
