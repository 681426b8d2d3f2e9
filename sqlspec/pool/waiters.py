"""Those who wait for a connection, and what they are given."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from contextvars import Context
from typing import Any

from sqlspec.pool.places import Owner

__all__ = ["Waiter"]

_DECISION = "decision"


class Waiter:
    """Wait in a thread until somebody decides, or until a deadline.

    A waiter is decided once: by who offers it something, or by itself, which gives up. `offer` is atomic, so that
    nothing is given to somebody who has gone.
    """

    def __init__(self, owner: Owner, context: Context | None = None) -> None:
        self.owner = owner
        # the context variables with which somebody else may connect for it
        self.context = context
        # setdefault() on a dictionary is the atomic step
        self._cell: dict[str, Any] = {}
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_decided(self) -> bool:
        """Tell whether an offer has been taken."""
        return _DECISION in self._cell

    def offer(self, outcome: object) -> Any:
        """Return what is decided: this outcome, or what came before it."""
        return self._cell.setdefault(_DECISION, outcome)

    def wake(self) -> None:
        """Let it look at the decision. Harmless when repeated; never blocks."""
        with contextlib.suppress(RuntimeError):
            self._gate.release()

    def wait(self, deadline: float) -> None:
        """Return when woken, or at the deadline on the monotonic clock."""
        if not self.is_decided:
            left = deadline - time.monotonic()
            self._gate.acquire(timeout=-1 if left == math.inf else min(max(left, 0.0), threading.TIMEOUT_MAX))
