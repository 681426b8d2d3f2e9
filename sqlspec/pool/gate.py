"""The gate between connecting and forking: while one thread forks, no other one connects.

A child process inherits each lock as it is at that moment, with nobody who would release it. Drivers have some, which
only those who connect hold for a while (Kerberos has one, in libpq, and so have TLS and the look-up of names), and of
which no child is told.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from itertools import repeat
from threading import get_ident
from typing import ParamSpec, TypeVar

__all__ = ["PATIENCE", "PAUSE", "connecting", "follow_forks", "wait_for_connects"]

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger("sqlspec.pool")

# Seconds that a fork waits at most: connecting takes some hundredths of one, and longer only where it waits for a
# server, holding no lock.
PATIENCE = 2.0
# Seconds that who connects waits at most for a fork: some hook of the application's may wait for that very thread.
_LONGEST = 2 * PATIENCE
# Seconds between two looks. Nothing here has a lock, of which a child would inherit a copy.
PAUSE = 0.002

# Who connects, and in which thread; which threads fork. Each step on them is atomic.
_connects: dict[object, int] = {}
_forks: dict[int, bool] = {}
# The connects that what runs here is part of, in whatever thread.
_own: ContextVar[tuple[object, ...]] = ContextVar("_own", default=())


def connecting(sleep: Callable[[float], object], connect: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what connects; while another thread forks, wait before.

    Args:
        sleep: waits for so many seconds in the way of the caller, a thread or a task.
        connect: is called with the other arguments.

    Returns what that returns. Thread-safe.
    """
    connect_here, outer, until = object(), _own.get(), time.monotonic() + _LONGEST
    try:
        _own.set((*outer, connect_here))
        _connects[connect_here] = get_ident()
        # Looked at after that: who forks says so first, and looks for those who connect then. It waits already for
        # what this is a part of.
        while _others_fork() and _connects.keys().isdisjoint(outer) and time.monotonic() < until:
            del _connects[connect_here]
            sleep(PAUSE)
            _connects[connect_here] = get_ident()
        return connect(*args, **kwargs)
    finally:
        # no interrupt comes before this is done: Python looks for them after calls
        _connects.pop(connect_here, None)
        _own.set(outer)


def _others_fork() -> bool:
    here = get_ident()
    return any(thread != here for thread in list(_forks))


def _others_connect() -> bool:
    # Who forks in the middle of connecting does not wait for itself. Nor does a task's loop: its tasks go on later, and
    # none of them is in the middle of a call of its driver's.
    here, own = get_ident(), _own.get()
    return any(thread != here and connect not in own for connect, thread in _connects.copy().items())


def wait_for_connects(until: float) -> None:
    """Wait until nobody connects in another thread, or until that moment; in the thread that forks."""
    while _others_connect():
        if time.monotonic() >= until:
            _logger.warning("a process forks while a thread connects: its child may hang when it connects as well")
            return
        time.sleep(PAUSE)


# Functions of C alone: Python looks for interrupts in its own, and none may come between a fork and these.
_announce = partial(next, map(_forks.__setitem__, iter(get_ident, None), repeat(True)))
_withdraw = partial(next, map(_forks.pop, iter(get_ident, None), repeat(False)))


def follow_forks(before: Callable[[], object], in_child: Callable[[], object]) -> None:
    """Close the gate over each fork from now on; call one of these behind the closed gate, the other in the child."""
    os.register_at_fork(before=before, after_in_child=_forks.clear)
    # of the hooks before a fork, the one that is registered last runs first
    os.register_at_fork(before=_announce, after_in_parent=_withdraw, after_in_child=_connects.clear)
    os.register_at_fork(after_in_child=in_child)
