"""asyncpg's connection, which tells of a COMMIT that was none. To be imported where asyncpg is installed."""

from __future__ import annotations

from typing import Any

import asyncpg

__all__ = ["CommittedConnection"]


class CommittedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Be asyncpg's connection that raises where the server answers COMMIT with ROLLBACK."""

    __slots__ = ()

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """Run a statement, as asyncpg; its transactions end by this as well.

        Raises:
            asyncpg.InFailedSQLTransactionError: an error had aborted the transaction, and it was rolled back.
        """
        status: str = await super().execute(query, *arguments, timeout=timeout)
        if status == "ROLLBACK" and query.upper().startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError("an error had aborted the transaction: it was rolled back")
        return status
