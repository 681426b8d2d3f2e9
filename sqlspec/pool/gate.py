"""The gate between forks and what must not be under way in another thread meanwhile: connecting.

A child process inherits each lock as it is at that moment, with nobody who would release it. Drivers have some, which
only those who connect hold for a while (Kerberos has one, in libpq; TLS and the look-up of names have others), and no
driver is told of a fork. Python's locks of modules are of that kind as well, which importing a driver takes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from itertools import repeat
from threading import get_ident, get_native_id
from typing import ParamSpec, TypeVar

__all__ = ["PATIENCE", "PAUSE", "apart_from_forks", "end_thread", "follow_forks", "wait_for_works"]

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
# Works beyond which threads that have ended are looked for.
_MANY = 50

# What is being done apart from forks, and in which thread: calls, and the ends of threads, which are known by their
# numbers in the system. Then which threads fork. Each step on them is atomic.
_works: dict[object, int] = {}
_forks: dict[int, bool] = {}
# Those of them that what runs here is a part of, in whatever thread.
_own: ContextVar[tuple[object, ...]] = ContextVar("_own", default=())


def apart_from_forks(
    sleep: Callable[[float], object] | None, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call what connects, or what else holds locks of others; while another thread forks, wait before.

    Args:
        sleep: waits for so many seconds in the way of the caller, a thread or a task; None: the caller cannot wait,
            and a fork does, if it looks once more.
        work: is called with the other arguments.

    Returns what that returns. Thread-safe.
    """
    this, outer = object(), _own.get()
    try:
        _own.set((*outer, this))
        # a fork waits already for what this is a part of
        _enter(this, sleep if _works.keys().isdisjoint(outer) else None)
        return work(*args, **kwargs)
    finally:
        # no interrupt comes before this is done: Python looks for them after calls
        _works.pop(this, None)
        _own.set(outer)


def end_thread() -> None:
    """Say as the last thing in a thread that it ends, where TLS takes locks as well; while another one forks, wait."""
    this = get_native_id()
    _enter(this, time.sleep)
    if len(_works) > _MANY:
        # all of them: Python gives the numbers of threads that have ended to others
        for work in _works.copy():
            _is_over(work)


def _enter(this: object, sleep: Callable[[float], object] | None) -> None:
    here, until = get_ident(), time.monotonic() + _LONGEST
    _works[this] = here
    # looked at after that: who forks says so first, and looks for such work then
    while sleep and _others_fork() and time.monotonic() < until:
        del _works[this]
        sleep(PAUSE)
        _works[this] = here


def _others_fork() -> bool:
    here = get_ident()
    return any(thread != here for thread in list(_forks))


def _others_work() -> bool:
    # Who forks in the middle of connecting does not wait for itself. Nor does a task's loop: its tasks go on later, and
    # none of them is in the middle of a call of its driver's.
    here, own = get_ident(), _own.get()
    others = [work for work, thread in _works.copy().items() if thread != here and work not in own]
    return not all(map(_is_over, others))


def _is_over(work: object) -> bool:
    """Tell, and forget, whether this is the number of a thread that has ended; elsewhere than on Linux nobody knows."""
    is_over = isinstance(work, int) and not os.path.exists(f"/proc/self/task/{work}")
    if is_over:
        _works.pop(work, None)
    return is_over


def wait_for_works(until: float) -> None:
    """Wait until nobody connects in another thread, or until that moment; in the thread that forks."""
    while _others_work():
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
    os.register_at_fork(before=_announce, after_in_parent=_withdraw, after_in_child=_works.clear)
    os.register_at_fork(after_in_child=in_child)
