"""Threads that ask a pool for connections, one after the other."""

from __future__ import annotations

import threading
from typing import Any

from tests.servers import wait_until


class Caller:
    """Ask for a connection in a thread of its own, and keep it until told to give it back."""

    def __init__(self, pool: Any, timeout: float | None = None, name: str | None = None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._may_go = threading.Event()
        self.has_answer = threading.Event()
        self.connection: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name=name)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.connection = self._pool.connect(timeout=self._timeout) if self._timeout else self._pool.connect()
        except BaseException as error:  # kept for the test
            self.error = error
        self.has_answer.set()
        if self.connection is not None:
            self._may_go.wait(20)
            self.connection.close()

    def answer(self) -> Any:
        """Return the connection; raise what was raised instead."""
        assert self.has_answer.wait(20), "the caller still waits"
        if self.error is not None:
            raise self.error
        return self.connection

    def give_back(self) -> None:
        """Check the connection in, and end."""
        self._may_go.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def line_up(pool: Any, count: int, timeout: float | None = None) -> list[Caller]:
    """Return so many callers, who wait in this order."""
    callers = []
    for _ in range(count):
        waiting = pool.stats().waiters
        callers.append(Caller(pool, timeout))
        wait_until(lambda waiting=waiting: pool.stats().waiters == waiting + 1)  # type: ignore[misc]  # a default binds it
    return callers
