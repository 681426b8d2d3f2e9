"""Session: a unit of work on one pooled connection."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from sqlalchemy import Connection, Engine, Executable, NestedTransaction, Result, exc
from sqlalchemy.pool import PoolProxiedConnection

from sqlspec.adapters import Driver, TransactionOptions
from sqlspec.session.placeholders import PlaceholderError, Statement, bind
from sqlspec.session.result import DriverResult, columns_of

__all__ = ["Savepoint", "Session", "Source"]


class Source(Protocol):
    """Be where the connections of sessions come from."""

    @property
    def engine(self) -> Engine:
        """Return the engine."""

    @property
    def driver(self) -> Driver:
        """Return the driver of the engine's connections."""

    def check_out(self, timeout: float | None) -> PoolProxiedConnection:
        """Check a connection out; errors are SQLAlchemy's."""


class Session:
    """Run statements in a transaction that commits at the end of the ``with`` block.

    The connection is checked out by the first statement. An exception that leaves the block rolls back and
    goes on unchanged. Strings go straight to the driver; SQLAlchemy executables run in the same transaction.
    Not thread-safe: one session belongs to one thread at a time.
    """

    # What changes while the session lives; its beginning stands here, since a session per statement is common.
    _proxy: PoolProxiedConnection | None = None
    _driver_connection: Any = None
    _connection: Connection | None = None
    _in_transaction = False
    _closed = False
    _echo = False
    _savepoints = 0
    # Results whose cursors must not outlive the checkin; weak, since most are read and dropped long before.
    _results: list[weakref.ref[DriverResult]]

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

    @property
    def in_transaction(self) -> bool:
        """Tell whether statements have run that are not yet committed or rolled back."""
        return self._in_transaction or (self._connection is not None and self._connection.in_transaction())

    # -- statements

    def execute(self, statement: str | Executable, parameters: Any = None) -> Result[Any]:
        """Run one statement with one set of parameters.

        Strings take ``?`` with a sequence and ``:name`` with a mapping on every database.

        Returns:
            A SQLAlchemy ``Result``; of a statement without rows it has ``rowcount`` and ``lastrowid``.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself would raise it.
            sqlspec.exceptions.ConnectionTimeout: the first statement found no free connection in time.
        """
        if not isinstance(statement, str):
            return self.connection().execute(statement, parameters)
        try:
            prepared, values = bind(statement, parameters, self._driver.syntax)
        except PlaceholderError as error:
            problem = str(error)
        else:
            return self._run(prepared, values, many=False)
        return self._refuse(problem, statement, parameters)

    def execute_many(self, statement: str | Executable, rows: Iterable[Any]) -> Result[Any] | None:
        """Run one statement once for each row of parameters; no rows, nothing happens.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself would raise it.
        """
        sets = list(rows)
        if not sets:
            return None
        if not isinstance(statement, str):
            return self.connection().execute(statement, sets)
        row: Any = None
        position = 0
        try:
            for position, row in enumerate(sets):  # noqa: B007  # both are for the message
                prepared, _ = bind(statement, row, self._driver.syntax)
        except PlaceholderError as error:
            problem = f"row {position}: {error}"
        else:
            return self._run(prepared, sets, many=True)
        return self._refuse(problem, statement, row)

    def _refuse(self, problem: str, sql: str, parameters: Any) -> NoReturn:
        origin = self._engine.dialect.loaded_dbapi.ProgrammingError(problem)
        raise exc.ProgrammingError(sql, parameters, origin, hide_parameters=self._engine.hide_parameters)

    def _run(self, statement: Statement, parameters: Any, *, many: bool) -> Result[Any]:
        if self._driver_connection is None:
            self._open()
        engine, connection = self._engine, self._connection
        # Somebody listens to statements, or wants them in the log: they go the way that SQLAlchemy's own go.
        watched = engine._has_events or engine.dialect._has_events or self._echo
        if watched or (connection is not None and connection.invalidated):
            return self._run_watched(statement, parameters)
        if not self._in_transaction and statement.opens and not self._autocommit:
            self._begin()
        cursor = None
        try:
            cursor = self._driver_connection.cursor()
            if many:
                cursor.executemany(statement.text, parameters)
            elif parameters is None:
                cursor.execute(statement.text)
            else:
                cursor.execute(statement.text, parameters)
            columns = columns_of(statement, cursor)
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._fail(error, cursor, statement.text, parameters)
        result = DriverResult(columns, cursor, self)
        if columns is not None:
            results = self._results
            results.append(weakref.ref(result))
            if not len(results) % 1000:
                self._results = [known for known in results if known() is not None]
        return result

    def _run_watched(self, statement: Statement, parameters: Any) -> Result[Any]:
        if isinstance(parameters, list) and parameters and not isinstance(parameters[0], (tuple, list, dict)):
            parameters = tuple(parameters)
        # without parameters the driver must not look for its placeholders: a % stands for itself
        options = {"no_parameters": True} if parameters is None else None
        return self.connection().exec_driver_sql(statement.text, parameters, execution_options=options)

    def _fail(
        self, error: BaseException, cursor: Any = None, statement: str | None = None, parameters: Any = None
    ) -> NoReturn:
        # SQLAlchemy's own handling: wrapping, disconnect detection, handle_error listeners, invalidation. It
        # must know of the transaction, or it would roll back what ran before the statement that failed.
        connection = self.connection()
        if not connection.in_transaction() and not connection.invalidated and not self._autocommit:
            connection.begin()
        connection._handle_dbapi_exception(error, statement, parameters, cursor, None)

    # -- transactions

    def commit(self) -> None:
        """Commit what ran so far; the next statement begins a new transaction."""
        if self._in_transaction and self._connection is None:
            try:
                self._driver_connection.commit()
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._fail(error)
            self._in_transaction = False
        else:
            self._end("commit")

    def rollback(self) -> None:
        """Undo what ran since the last commit; under autocommit, nothing can be undone."""
        self._end("rollback")

    def _end(self, how: str) -> None:
        self._require_open()
        if self._proxy is None:
            return
        connection = self._connection
        if connection is not None and (connection.in_transaction() or connection.invalidated):
            getattr(connection, how)()
        elif self._in_transaction:
            try:
                getattr(self._driver_connection, how)()
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._fail(error)
        self._in_transaction = False

    def begin_nested(self) -> Savepoint:
        """Set a savepoint; use it in a ``with`` block.

        Raises:
            sqlalchemy.exc.InvalidRequestError: under autocommit, where there is no transaction.
        """
        self._require_open()
        if self._autocommit:
            raise exc.InvalidRequestError("begin_nested() needs a transaction, and this session autocommits")
        if self._driver_connection is None:
            self._open()
        if self._engine._has_events or self._echo:
            return Savepoint(self, nested=self.connection().begin_nested())
        self._savepoints += 1
        return Savepoint(self, name=f"sqlspec_{self._savepoints}")

    def _begin(self) -> None:
        driver, options = self._driver, self._options
        if driver.sends_begin or options is not None:
            try:
                driver.begin(self._driver_connection, options)
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._fail(error)
        self._in_transaction = True

    # -- the connection

    def connection(self) -> Connection:
        """Return the SQLAlchemy connection of this session, in the same transaction."""
        self._require_open()
        if self._connection is None:
            if self._driver_connection is None:
                self._open()
            if not self._in_transaction and self._options is not None and not self._autocommit:
                self._begin()
            self._connection = Connection(self._engine, self._proxy)
        if self._in_transaction and not self._connection.in_transaction() and not self._connection.invalidated:
            self._connection.begin()
        return self._connection

    def _open(self) -> None:
        if self._closed:
            self._require_open()
        proxy = self._source.check_out(self._timeout)
        connection = proxy.dbapi_connection
        if self._toggle_autocommit:
            try:
                self._driver.set_autocommit(connection, self._autocommit)
            except BaseException:
                proxy.invalidate()
                proxy.close()
                raise
        self._proxy = proxy
        self._driver_connection = connection
        self._results = []
        self._echo = self._engine._should_log_info()

    def _require_open(self) -> None:
        if self._closed:
            raise exc.ResourceClosedError("This session is closed: get a new one with get_session().")

    def close(self) -> None:
        """Roll back what is not committed, and check the connection in. Harmless when repeated."""
        if self._closed:
            return
        proxy, connection = self._proxy, self._connection
        if proxy is None:
            self._closed = True
            return
        try:
            for known in self._results:
                result = known()
                if result is not None:
                    result.close()
            if self._in_transaction or connection is not None:
                self.rollback()
            if self._options is not None or self._toggle_autocommit:
                self._restore()
        except BaseException:
            proxy.invalidate()
            proxy.close()
            raise
        finally:
            self._closed = True
            self._proxy = self._driver_connection = None
        if connection is not None:
            connection.close()
        else:
            # nothing is open any more: SQLAlchemy's own rollback at checkin would be a round trip for nothing
            proxy._close_special(transaction_reset=True)

    def _restore(self) -> None:
        if self._proxy is None or not self._proxy.is_valid:
            return
        if self._options is not None:
            self._driver.restore(self._driver_connection)
        if self._toggle_autocommit:
            self._driver.set_autocommit(self._driver_connection, not self._autocommit)

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
            self._close_after(failure)
            raise
        if error is None:
            self.close()
        else:
            self._close_after(error)

    def _close_after(self, error: BaseException) -> None:
        """Close without hiding the error that ended the block; a second one becomes a note on it."""
        try:
            self.close()
        except Exception as second:  # noqa: BLE001  # the first error is the one to see
            error.add_note(f"sqlspec: the rollback failed as well: {type(second).__name__}: {second}")


