"""What is done for a connection whose statement was cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver

__all__ = ["recover"]

# Seconds in which the database must have ended a statement whose task was cancelled.
_PATIENCE = 5.0


def recover(driver: Driver, connection: Any, cursor: Any) -> bool:
    """End a cancelled statement, also on the server, and roll back; tell whether the connection can be kept."""
    recovery = greenlet_spawn(driver.recover, connection, cursor)
    try:
        recovered: bool = await_only(asyncio.wait_for(recovery, _PATIENCE))
    except (Exception, asyncio.CancelledError):  # noqa: BLE001  # the connection is closed, the cancellation goes on
        return False
    return recovered
