"""What a process that forks leaves to its child: nothing that only one of them can use."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from sqlspec.exceptions import ConnectionLost
from sqlspec.pool.gate import PATIENCE, follow_forks, wait_for_works
from sqlspec.pool.sockets import Socket

__all__ = [
    "Abandoned",
    "disarm",
    "has_file",
    "is_foreign",
    "is_sqlite_of_threads",
    "process_id",
    "refuse",
    "tell_before_forks",
    "tell_of_forks",
]

T = TypeVar("T")

_logger = logging.getLogger("sqlspec.pool")


class Heir(Protocol):
    """Be something with locks or connections, of which a child process inherits a copy."""

    def start_over(self) -> None:
        """Own nothing that is the parent's, in the child, which has one thread only."""


class Closer(Protocol):
    """Be something with files of which no child may inherit a copy."""

    def before_fork(self, until: float) -> None:
        """Close them, in the thread that forks; wait for others no longer than until that moment."""


# By weak references, in dictionaries: each step on them is atomic, so that a child never inherits one half-way.
_heirs: dict[weakref.ref[Heir], None] = {}
_closers: dict[weakref.ref[Closer], None] = {}


def tell_of_forks(heir: Heir) -> None:
    """Have this start over in each child, as long as it exists."""
    _heirs[weakref.ref(heir, _heirs.pop)] = None


def tell_before_forks(closer: Closer) -> None:
    """Have this close what no child may inherit, as long as it exists."""
    _closers[weakref.ref(closer, _closers.pop)] = None


def _tell_all(those: dict[weakref.ref[T], None], what: Callable[[T], None]) -> None:
    for ref in list(those):
        one = ref()
        try:
            if one is not None:
                what(one)
        except Exception:
            # the others must be told as well, and nobody is there who could handle it
            _logger.exception("%r could not follow a fork", one)


def _before() -> None:
    until = time.monotonic() + PATIENCE
    try:
        wait_for_works(until)
    finally:
        _tell_all(_closers, lambda closer: closer.before_fork(until))


def _in_child() -> None:
    global process_id
    process_id = os.getpid()
    _tell_all(_heirs, lambda heir: heir.start_over())


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


def is_sqlite_of_threads(dialect: Any) -> bool:
    """Tell whether connections are objects of sqlite3's; a pool without an engine has a dialect without a name."""
    return getattr(dialect, "name", "") == "sqlite" and not dialect.is_async


def has_file(connection: Any) -> bool:
    """Tell whether a connection of SQLite's is to a file, and not to a database in memory.

    One that does not tell is taken for one that has: then no child has it, and its parent loses nothing but a connect.
    """
    try:
        return any(file for _, _, file in connection.cursor().execute("PRAGMA database_list").fetchall())
    except Exception:  # noqa: BLE001  # a creator may give anything, and what it gave must not be lost here
        return True


def is_foreign() -> bool:
    """Tell whether this is a child that has just been forked, where everything still is as its parent has it.

    Hooks that were registered before ours may run there, and the garbage collector in them.
    """
    return os.getpid() != process_id


def disarm(connection: Any, socket: Socket | None) -> None:
    """Keep a child process from saying anything over its parent's connection, not even good-bye.

    mysqlclient says it when the connection is freed. What is written goes nowhere from now on, and what is read ends.
    """
    if socket is None or not socket.lead_nowhere():
        _keep(connection)


def _keep(connection: Any) -> None:
    """Never free this: SQLite would roll back, in the parent's file, what the parent is about to commit."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(connection, "driver_connection", connection)))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


follow_forks(_before, _in_child)
