"""OneAtATime: what serves one task at a time."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["OneAtATime"]

R = TypeVar("R")


class OneAtATime(ABC):
    """Refuse a second task while one waits for the database: one of them could get what the other one asked for.

    asyncmy reads whatever comes; and two tasks would each check a connection out, of which one would be lost.
    """

    _closed: bool
    # the task that is at something; what it takes rows from to load them may ask for more
    _user: asyncio.Task[Any] | None = None

    def _in_task(self, work: Callable[..., R], *arguments: object) -> R:
        """Do this for a task, which may have to wait in it.

        Raises:
            Exception: another task is at something; nothing is done.
        """
        before, task = self._user, asyncio.current_task()
        if before is not None and before is not task:
            raise self._refusal_of_a_second_task()
        self._user = task
        try:
            return work(*arguments)
        finally:
            self._user = before

    def _leave_in_task(self, error: BaseException | None, work: Callable[..., R], *arguments: object) -> R | None:
        """Do the last thing of a task, after this error; where another task is at something, close the connection.

        Raises:
            Exception: that was so, and there was no error before.
        """
        if self._closed:
            return work(*arguments)
        if self._user is None or self._user is asyncio.current_task():
            return self._in_task(work, *arguments)
        self._abandon()
        if error is None:
            raise self._refusal_of_a_second_task()
        return None

    @abstractmethod
    def _refusal_of_a_second_task(self) -> Exception: ...

    @abstractmethod
    def _abandon(self) -> None:
        """Close the connection for good, whatever a task does with it."""
