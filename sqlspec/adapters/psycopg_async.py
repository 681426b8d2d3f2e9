"""psycopg's asynchronous connection and cursor, with what they lack. To be imported where psycopg is installed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from sqlspec.adapters.shield import PAUSES, shield

__all__ = ["PipelineCursor", "ShieldedConnection"]


class ShieldedConnection(psycopg.AsyncConnection[Any]):
    """Be psycopg's connection that ends a cancelled statement on the server under anyio as well.

    psycopg asks the server to cancel, and reads its answer, in the task that is cancelled. Where that is interrupted
    in turn, or the server does not listen yet, psycopg closes the connection, and the statement runs on.
    """

    _waiting: asyncio.Task[Any] | None = None
    _ending: contextlib.AsyncExitStack | None = None

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for the server, as psycopg; what it does after a cancellation is not cancelled."""
        self._waiting = asyncio.current_task()
        try:
            return await super().wait(*arguments, **options)
        finally:
            self._waiting = None
            if self._ending is not None:
                ending, self._ending = self._ending, None
                await ending.aclose()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to end the statement, as psycopg; and again, until `wait` has its answer."""
        if self._waiting is asyncio.current_task() and self._ending is None:
            self._ending = contextlib.AsyncExitStack()
            self._ending.enter_context(shield())
            await super().cancel_safe(timeout=timeout)
            await self._ending.enter_async_context(self._insisting(timeout))
        else:
            # for another task, which has not been cancelled
            await super().cancel_safe(timeout=timeout)

    @contextlib.asynccontextmanager
    async def _insisting(self, timeout: float) -> AsyncIterator[None]:
        answered = asyncio.Event()

        async def insist() -> None:
            for pause in PAUSES:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await answered.wait()
                        return
                await self.cancel_safe(timeout=timeout)

        insisting = asyncio.create_task(insist())
        try:
            yield
        finally:
            answered.set()
            try:
                # one that is under way would end what comes next on this connection
                await insisting
            except BaseException as error:
                self.pgconn.finish()
                # an error of the asking does not hide that the task is cancelled
                if not isinstance(error, Exception):
                    raise


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
