"""What both colours of the same call share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

__all__ = ["outcome_of"]

T = TypeVar("T")


def outcome_of(func: Callable[[], T], instead: str) -> T:
    """Return what a function returns, where that is an outcome and not something to be awaited.

    Raises:
        TypeError: the function is asynchronous; it says what to await instead.
    """
    result = func()
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            # it would warn that nobody awaits it
            result.close()
        raise TypeError(f"{func!r} is asynchronous: await {instead}() instead")
    return result
