"""When a connection is worn: rules over what is known of it, without a clock."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sqlspec.exceptions import ConfigError

__all__ = ["JITTER", "ConnectionFacts", "RecyclingStrategy", "shortened"]

# The share by which a limit is shortened at most. HikariCP had a tenth of that, and connections that were opened
# together were still replaced together (HikariCP#2035).
JITTER = 0.25


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """Hold what is known of a connection between two checkouts.

    Attributes:
        age: seconds since it was opened.
        query_count: statements that ran on it.
        error_count: errors of the driver while it was checked out.
        idle_seconds: since it was last used; 0 at its checkin.
        spread: from 0 to 1, drawn when it was opened, so that limits differ from connection to connection.
    """

    age: float = 0.0
    query_count: int = 0
    error_count: int = 0
    idle_seconds: float = 0.0
    spread: float = 0.0

    def when_new(self) -> ConnectionFacts:
        """Return what was known of the connection when it was opened."""
        return dataclasses.replace(self, age=0.0, query_count=0, error_count=0, idle_seconds=0.0)


def shortened(limit: float, jitter: float, spread: float) -> float:
    """Return the limit of one connection: at most a share of ``jitter`` below the one of all, and never above it."""
    return limit * (1.0 - jitter * spread)


class RecyclingStrategy:
    """Say which connections are closed, and replaced where somebody needs one.

    A connection that reaches a limit (``>=``) is not handed out again. It is asked for at checkin, at checkout, and of
    idle connections from time to time; never while a connection is in use. For a rule of your own override
    `should_recycle`.

    Args:
        max_age: seconds since the connection was opened.
        max_queries: statements that ran on it.
        max_errors: errors of the driver while it was checked out.
        jitter: each connection's limits are lower by a share of its own, up to this one, so that connections that
            were opened together are not replaced together.

    Raises:
        ConfigError: a limit is not above 0, or ``jitter`` not from 0 to below 1.
    """

    def __init__(
        self,
        max_age: float | None = None,
        max_queries: int | None = None,
        max_errors: int | None = None,
        jitter: float = JITTER,
    ) -> None:
        for name, limit in {"max_age": max_age, "max_queries": max_queries, "max_errors": max_errors}.items():
            if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
                raise ConfigError(f"{name}={limit!r}: give a number above 0, or None for no limit", name)
        if not (isinstance(jitter, (int, float)) and 0 <= jitter < 1):
            raise ConfigError(f"jitter={jitter!r}: give a share from 0 to below 1", "jitter")
        self.max_age = max_age
        self.max_queries = max_queries
        self.max_errors = max_errors
        self.jitter = jitter

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def should_recycle(self, facts: ConnectionFacts) -> bool:
        """Tell whether the connection has reached a limit.

        Called from many threads at a time, also in finalisers: it must be quick, and change nothing. Where it raises,
        that is logged once and the connection is kept. A connection that nobody has used yet is recycled only if the
        answer for a new one would be another.
        """
        return any(
            limit is not None and value >= shortened(limit, self.jitter, facts.spread)
            for value, limit in (
                (facts.age, self.max_age),
                (facts.query_count, self.max_queries),
                (facts.error_count, self.max_errors),
            )
        )
