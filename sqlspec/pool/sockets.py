"""The socket of a driver's connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["Socket", "fileno_of", "socket_of"]


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

    def lead_nowhere(self) -> bool:
        """Have this process, and no other one, read and write nothing over it; return whether it was open."""
        try:
            # by now the number may be another one's
            is_open = os.fstat(self._number).st_ino == self._inode
        except OSError:
            is_open = False
        if is_open:
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(nowhere, self._number, inheritable=False)
            finally:
                os.close(nowhere)
        return is_open


def socket_of(connection: Any) -> Socket | None:
    """Return the socket of a connection; None where it has none, or none any more."""
    try:
        return Socket(connection)
    except Exception:  # noqa: BLE001  # it tells so in its driver's own class
        return None
