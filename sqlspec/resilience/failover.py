"""After a failover: a connection to a server that takes no writes any more is of no use to who wants to write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from sqlspec.resilience.classification import ErrorKind, classify

__all__ = ["follow_failover"]

# A connection that was opened less than so many seconds ago says that connecting anew leads to no other server yet:
# otherwise writes that keep failing would have all connections replaced all the time.
_SETTLED = 0.5


class Driver(Protocol):
    """Know what the driver and the server say about writes."""

    def refuses_writes(self, connection: Any, error: Exception) -> bool: ...

    def is_autocommit(self, connection: Any) -> bool: ...


def follow_failover(dialect: Any, driver: Driver, is_asked_for: Callable[[Any], bool]) -> None:
    """Take it for a disconnect where a server refuses a write since it is the primary no more.

    So the connection is closed, and no other one that was opened before is lent again: they lead to the same server.
    Such servers keep their connections open, which then pass for alive for ever.

    Args:
        dialect: that of one engine.
        driver: what can tell whether it was the server by itself.
        is_asked_for: tells of the proxy of a connection whether its borrower has asked to read only.
    """
    is_disconnect = dialect.is_disconnect

    def is_disconnect_or_demotion(error: Any, connection: Any, cursor: Any) -> bool:
        kind = classify(error)
        # of more words for it than SQLAlchemy knows: mysqlclient has another one under TLS
        if kind is ErrorKind.DISCONNECT or is_disconnect(error, connection, cursor):
            return True
        if connection is None or kind is not ErrorKind.READ_ONLY or is_asked_for(connection):
            return False
        bare = getattr(connection, "dbapi_connection", connection)
        if not driver.refuses_writes(bare, error):
            return False
        # for `is_safe_to_repeat`: what ran before in autocommit stays, and nobody knows what that was
        error.is_undone = not driver.is_autocommit(bare)
        opened_at = getattr(getattr(connection, "_connection_record", None), "opened_at", None)
        return opened_at is None or time.monotonic() - opened_at > _SETTLED

    dialect.is_disconnect = is_disconnect_or_demotion
