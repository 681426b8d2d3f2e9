"""Connection and Cursor: PEP 249 with portable placeholders."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection

from sqlspec.adapters import Driver
from sqlspec.exceptions import SQLSpecWarning
from sqlspec.session.placeholders import PlaceholderError, Statement, bind

__all__ = ["Connection", "Cursor"]

_OPENED = "sqlspec_opened"
_QUERIES = "sqlspec_queries"
_ERRORS = "sqlspec_errors"


class Connection:
    """Be a DB-API connection from the pool; `close` checks it in.

    What PEP 249 does not name is handed to the driver's connection. Errors are the driver's. As a context
    manager it closes at the end of the block; uncommitted work is rolled back, with a warning. Not thread-safe.
    """

    def __init__(self, proxy: PoolProxiedConnection, driver: Driver, dialect: Dialect, *, autocommit: bool) -> None:
        self._proxy = proxy
        self._driver = driver
        self._dialect = dialect
        self._autocommit = autocommit
        self._connection: Any = proxy.dbapi_connection
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._closed = self._invalidated = False
        # _open: a transaction may be open on the server; _works: it changed something; _begun: begin() was called
        self._open = self._works = self._begun = False
        info = proxy.info
        info.setdefault(_OPENED, time.monotonic())
        info.setdefault(_QUERIES, 0)
        info.setdefault(_ERRORS, 0)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "in transaction" if self._open else "idle"
        return f"<Connection on {self._driver.name}, {state}>"

    # -- facts

    @property
    def age(self) -> float:
        """Return the seconds since sqlspec first handed this physical connection out."""
        return time.monotonic() - float(self._live().info[_OPENED])

    @property
    def query_count(self) -> int:
        """Return how many statements ran on this physical connection through sqlspec's cursors."""
        return int(self._live().info[_QUERIES])

    @property
    def error_count(self) -> int:
        """Return how many of them failed."""
        return int(self._live().info[_ERRORS])

    @property
    def driver_connection(self) -> Any:
        """Return the driver's own connection. It must not be used after `close`."""
        self._live()
        self._open = True
        return self._connection

    # -- PEP 249

    def cursor(self, *args: Any, **kwargs: Any) -> Cursor:
        """Return a cursor; arguments are the driver's."""
        self._live()
        cursor = Cursor(self, self._connection.cursor(*args, **kwargs))
        self._cursors.add(cursor)
        return cursor

    def begin(self) -> None:
        """Mark the begin of a transaction.

        Under autocommit it opens one transaction, and `commit` or `rollback` goes back to autocommit.

        Raises:
            ProgrammingError: the driver's; a transaction is open already (MySQL would commit it silently).
        """
        self._live()
        if self._open or self._begun:
            raise self._refusal("begin() inside an open transaction: commit() or rollback() first")
        if self._autocommit:
            self._driver.set_autocommit(self._connection, False)
        self._begun = True
        if self._driver.sends_begin:
            self._start()

    def commit(self) -> None:
        """Commit the transaction."""
        self._live()
        self._connection.commit()
        self._ended()

    def rollback(self) -> None:
        """Roll the transaction back."""
        self._live()
        self._connection.rollback()
        self._ended()

    def invalidate(self) -> None:
        """Close the physical connection; the pool opens another in its place when one is needed."""
        proxy = self._live()
        self._invalidated = True
        self._forget()
        proxy.invalidate()
        proxy.close()

    def close(self) -> None:
        """Check the connection in; what is not committed is rolled back.

        A second call does nothing on psycopg2 and sqlite3, and is an InterfaceError on mysqlclient, as closing
        these drivers' own connections twice.
        """
        if self._closed:
            if self._driver.closes_once and not self._invalidated:
                self._live()
            return
        proxy, connection, is_open, begun = self._proxy, self._connection, self._open, self._begun
        for cursor in list(self._cursors):
            cursor.close()
        self._forget()
        try:
            if begun and self._autocommit:
                connection.rollback()
                self._driver.set_autocommit(connection, True)
                is_open = False
        except BaseException:
            proxy.invalidate()
            proxy.close()
            raise
        if is_open:
            proxy.close()
        else:
            # nothing is open: SQLAlchemy's own rollback would be a round trip for nothing
            proxy._close_special(transaction_reset=True)

    def __enter__(self) -> Self:
        self._live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = self._works and not self._closed
        try:
            if not self._closed:
                self.close()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"sqlspec: the checkin failed as well: {type(second).__name__}: {second}")
        if lost and error is None:
            warnings.warn(
                "this block ended without commit(): its uncommitted work was rolled back",
                SQLSpecWarning,
                stacklevel=2,
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._live()
        value = getattr(self._connection, name)
        # whatever the driver does there, it may have opened a transaction
        self._open = self._open or callable(value)
        return value

    # -- for the cursor

    def _live(self) -> PoolProxiedConnection:
        if self._closed:
            raise self._dialect.loaded_dbapi.InterfaceError("the connection is closed: it went back to the pool")
        return self._proxy

    def _start(self) -> None:
        """Begin a transaction where the driver does not by itself."""
        self._driver.begin(self._connection, None)
        self._open = True

    def _before(self, statement: Statement) -> None:
        info = self._live().info
        info[_QUERIES] += 1
        if self._autocommit and not self._begun:
            return
        if not self._open and statement.opens:
            self._start()
        self._works = self._works or not statement.reads

    def _failed(self) -> None:
        info = self._proxy.info
        info[_ERRORS] += 1

    def _is_disconnect(self, error: Exception, cursor: Any) -> bool:
        if not isinstance(error, self._dialect.loaded_dbapi.Error):
            return False
        return bool(self._dialect.is_disconnect(cast("Any", error), self._connection, cursor))

    def _ended(self) -> None:
        if self._begun and self._autocommit:
            self._driver.set_autocommit(self._connection, True)
        self._open = self._works = self._begun = False

    def _forget(self) -> None:
        self._closed = True
        self._connection = None

    def _refusal(self, problem: str) -> Any:
        return self._dialect.loaded_dbapi.ProgrammingError(problem)


class Cursor:
    """Be a DB-API cursor that takes ``?`` and ``:name`` on every database."""

    _connection: Connection
    _cursor: Any

    def __init__(self, connection: Connection, cursor: Any) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_cursor", cursor)

    @property
    def connection(self) -> Connection:
        """Return the connection that made this cursor."""
        return self._connection

    def execute(self, statement: str, parameters: Any = None) -> Self:
        """Run one statement with one set of parameters.

        Raises:
            Exception: the driver's errors; its ProgrammingError where parameters and placeholders do not fit.
        """
        prepared, values = self._bind(statement, parameters)
        arguments = (prepared.text,) if values is None else (prepared.text, values)
        self._run(prepared, "execute", arguments)
        return self

    def executemany(self, statement: str, rows: Iterable[Any]) -> Self:
        """Run one statement once for each row of parameters."""
        sets, prepared = list(rows), None
        for row in sets:
            prepared, _ = self._bind(statement, row)
        if prepared is not None:
            self._run(prepared, "executemany", (prepared.text, sets))
        return self

    def _bind(self, statement: str, parameters: Any) -> tuple[Statement, Any]:
        self._connection._live()
        if not isinstance(statement, str):
            # psycopg's Composed and the like are the driver's business
            return Statement(statement, None, None, False, True), parameters
        try:
            return bind(statement, parameters, self._connection._driver.syntax)
        except PlaceholderError as error:
            problem = str(error)
        raise self._connection._refusal(problem)

    def _run(self, statement: Statement, method: str, arguments: tuple[Any, ...]) -> None:
        self._connection._before(statement)
        try:
            getattr(self._cursor, method)(*arguments)
        except Exception as error:
            self._connection._failed()
            if self._connection._is_disconnect(error, self._cursor):
                self._connection._proxy.invalidate(error)
            raise

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._live().fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """Return the next rows."""
        return self._live().fetchmany(self._cursor.arraysize if size is None else size)

    def fetchall(self) -> Any:
        """Return the rows that are left."""
        return self._live().fetchall()

    def close(self) -> None:
        """Close the cursor. Harmless when repeated."""
        self._cursor.close()

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._live(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._live(), name, value)

    def _live(self) -> Any:
        self._connection._live()
        return self._cursor
