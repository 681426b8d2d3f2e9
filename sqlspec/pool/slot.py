"""Slot: one place in a pool."""

from __future__ import annotations

import math
import os
import random
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from sqlalchemy import exc
from sqlalchemy.pool.base import _ConnectionFairy, _ConnectionRecord

from sqlspec.exceptions import CircuitOpenError, ConnectionTimeout
from sqlspec.pool.deadlines import checkout_deadline
from sqlspec.pool.forks import Abandoned, disarm, has_file, is_sqlite_of_threads
from sqlspec.pool.liveness import Listener, ask
from sqlspec.pool.places import Mark
from sqlspec.pool.proxy import Proxy, lent
from sqlspec.pool.recycling import JITTER, RecyclingStrategy, shortened
from sqlspec.pool.sockets import Socket, socket_of
from sqlspec.pool.stats import MANY

if TYPE_CHECKING:
    from sqlspec.pool.slots import Slots

__all__ = ["Slot"]


class Home(Protocol):
    """Be the pool that a slot belongs to, as far as the slot needs it."""

    _pool: Slots
    _recycle: int
    _monotonic: bool
    _ping_after: float | None
    _recycling: RecyclingStrategy | None
    _is_full: Callable[[BaseException], bool] | None
    _dialect: Any
    dispatch: Any
    logger: Any

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None: ...

    def _do_return_conn(self, record: Any) -> None: ...

    def _take_back(self, ref: weakref.ref[Any]) -> None: ...

    def _should_log_debug(self) -> Any: ...

    def _lost(self, ref: weakref.ref[Slot]) -> None: ...

    def _report_drop(self, mark: Mark) -> None: ...


