"""Whether an idle connection is alive: look at its socket first, and spare the round trip."""

from __future__ import annotations

import select
from typing import Any, cast

from sqlalchemy import exc
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import Pool

from sqlspec.pool.deadlines import seconds_left, within
from sqlspec.pool.sockets import fileno_of

__all__ = ["PING_AFTER", "Listener", "ask", "probe_anew"]

# A connection that was in use so many seconds ago, and whose socket is quiet, is taken as alive.
PING_AFTER = 30.0
# Who does not answer within so many seconds is as good as dead: to connect anew takes less.
_PATIENCE = 1.0


class Listener:
    """Tell whether something has come over a connection while it was idle; one caller at a time.

    Where something has, or where the other side has hung up, the server has said good-bye, or something strange.
    """

    __slots__ = ("_fd", "_fileno", "_poll")

    def __init__(self, connection: Any) -> None:
        self._fileno = fileno_of(connection)
        self._poll = select.poll()
        self._fd = self._fileno()
        self._poll.register(self._fd, select.POLLIN | select.POLLPRI)

    def has_news(self) -> bool:
        """Tell it, without waiting."""
        # asked for again: the number may be another connection's once this one is closed
        return self._fileno() != self._fd or bool(self._poll.poll(0))


def ask(dialect: Dialect, connection: Any) -> None:
    """Ask the server for a sign of life, and wait a second for it, or as long as the checkout may still take.

    Raises:
        sqlalchemy.exc.DisconnectionError: there is none.
    """
    try:
        alive = within(connection, seconds_left(_PATIENCE), dialect.do_ping, connection)
    except dialect.loaded_dbapi.Error as error:
        raise exc.DisconnectionError("the server ended the connection") from error
    if not alive:
        raise exc.DisconnectionError("the connection does not answer")


def probe_anew(pool: Pool) -> None:
    """Ask the server for a sign of life over a connection that is opened for that, and closed at once.

    It is opened as the pool's own are, and is none of them.

    Raises:
        Exception: the driver's error, where it cannot connect; SQLAlchemy's, where the server says nothing.
    """
    connection: Any = cast("Any", pool)._invoke_creator(None)
    try:
        ask(cast("Any", pool)._dialect, connection)
    except BaseException:
        # who has not answered is not waited for
        pool._close_connection(connection, terminate=True)
        raise
    pool._close_connection(connection)
