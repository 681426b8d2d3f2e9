"""BaseSession: the connection of a session and its transactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, Self, cast

from sqlalchemy import Connection, CursorResult, Engine, Result, exc
from sqlalchemy.pool import PoolProxiedConnection

from sqlspec.adapters import Driver, TransactionOptions
from sqlspec.adapters.commits import commits
from sqlspec.engine import adopt_transaction, borrow, discard, wanted_autocommit
from sqlspec.exceptions import ConnectionLost, PoolClosed
from sqlspec.pool import count_error, forks, slot_of
from sqlspec.resilience import is_ambiguous
from sqlspec.session.recovery import clean_up_after, recover
from sqlspec.session.result import ClosedCursor
from sqlspec.session.shared import SharedConnection
from sqlspec.session.turns import OneAtATime

__all__ = ["BaseSession", "Source"]


class Source(Protocol):
    """Be where the connections of sessions come from."""

    @property
    def engine(self) -> Engine:
        """Return the engine."""

    @property
    def driver(self) -> Driver:
        """Return the driver of the engine's connections."""

    @property
    def successor(self) -> Source | None:
        """Return what replaces this source, where it has been closed for that."""

    def check_out(self, timeout: float | None) -> PoolProxiedConnection:
        """Check a connection out; errors are SQLAlchemy's."""


