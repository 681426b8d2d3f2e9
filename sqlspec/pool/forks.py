"""What a process that forks leaves to its child: nothing that only one of them can use."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from sqlspec.exceptions import ConnectionLost
from sqlspec.pool.sockets import fileno_of

__all__ = ["Abandoned", "disarm", "has_file", "process_id", "refuse", "tell_of_forks"]

_logger = logging.getLogger("sqlspec.pool")


class Heir(Protocol):
    """Be something with locks or connections, of which a child process inherits a copy."""

    def before_fork(self) -> None:
        """Let go of what no child may inherit, in the thread that forks."""

    def start_over(self) -> None:
        """Own nothing that is the parent's, in the child, which has one thread only."""


_heirs: weakref.WeakSet[Heir] = weakref.WeakSet()


def tell_of_forks(heir: Heir) -> None:
    """Have this called at each fork, as long as it exists."""
    _heirs.add(heir)


def _tell_all(what: Callable[[Heir], None]) -> None:
    for heir in list(_heirs):
        try:
            what(heir)
        except Exception:
            # the others must be told as well, and nobody is there who could handle it
            _logger.exception("%r could not follow a fork", heir)


def _in_child() -> None:
    global process_id
    process_id = os.getpid()
    _tell_all(lambda heir: heir.start_over())


# The number of this process; looked up here each time, since asking the system takes longer.
process_id = os.getpid()


def refuse(number: int) -> NoReturn:
    """Say whose the connection is that somebody wants to use.

    Raises:
        ConnectionLost: always.
    """
    raise ConnectionLost(
        f"this connection was checked out in process {number}, which has forked, and stays that process's own: "
        "check another one out here"
    )


class Abandoned:
    """Stand in a child process for a connection that is its parent's."""

    def __init__(self, number: int) -> None:
        self._number = number

    def rollback(self) -> None:
        """Do nothing: the parent decides."""

    def close(self) -> None:
        """Do nothing: the parent decides."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(self._number)


def has_file(connection: Any) -> bool:
    """Tell whether a connection of SQLite's is to a file, and not to a database in memory."""
    return any(file for _, _, file in connection.cursor().execute("PRAGMA database_list").fetchall())


def disarm(connection: Any) -> None:
    """Keep a child process from saying anything over its parent's connection, not even good-bye.

    mysqlclient says it when the connection is freed. What is written goes nowhere from now on, and what is read ends.
    """
    try:
        socket = fileno_of(connection)()
    except Exception:  # noqa: BLE001  # it has no socket, or none any more, which each driver says in its own way
        _keep(connection)
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, socket, inheritable=False)
    finally:
        os.close(nowhere)


def _keep(connection: Any) -> None:
    """Never free this: SQLite would roll back, in the parent's file, what the parent is about to commit."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(connection, "driver_connection", connection)))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(before=lambda: _tell_all(lambda heir: heir.before_fork()), after_in_child=_in_child)
