"""asyncpg's connection, with what it lacks. To be imported where asyncpg is installed."""

from __future__ import annotations

import contextlib
from typing import Any

import asyncpg

__all__ = ["CommittedConnection"]

# Seconds for the server's answer to a good-bye, which other drivers do not wait for at all.
_PATIENCE = 1.0


class CommittedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Be asyncpg's connection that raises where the server answers COMMIT with ROLLBACK, and closes in any case."""

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

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection, as asyncpg; without a timeout, one that does not answer is closed after a second."""
        if timeout is not None:
            await super().close(timeout=timeout)
            return
        with contextlib.suppress(TimeoutError):
            # it is aborted by then
            await super().close(timeout=_PATIENCE)
