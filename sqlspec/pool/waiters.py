"""Those who wait for a connection, and what they are given."""

from __future__ import annotations

import math
import threading
from contextvars import Context
from typing import Any

from sqlspec.pool.places import Owner

__all__ = ["Waiter"]

_DECISION = "decision"


class Waiter:
    """Wait in a thread until somebody decides, or for some seconds.

    A waiter is decided once: by who offers it something, or by itself, which gives up. `offer` is atomic, so that
    nothing is given to somebody who has gone.
    """

    __slots__ = ("_gate", "context", "decision", "is_starved", "owner", "since")
    # whether there is nobody any more who could be woken
    is_gone = False

    def __init__(self, owner: Owner, context: Context | None = None) -> None:
        self.owner = owner
        # the context variables with which somebody else may connect for it
        self.context = context
        # it has waited long enough to connect by itself
        self.is_starved = False
        # when it began, by the monotonic clock
        self.since = math.inf
        # empty until it is decided; setdefault() on a dictionary is the atomic step
        self.decision: dict[str, Any] = {}
        self._gate = threading.Lock()
        self._gate.acquire()

    def offer(self, outcome: object) -> Any:
        """Return what is decided: this outcome, or what came before it."""
        return self.decision.setdefault(_DECISION, outcome)

    def wake(self) -> None:
        """Let it look at the decision. Harmless when repeated; never blocks."""
        try:  # noqa: SIM105  # suppress() would cost more than the rest
            self._gate.release()
        except RuntimeError:
            pass

    def wait(self, seconds: float) -> None:
        """Return when woken, or after so many seconds."""
        self._gate.acquire(True, seconds if seconds > 0.0 else 0.0)
