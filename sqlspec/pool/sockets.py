"""The socket of a driver's connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["Socket", "fileno_of"]


def fileno_of(connection: Any) -> Callable[[], int]:
    """Return what tells the socket of a connection; asyncpg and asyncmy have it in a transport of asyncio's."""
    connection = getattr(connection, "driver_connection", connection)
    if hasattr(connection, "fileno"):
        return connection.fileno  # type: ignore[no-any-return]  # drivers have no common type
    transport = connection._transport
    return lambda: int(transport.get_extra_info("socket").fileno())


class Socket:
    """Be the socket of a connection, as far as it can be shut down from another thread.

    It is looked up beforehand: mysqlclient tells it to nobody else while a call is under way.
    """

    __slots__ = ("_inode", "_number")

    def __init__(self, connection: Any) -> None:
        self._number = fileno_of(connection)()
        self._inode = os.fstat(self._number).st_ino

    def shut_down(self) -> None:
        """End what is sent and received: whoever waits for it goes on. Does nothing where it has been closed."""
        try:
            copy = os.dup(self._number)
        except OSError:
            return
        with socket.socket(fileno=copy) as end:
            # by now the number may be another one's
            if os.fstat(copy).st_ino == self._inode:
                end.shutdown(socket.SHUT_RDWR)
