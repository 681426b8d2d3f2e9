"""run_in_greenlet: SQLAlchemy's ``greenlet_spawn``, in greenlets that serve again.

To make a greenlet takes longer than most of what a session does in one: Python maps memory for its frames, and unmaps
it at its end.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

# without greenlet SQLAlchemy has no asyncio, and nothing here is called
with contextlib.suppress(ImportError):
    from greenlet import getcurrent, greenlet

__all__ = ["run_in_greenlet"]

R = TypeVar("R")

# Idle ones that a thread keeps: as many as its tasks mostly have at work at the same moment.
_KEPT = 100
_DONE = object()


class _Idle(threading.local):
    """Hold the greenlets of a thread that have nothing to do."""

    def __init__(self) -> None:
        self.greenlets: list[Any] = []


_idle = _Idle()


async def run_in_greenlet(work: Callable[..., R], *arguments: Any) -> R:
    """Call a function that waits for the database by SQLAlchemy's `await_only`, while the event loop goes on.

    It runs in the context of the task. Cancellations and other errors of what it waits for are raised in it.
    """
    task, idle = getcurrent(), _idle.greenlets
    if idle:
        own = idle.pop()
        own.parent = task
    else:
        own = greenlet(_serve, task)
        own.switch()
        # by which SQLAlchemy knows that it may wait here
        own.__sqlalchemy_greenlet_provider__ = True
        if _is_deep():
            # what it calls is counted from here, wherever it would serve again: it is left behind
            idle = []
    known = sys.getrefcount(own)
    own.gr_context = task.gr_context
    # it ends with an error of the function
    awaited = own.switch(work, arguments)
    while awaited is not _DONE:
        try:
            value = await awaited
        except BaseException:  # noqa: BLE001  # raised where it is waited for
            own.parent = getcurrent()
            awaited = own.throw(*sys.exc_info())
        else:
            # an eager task may have begun in another greenlet
            own.parent = getcurrent()
            awaited = own.switch(value)
    outcome = own.outcome
    own.outcome = own.gr_context = None
    # Who else refers to it may be a greenlet made in it, whose end or next wait would be an answer to whatever it does
    # by then. And it refers to its parent, which must not live on for that, with all that it has begun.
    if len(idle) < _KEPT and sys.getrefcount(own) == known and own.parent.parent is None:
        idle.append(own)
    else:
        own.throw()
    return cast("R", outcome)


def _serve() -> None:
    # An idle one must refer to nothing of what it has done; nor to itself, since the garbage collector does not look
    # into its frames, and it would outlive its thread.
    parent = getcurrent().parent
    work, arguments = parent.switch()
    while True:
        parent = _end(work(*arguments))
        work = arguments = None
        # by the switch itself, not by the outcome, since a finaliser may run in between, and wait
        work, arguments = parent.switch(_DONE)


def _end(outcome: object) -> Any:
    own: Any = getcurrent()
    own.outcome = outcome
    return own.parent


def _is_deep() -> bool:
    try:
        sys._getframe(sys.getrecursionlimit() // 4)
    except ValueError:
        return False
    return True