class Slot(_ConnectionRecord):
    """Be one place in a pool, with or without a connection in it.

    A slot belongs to one caller at a time: who took it out of the idle ones, or was given it. Nothing here needs
    a lock for that reason.
    """

    __slots__ = (
        "expires_at",
        "has_file",
        "home",
        "idle_since",
        "is_connecting",
        "is_open",
        "is_retired",
        "listener",
        "mark",
        "opened_at",
        "pinged",
        "proxy",
        "ref",
        "reported",
        "socket",
        "statement",
    )

    def __init__(self, home: Home) -> None:
        super().__init__(cast("Any", home), connect=False)
        self.home = home
        # The pool knows its slots by weak references: a slot that nobody has any more, since an interrupt came
        # between its borrower and the pool, gives its place back by itself.
        self.ref: weakref.ref[Slot] = weakref.ref(self, home._lost)
        # while there is a slot to take it from; afterwards it is looked for by it
        hash(self.ref)
        # by the monotonic clock; None before the first connection
        self.opened_at: float | None = None
        self.expires_at = math.inf
        self.idle_since = 0.0
        # an answered ping counts as use, but not for everybody: `idle_since` after it, and when it was used before
        self.pinged: tuple[float, float] | None = None
        self.is_connecting = False
        # tells whether something has come over the connection
        self.listener: Listener | None = None
        # of its connection: what a child process must not write to, and whether it is to a file of SQLite's
        self.socket: Socket | None = None
        self.has_file = False
        # whether a connection is counted as opened and not yet as closed
        self.is_open = False
        # the pool does not want it back
        self.is_retired = False
        # who has it checked out, and the one of them who was reported
        self.mark: Mark | None = None
        self.reported: Mark | None = None
        self.statement: str | None = None
        self.proxy: weakref.ref[Any] | None = None

    @classmethod
    def checkout(cls, pool: Any) -> _ConnectionFairy:
        """Take a slot out of the pool, and lend its connection to who holds the proxy that is returned."""
        if pool._dialect.is_async:
            # what is dropped cannot be reset without a loop; SQLAlchemy knows how it ends
            proxy = super().checkout(pool)
            cast("Slot", proxy._connection_record).proxy = weakref.ref(proxy)
            return proxy
        slot = pool._do_get()
        try:
            connection = slot.get_connection()
            echo = pool._should_log_debug()
            proxy = Proxy(pool, connection, slot, echo)
            ref = weakref.ref(proxy, pool._take_back)
        except BaseException as error:
            slot._checkin_failed(error, _fairy_was_created=False)
            raise
        # no interrupt comes between these two
        slot.fairy_ref = ref
        lent[ref] = slot
        if echo:
            pool.logger.debug("Connection %r checked out from pool", connection)
        return proxy

    def was_dropped(self) -> bool:
        """Tell whether its connection, which was detached, was in truth dropped by its borrower."""
        return self.proxy is not None and self.proxy() is None

    def get_connection(self) -> Any:
        """Return the connection; a new one where there is none, or where it must not be used any more."""
        home, mark = self.home, self.mark
        if (
            self.dbapi_connection is None
            # as of the checkout, which has just looked at the clock
            or (mark is not None and mark[0] > self.expires_at)
            or (not home._monotonic and 0 <= home._recycle < time.time() - self.starttime)
        ):
            return self._connect_anew()
        if (
            home._ping_after is not None
            and mark is not None
            and (mark[0] - self.idle_since > home._ping_after or self._has_news())
        ):
            return self._ask_or_connect_anew()
        return self.dbapi_connection

    def used_at(self) -> float:
        """Return when it was last given back, or opened."""
        # no field of its own, which every checkin would have to set
        return self.pinged[1] if self.pinged is not None and self.pinged[0] == self.idle_since else self.idle_since

    def is_worn(self, now: float, idle_seconds: float) -> bool:
        """Tell whether a strategy wants the connection closed; there is none."""
        return False

    def _has_news(self) -> bool:
        try:
            if self.listener is None:
                self.listener = Listener(self.dbapi_connection)
            return self.listener.has_news()
        except Exception:  # noqa: BLE001  # a driver refuses fileno() on a closed connection, each in its own class
            return True

    def _ask_or_connect_anew(self) -> Any:
        home = self.home
        try:
            ask(home._dialect, self.dbapi_connection)
        except exc.DisconnectionError as error:
            home.logger.info("Connection %r is dead, it is replaced (reason: %r)", self.dbapi_connection, error)
            self.invalidate(error)
            deadline = checkout_deadline.get()
            if deadline is not None and time.monotonic() >= deadline:
                raise ConnectionTimeout("the server did not answer a ping in time", "ping") from error
            return self._connect_anew()
        return self.dbapi_connection

    def _connect_anew(self) -> Any:
        home, begin = self.home, time.monotonic()
        if self.dbapi_connection is not None:
            home.logger.info("Connection %r is too old, or was invalidated; recycling", self.dbapi_connection)
            # SQLAlchemy compares times of the wall clock, which may be set: this one is later than all
            self._soft_invalidate_time = math.inf
        self.opened_at = begin
        self.expires_at = math.inf
        if home._monotonic and home._recycle >= 0:
            # connections that were opened together are not to be replaced together
            self.expires_at = begin + shortened(home._recycle, JITTER, random.random())  # noqa: S311  # no secret
        self.is_connecting = True
        try:
            connection = super().get_connection()
        except CircuitOpenError:
            # nobody has tried: neither a failure, nor the reason that whoever waits is told
            home._pool.tally.note("refused_connects")
            # idle, it would be in the way of those that have a connection
            self.is_retired = True
            raise
        except Exception as error:
            home._pool.tally.note("failed_connects")
            home._pool.remember_failure(error)
            # as above
            self.is_retired |= home._is_full is not None and home._is_full(error)
            raise
        finally:
            self.is_connecting = False
            self._soft_invalidate_time = 0.0
            self.count_closed("recycled")
        self._note_what_forks_share(connection)
        # fresh, as one that has just come back
        self.idle_since = now = time.monotonic()
        self._count_opened(now - begin)
        return connection

    def _note_what_forks_share(self, connection: Any) -> None:
        # Asked for now: while a thread uses the connection of mysqlclient, it tells nobody else its socket, and in a
        # child for ever.
        is_sqlite = is_sqlite_of_threads(self.home._dialect)
        self.socket = None if is_sqlite else socket_of(connection)
        self.has_file = is_sqlite and has_file(connection)

    def _count_opened(self, seconds: float) -> None:
        slots = self.home._pool
        slots.last_failure = None
        tally = slots.tally
        # from here to the end of the last line no interrupt comes: Python looks for them when it calls functions of
        # its own and after each call
        self.is_open = True
        if self.ref in slots.known:
            slots.known[self.ref] = True
        tally.connects.append(seconds)

    def count_closed(self, reason: str) -> None:
        """Count the connection as closed, where one is counted as open."""
        slots = self.home._pool
        # it would keep the connection alive
        self.listener = None
        if self.is_open:
            tally, event = slots.tally, f"closed {reason}"
            # as above
            self.is_open = False
            if self.ref in slots.known:
                slots.known[self.ref] = False
            tally.events.append(event)
            if len(tally.events) > MANY:
                tally.sum_up()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Close the connection, or with ``soft`` have it replaced at its next checkout."""
        try:
            super().invalidate(e, soft)
        finally:
            if self._soft_invalidate_time:
                # so that one look at checkout serves all reasons
                self.expires_at = min(self.expires_at, 0.0)
            if self.dbapi_connection is None:
                is_error = isinstance(e, Exception)
                self.count_closed("disconnect" if is_error else "invalidated" if e is None else "interrupted")

    def retire(self, reason: str) -> None:
        """Close the connection; the slot is not used again."""
        self.is_retired = True
        try:
            self.close()
        finally:
            if self.dbapi_connection is not None:
                # a listener has failed before it was closed
                connection, self.dbapi_connection = self.dbapi_connection, None
                self.home._close_connection(connection)
            self.count_closed(reason)

    def abandon(self) -> None:
        """Leave the connection to the parent process, of which this one is a forked child."""
        connection, self.dbapi_connection = self.dbapi_connection, None
        proxy = None if self.fairy_ref is None else self.fairy_ref()
        lent.pop(self.fairy_ref, None)
        self.fairy_ref = self.mark = self.listener = None
        self.is_open, self.is_retired = False, True
        if proxy is not None:
            proxy.dbapi_connection = cast("Any", Abandoned(os.getppid()))
            proxy._connection_record = None
        if connection is not None:
            disarm(connection, self.socket)

    def stays_over_fork(self) -> bool:
        """Tell whether a child process has its own copy of all that the connection is about."""
        is_sqlite = is_sqlite_of_threads(self.home._dialect)
        return is_sqlite and self.mark is None and self.dbapi_connection is not None and not self.has_file

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """Give the slot back to its pool, whatever the callbacks and listeners of the checkin raise."""
        borrower = self.fairy_ref
        if borrower is None and _fairy_was_created:
            super().checkin()
            return
        self.fairy_ref = None
        home, mark, connection = self.home, self.mark, self.dbapi_connection
        try:
            lent.pop(borrower, None)
            while self.finalize_callback:
                callback = self.finalize_callback.pop()
                if connection is not None:
                    callback(connection)
            if home.dispatch.checkin:
                home.dispatch.checkin(connection, self)
        except BaseException as error:
            # nobody knows in what state the connection is now
            self.invalidate(error)
            raise
        finally:
            home._do_return_conn(self)
        if mark is not None and borrower is not None and borrower() is None:
            home._report_drop(mark)
