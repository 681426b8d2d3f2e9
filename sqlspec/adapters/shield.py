"""What must be done to its end, though the task is cancelled."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

__all__ = ["PAUSES", "shield"]

# Seconds to wait before PostgreSQL is asked again to end a statement: it does not remember that it was where the
# statement comes to it afterwards, as one does of thirty that are cancelled within milliseconds.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)


def shield() -> contextlib.AbstractContextManager[Any]:
    """Return a scope of anyio's that it does not cancel, where anyio is in use.

    Once it has cancelled a task, it does so again at every await. A web server cancels that way: what a statement
    leaves behind could not be ended, and the connection of each client that goes away would be closed.
    """
    anyio = sys.modules.get("anyio")
    return contextlib.nullcontext() if anyio is None else anyio.CancelScope(shield=True)
