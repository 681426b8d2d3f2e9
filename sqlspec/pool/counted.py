"""CountedSlot: a place in a pool whose connections are recycled by a strategy."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from sqlspec.pool.recycling import ConnectionFacts
from sqlspec.pool.slot import Slot

__all__ = ["CountedSlot"]

_logger = logging.getLogger("sqlspec.pool")


class CountedSlot(Slot):
    """Be a slot that counts the statements and errors of its connection, and asks whether it is worn.

    A class of its own, so that counting costs nothing in pools without a strategy. It is asked between two checkouts
    only. What the answer at checkin means is done later: the next checkout replaces the connection, or housekeeping
    closes it, whichever comes first.
    """

    __slots__ = ("_text", "error_count", "is_used", "query_count", "spread")

    def __init__(self, home: Any) -> None:
        self.query_count = self.error_count = 0
        # whether anybody has had the connection
        self.is_used = False
        self.spread = 0.0
        super().__init__(home)

    # all ways of running statements note them here
    @property
    def statement(self) -> str | None:
        """Return the last statement of the borrower."""
        return self._text

    @statement.setter
    def statement(self, text: str | None) -> None:
        self._text: str | None = text
        if text is not None:
            self.query_count += 1

    def count_error(self) -> None:
        """Count an error of the driver."""
        self.error_count += 1

    def get_connection(self) -> Any:
        """Return the connection; a new one where the strategy says so, or as a slot without one."""
        mark = self.mark
        # one that nobody has had yet may have been opened for this very checkout
        if mark is not None and self.is_used and self.dbapi_connection is not None and mark[0] <= self.expires_at:
            self._expire_if_worn(mark[0], mark[0] - self.used_at())
        return super().get_connection()

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """Ask whether the connection is worn, and give the slot back."""
        try:
            if self.fairy_ref is not None and self.dbapi_connection is not None:
                self.is_used = True
                self._expire_if_worn(time.monotonic(), 0.0)
        finally:
            super().checkin(_fairy_was_created)

    def _connect_anew(self) -> Any:
        self.is_used = False
        self.spread = random.random()  # noqa: S311  # no secret
        connection = super()._connect_anew()
        # what SQLAlchemy itself asks on its first connection was nobody's statement
        self.query_count = self.error_count = 0
        return connection

    def _expire_if_worn(self, now: float, idle_seconds: float) -> None:
        if self.is_worn(now, idle_seconds):
            self.expires_at = min(self.expires_at, 0.0)

    def is_worn(self, now: float, idle_seconds: float) -> bool:
        """Tell what the strategy says of the connection; after an exception, that it is to be kept."""
        strategy = self.home._recycling
        age = now - (self.opened_at or now)
        facts = ConnectionFacts(age, self.query_count, self.error_count, idle_seconds, self.spread)
        try:
            if strategy is None or not strategy.should_recycle(facts):
                return False
            # Of one that nobody has had, a strategy that always says yes would have a connection opened and closed
            # again without end.
            return self.is_used or not strategy.should_recycle(facts.when_new())
        except Exception:
            if self.home._pool.is_news("recycling"):
                _logger.exception("%r failed: connections are kept, and nothing more is said about it", strategy)
            return False
