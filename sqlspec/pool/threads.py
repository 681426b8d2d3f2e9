"""The pool's own threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from sqlspec.pool.gate import end_thread

__all__ = ["start_thread"]


def start_thread(name: str, target: Callable[..., object], *arguments: object) -> bool:
    """Start a daemon thread; return whether there is one: not where the process has no threads left, or ends.

    Raises:
        BaseException: an interrupt came in between; the thread may run or not.
    """
    handled = sys.exception()
    try:
        if sys.is_finalizing():
            return False
        threading.Thread(target=_run, args=(target, *arguments), name=name, daemon=True).start()
    except RuntimeError as error:
        # Python may tell of an interrupt while it waits for the thread in this way
        cause = error.__context__
        if cause is not None and cause is not handled and not isinstance(cause, Exception):
            raise cause from None
        return False
    return True


def _run(target: Callable[..., object], *arguments: object) -> None:
    try:
        target(*arguments)
    finally:
        end_thread()
