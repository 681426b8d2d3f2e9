"""Pre-ping that spares the round trip: look at the socket first."""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import exc
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["PrePing"]

_LAST_CHECKIN = "sqlspec_last_checkin"


class PrePing:
    """Replace dead connections at checkout.

    A connection whose socket is quiet and which was in use a moment ago is taken as alive. A socket that is
    readable or hung up while idle is suspicious (the server said good-bye), and then, or after ``ping_after``
    idle seconds, the server is asked. Listen with `checkin` and `checkout` on a pool.
    """

    def __init__(self, dialect: Dialect, ping_after: float = 30.0) -> None:
        self._dialect = dialect
        self._ping_after = ping_after

    def checkin(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Note when the connection became idle."""
        record.info[_LAST_CHECKIN] = time.monotonic()

    def checkout(self, connection: Any, record: ConnectionPoolEntry, proxy: object) -> None:
        """Ask the server where there is doubt; have a dead connection replaced.

        Raises:
            sqlalchemy.exc.DisconnectionError: SQLAlchemy's pool then reconnects within the same checkout.
        """
        last = record.info.get(_LAST_CHECKIN)
        if last is None:
            return
        if time.monotonic() - last < self._ping_after and _is_quiet(connection):
            return
        try:
            alive = self._dialect.do_ping(connection)
        except self._dialect.loaded_dbapi.Error as error:
            raise exc.DisconnectionError("the server ended the connection") from error
        if not alive:
            raise exc.DisconnectionError("the connection does not answer")


def _is_quiet(connection: Any) -> bool:
    try:
        poll = select.poll()
        poll.register(_fileno(connection), select.POLLIN | select.POLLPRI)
        return not poll.poll(0)
    except Exception:  # noqa: BLE001  # a driver refuses fileno() on a closed connection, each in its own class
        return False


def _fileno(connection: Any) -> int:
    """Return the socket of a driver's connection; asyncpg and asyncmy have it in a transport of asyncio's."""
    connection = getattr(connection, "driver_connection", connection)
    if hasattr(connection, "fileno"):
        return int(connection.fileno())
    return int(connection._transport.get_extra_info("socket").fileno())
