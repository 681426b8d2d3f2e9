"""What is done after something has failed, or was cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver
from sqlspec.adapters.shield import shield

__all__ = ["clean_up_after", "recover"]

# Seconds in which the database must have ended a statement whose task was cancelled.
_PATIENCE = 5.0


def recover(driver: Driver, connection: Any, cursor: Any) -> bool:
    """End a cancelled statement, also on the server, and roll back; tell whether the connection can be kept."""
    recovery = greenlet_spawn(driver.within, connection, driver.recover, connection, cursor)
    try:
        recovered: bool = await_only(_shielded(asyncio.wait_for(recovery, _PATIENCE)))
    except (Exception, asyncio.CancelledError):  # noqa: BLE001  # the connection is closed, the cancellation goes on
        return False
    return recovered


async def _shielded(work: Awaitable[bool]) -> bool:
    with shield():
        return await work


def clean_up_after(error: BaseException, what: str, work: Callable[[], object]) -> None:
    """Do this without hiding the first error, which is the one to see; a second one becomes a note on it."""
    try:
        work()
    except Exception as second:  # noqa: BLE001  # told with the first one
        error.add_note(f"sqlspec: {what} failed as well: {type(second).__name__}: {second}")
