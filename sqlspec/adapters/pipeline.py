"""psycopg's asynchronous cursor, whose executemany() is a pipeline. To be imported where psycopg is installed."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

__all__ = ["PipelineCursor"]


class PipelineCursor(psycopg.AsyncCursor[Any]):
    """Be psycopg's cursor that leaves no connection in pipeline mode."""

    async def executemany(self, *arguments: Any, **options: Any) -> None:
        """Run one statement once for each row, as psycopg; close the connection where that leaves it in a pipeline."""
        connection = self.connection
        # somebody's own pipeline is theirs to leave
        is_ours = not connection.pgconn.pipeline_status
        try:
            await super().executemany(*arguments, **options)
        except BaseException as error:
            # Cancelled on the way into the pipeline, or out of it, psycopg stays inside, and puts an error of its own
            # in the place of the cancellation: whoever ran a statement next would get no answer.
            if is_ours and not connection.closed and connection.pgconn.pipeline_status:
                await connection.close()
                task = asyncio.current_task()
                if task is not None and task.cancelling() and not isinstance(error, asyncio.CancelledError):
                    raise asyncio.CancelledError from error
            raise