class Savepoint:
    """Be a part of a transaction that can be undone by itself.

    Leaving the ``with`` block keeps the part; an exception that leaves it undoes the part and goes on.
    """

    def __init__(self, session: Session, *, name: str = "", nested: NestedTransaction | None = None) -> None:
        self._session = session
        self._nested = nested
        self._name = name
        self._active = True
        if nested is None:
            session.execute(f"SAVEPOINT {name}")

    @property
    def is_active(self) -> bool:
        """Tell whether the savepoint has been neither released nor rolled back."""
        return self._active

    def commit(self) -> None:
        """Keep what ran since the savepoint, as part of the transaction around it."""
        self._finish("commit", f"RELEASE SAVEPOINT {self._name}")

    def rollback(self) -> None:
        """Undo what ran since the savepoint; the transaction around it goes on."""
        self._finish("rollback", f"ROLLBACK TO SAVEPOINT {self._name}")

    def _finish(self, how: str, sql: str) -> None:
        if not self._active:
            return
        self._active = False
        if self._nested is not None:
            getattr(self._nested, how)()
        else:
            self._session.execute(sql)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
            return
        try:
            self.rollback()
        except Exception as second:  # noqa: BLE001  # the first error is the one to see
            error.add_note(f"sqlspec: ROLLBACK TO SAVEPOINT failed as well: {type(second).__name__}: {second}")