class BaseSession(OneAtATime):
    """Be a session without statements: its connection, its transactions, its end."""

    # What changes while the session lives; its beginning stands here, since a session per statement is common.
    _proxy: PoolProxiedConnection | None = None
    _driver_connection: Any = None
    # the pool's, which is told of the statements
    _slot: Any = None
    # SQLAlchemy's connection over the same proxy, made when something needs it; from then on it alone knows
    # whether there is a transaction, and _in_transaction is False.
    _connection: Connection | None = None
    _in_transaction = False
    _by_hand = False
    # whether a COMMIT has failed, after which only a rollback leads on
    _uncommitted = False
    # whether something that ran here stays, whatever comes
    _has_committed = False
    # whether a statement was cancelled, and the transaction with it
    _is_lost = False
    _closed = False
    _echo = False
    _transactions = 0
    # where the connection was checked out
    _process_id = 0
    # Results whose cursors must not outlive the checkin; those of strings weakly, since most are read and
    # dropped long before.
    _results: list[Callable[[], Result[Any] | None]]
    _results_limit = 1000
    _streams: Sequence[CursorResult[Any]] = ()
    # why nothing else can run for a while
    _occupied = ""

    def __init__(
        self,
        source: Source,
        timeout: float | None,
        autocommit: bool,
        toggle_autocommit: bool,
        options: TransactionOptions | None,
    ) -> None:
        self._source = source
        self._engine = source.engine
        self._driver = source.driver
        self._timeout = timeout
        self._autocommit = autocommit
        self._toggle_autocommit = toggle_autocommit
        self._options = options

    def __repr__(self) -> str:
        state = "closed" if self._closed else "in transaction" if self.in_transaction else "idle"
        return f"<Session on {self._driver.name}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be copied or pickled: it is bound to its connection")

    @property
    def in_transaction(self) -> bool:
        """Tell whether statements have run that are not yet committed or rolled back."""
        return self._in_transaction or (self._connection is not None and self._connection.in_transaction())

    @property
    def _reads_only(self) -> bool:
        return self._options is not None and self._options.read_only

    # -- transactions

    def commit(self) -> None:
        """Commit what ran so far; the next statement begins a new transaction."""
        if self._in_transaction and not self._autocommit and not self._is_lost:
            self._require_own()
            try:
                self._driver.end(self._driver_connection, "commit")
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._uncommitted = True
                self._fail(error)
            self._in_transaction = False
            self._has_committed = True
            self._transactions += 1
        else:
            self._require_open()
            self._end("commit")

    def rollback(self) -> None:
        """Undo what ran since the last commit; under autocommit, nothing can be undone."""
        self._require_open()
        self._end("rollback")

    def _end(self, how: Literal["commit", "rollback"]) -> None:
        self._require_own()
        if self._occupied:
            self._require_free()
        if how == "commit":
            self._require_committed()
        self._close_streams()
        self._is_lost = False
        # until it is known
        self._uncommitted = how == "commit"
        connection = self._connection
        failed = connection is not None and not connection.in_transaction() and connection.get_transaction() is not None
        if connection is not None and (failed or connection.in_transaction()):
            getattr(connection, how)()
        lost = connection is not None and connection.invalidated
        if self._in_transaction or ((failed or self._by_hand) and not lost):
            # failed: a COMMIT did, and SQLAlchemy takes the transaction for ended; SQLite does not
            try:
                self._driver.end(self._driver_connection, how)
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._fail(error)
            self._has_committed |= how == "commit"
        self._in_transaction = self._by_hand = self._uncommitted = False
        self._transactions += 1
        if connection is not None:
            self._living(connection)

    def _close_streams(self, kept: Sequence[CursorResult[Any]] = ()) -> None:
        """Close the streams that are open, the last first, but for those to be kept."""
        while self._proxy is not None and (others := [stream for stream in self._streams if stream not in kept]):
            last = others[-1]
            self._streams = [stream for stream in self._streams if stream is not last]
            last.close()
            last.cursor = cast("Any", ClosedCursor())

    def _require_committed(self) -> None:
        if self._uncommitted:
            raise exc.PendingRollbackError("the transaction could not be committed: call rollback() before going on")
        if self._is_lost:
            raise exc.PendingRollbackError("a statement was cancelled: call rollback() before going on")

    def _begin(self) -> None:
        # known before it is sent: an interruption in between must not hand an open transaction on
        self._in_transaction = True
        driver, options = self._driver, self._options
        if driver.sends_begin or options is not None:
            try:
                driver.begin(self._driver_connection, options)
            except Exception as error:  # noqa: BLE001  # always raised again
                self._in_transaction = False
                self._fail(error)

    # -- the connection

    def connection(self) -> Connection:
        """Return the SQLAlchemy connection of this session, in the same transaction and under the same rules."""
        self._require_open()
        if self._streams or self._occupied:
            self._require_free()
        if self._connection is not None:
            self._living(self._connection)
        self._require_own()
        if self._driver_connection is None:
            self._open()
        return self._adopt()

    def _adopt(self) -> Connection:
        if self._connection is None:
            self._connection = SharedConnection(self, self._engine, self._proxy)
            if self._in_transaction:
                adopt_transaction(self._connection)
                self._in_transaction = False
        return self._connection

    def _living(self, connection: Connection) -> Connection | None:
        """Return SQLAlchemy's connection; let go of one that was lost, once nothing hangs on it.

        Raises:
            sqlalchemy.exc.PendingRollbackError: the transaction that was lost with it must be rolled back first.
            sqlalchemy.exc.ResourceClosedError: somebody closed it.
        """
        self._require_committed()
        if connection.invalidated and self._autocommit:
            connection.rollback()
        if connection.closed or (connection.invalidated and connection.in_transaction()):
            connection._revalidate_connection()
        proxy = connection._dbapi_connection
        if proxy is self._proxy:
            return connection
        if proxy is not None:
            # somebody went on with the same object, and SQLAlchemy has reconnected it
            self._take(proxy)
            return connection
        connection.close()
        self._connection = self._proxy = self._driver_connection = None
        return None

    def _open(self) -> None:
        self._require_open()
        timeout = self._timeout
        begin = 0.0 if timeout is None else time.monotonic()
        while True:
            try:
                proxy = (self._check_out_switched if self._toggle_autocommit else self._source.check_out)(timeout)
                break
            except PoolClosed:
                if self._source.successor is None:
                    raise
                if self._timeout is not None:
                    # one deadline, whoever serves; a moment at least is left
                    timeout = max(0.001, self._timeout - (time.monotonic() - begin))
                self._source = self._source.successor
                self._engine, self._driver = self._source.engine, self._source.driver
                self._toggle_autocommit = self._autocommit is not self._driver.autocommit
        self._results, self._streams = [], ()
        self._echo = self._engine._should_log_info()
        self._take(proxy)
        if self._closed:
            # by another task meanwhile
            self._abandon()
            self._require_open()

    def _check_out_switched(self, timeout: float | None) -> PoolProxiedConnection:
        token = wanted_autocommit.set((self._engine, self._autocommit))
        try:
            return self._source.check_out(timeout)
        finally:
            wanted_autocommit.reset(token)

    def _take(self, proxy: PoolProxiedConnection) -> None:
        if self._toggle_autocommit or self._options is not None:
            try:
                borrow(proxy, self._driver, self._autocommit, self._options)
            except self._engine.dialect.loaded_dbapi.Error as error:
                Connection._handle_dbapi_exception_noconnection(error, self._engine.dialect, self._engine)
        self._process_id = forks.process_id
        self._proxy = proxy
        self._driver_connection = proxy.dbapi_connection
        self._slot = slot_of(proxy)

    def _info(self) -> dict[Any, Any]:
        """Return what is known of the connection, as long as it is that one."""
        return cast("PoolProxiedConnection", self._proxy).info

    def _require_open(self) -> None:
        if self._closed:
            raise exc.ResourceClosedError("This session is closed: get a new one with get_session().")

    def _require_own(self) -> None:
        if self._process_id != forks.process_id and self._driver_connection is not None:
            forks.refuse(self._process_id)

    def _require_free(self) -> None:
        if self._occupied:
            raise exc.InvalidRequestError(self._occupied)
        # the rows that are not read yet would be lost, of which asyncmy says nothing
        if self._driver.syntax == "mysql" and not all(stream._soft_closed for stream in self._streams):
            raise exc.InvalidRequestError("a stream is open, and nothing else can run on MySQL: read or close it first")

    def _refusal_of_a_second_task(self) -> Exception:
        return exc.InvalidRequestError("another task is at a statement of this session: one task at a time")

    def _abandon(self) -> None:
        self._closed = True
        proxy, self._proxy = self._proxy, None
        self._driver_connection = None
        if proxy is not None:
            discard(proxy)

    def _receive(self, result: CursorResult[Any]) -> None:
        """Know of what SQLAlchemy's connection has run, whoever asked it to."""
        raise NotImplementedError

    def close(self) -> None:
        """Roll back what is not committed, and check the connection in. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        proxy, connection = self._proxy, self._connection
        if proxy is None or (connection is not None and connection.closed):
            return
        if self._process_id != forks.process_id:
            self._proxy = self._driver_connection = self._connection = None
            return
        try:
            for known in self._results:
                result = known()
                if result is not None:
                    result.close()
            if self._in_transaction or connection is not None:
                self._end("rollback")
        except BaseException:
            discard(proxy)
            raise
        finally:
            connection, proxy = self._connection, self._proxy
            self._proxy = self._driver_connection = None
        if connection is not None:
            connection.close()
        elif proxy is not None:
            # nothing is open any more: SQLAlchemy's own rollback at checkin would be a round trip for nothing
            proxy._close_special(transaction_reset=True)

    def __enter__(self) -> Self:
        if self._closed:
            self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closed:
            return
        try:
            if error is None:
                self.commit()
        except BaseException as failure:
            clean_up_after(failure, "the rollback", self.close)
            raise
        if error is None:
            self.close()
        else:
            clean_up_after(error, "the rollback", self.close)

    # -- errors

    def _fail(
        self, error: BaseException, cursor: Any = None, statement: str | None = None, parameters: Any = None
    ) -> NoReturn:
        # SQLAlchemy's own handling: wrapping, disconnect detection, handle_error listeners, invalidation
        dialect = self._engine.dialect
        if self._proxy is None:
            Connection._handle_dbapi_exception_noconnection(error, dialect, self._engine)
        if isinstance(error, dialect.loaded_dbapi.Error):
            count_error(self._slot)
        if self._driver.is_async:
            if isinstance(error, asyncio.CancelledError) and recover(self._driver, self._driver_connection, cursor):
                self._judge(error, statement)
                self._is_lost = not self._autocommit
                raise error
            self._driver.note(error, dialect, self._driver_connection)
        try:
            self._adopt()._handle_dbapi_exception(error, statement, parameters, cursor, None)
        except exc.StatementError as wrapped:
            if isinstance(wrapped, exc.DBAPIError) or wrapped.orig is not error:
                raise
        # Not the driver's, as what a signal raises in a statement: where SQLAlchemy runs it, it comes as it is.
        self._judge(error, statement)
        raise error

    def _judge(self, error: BaseException, statement: str | None) -> None:
        """Tell of a lost connection whether something may stay of what was under way: the whole transaction, at COMMIT.

        Raises:
            ConnectionLost: nobody knows whether it does.
        """
        # OSError: asynchronous drivers may let one through
        if not isinstance(error, (exc.DBAPIError, OSError, asyncio.CancelledError)):
            return
        origin: Any = error.orig if isinstance(error, exc.DBAPIError) else error
        if self._reads_only:
            # there is nothing that could
            origin.in_commit = False
        elif statement is not None or not hasattr(origin, "in_commit"):
            ends = statement is not None and commits(statement, self._driver.syntax)
            self._has_committed |= ends
            origin.in_commit = ends or (self._autocommit and not self._by_hand)
        if not isinstance(error, asyncio.CancelledError) and is_ambiguous(error):
            what = "COMMIT" if statement is None else "a statement that commits"
            told = f"the connection was lost in {what}, and nobody knows whether it was carried out: {origin}"
            raise ConnectionLost(told, ambiguous=True, orig=origin) from error
