"""The socket of a driver's connection."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["Socket", "fileno_of", "socket_of"]

# Descriptors that lead nowhere, kept for the moment in which the process has none left: a socket can be copied onto one
# of them all the same, and one of them onto a socket. Adding and removing are atomic steps.
_spares: list[int] = []
# one to copy onto, one to copy from, and one more where two threads do it at the same time
_KEPT = 3


def _keep_spares() -> None:
    with contextlib.suppress(OSError):
        while len(_spares) < _KEPT:
            _spares.append(os.open(os.devnull, os.O_RDWR))


def _leads_nowhere(number: int) -> bool:
    """Tell whether it still does: daemons close all descriptors there are, and others get their numbers."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(os.devnull))
    except OSError:
        return False


def _take_spare() -> int | None:
    """Return a descriptor that leads nowhere, for the caller alone; None: there is none."""
    while _spares:
        with contextlib.suppress(IndexError):
            if _leads_nowhere(number := _spares.pop()):
                return number
    return None


def _give_back(number: int) -> None:
    """Have a spare descriptor lead nowhere again."""
    nowhere = _take_spare()
    if nowhere is None:
        os.close(number)
        return
    os.dup2(nowhere, number, inheritable=False)
    _spares.extend((nowhere, number))


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
        if len(_spares) < _KEPT:
            _keep_spares()

    def shut_down(self) -> None:
        """End what is sent and received: whoever waits for it goes on.

        Raises:
            OSError: it has been closed, or the process has not even a spare descriptor.
        """
        spare = _take_spare()
        try:
            copy = os.dup(self._number) if spare is None else os.dup2(self._number, spare, inheritable=False)
            try:
                # by now the number may be another one's
                if os.fstat(copy).st_ino == self._inode:
                    _shut_down(copy)
            finally:
                if spare is None:
                    os.close(copy)
        finally:
            if spare is not None:
                _give_back(spare)

    def lead_nowhere(self) -> bool:
        """Have this process, and no other one, read and write nothing over it; return whether it was open."""
        try:
            # by now the number may be another one's
            is_open = os.fstat(self._number).st_ino == self._inode
        except OSError:
            is_open = False
        if is_open:
            spare = _take_spare()
            nowhere = os.open(os.devnull, os.O_RDWR) if spare is None else spare
            try:
                os.dup2(nowhere, self._number, inheritable=False)
            finally:
                _spares.append(nowhere)
        return is_open


def _shut_down(number: int) -> None:
    end = socket.socket(fileno=number)
    try:
        end.shutdown(socket.SHUT_RDWR)
    finally:
        end.detach()


def socket_of(connection: Any) -> Socket | None:
    """Return the socket of a connection; None where it has none, or none any more."""
    try:
        return Socket(connection)
    except Exception:  # noqa: BLE001  # it tells so in its driver's own class
        return None
