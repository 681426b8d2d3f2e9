"""Connection and Cursor: PEP 249 with portable placeholders."""

from __future__ import annotations

import asyncio
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, cast

from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection

from sqlspec.adapters import Driver, TransactionOptions
from sqlspec.engine import borrow, discard
from sqlspec.exceptions import ConnectionTimeout, SQLSpecWarning
from sqlspec.pool import count_error, forks, slot_of, within
from sqlspec.resilience import ErrorKind, classify
from sqlspec.session.placeholders import PlaceholderError, Statement, bind, bind_rows, rows_of
from sqlspec.session.recovery import recover
from sqlspec.session.turns import OneAtATime

__all__ = ["Connection", "Cursor"]

LOST_WORK = "this block ended without commit(): its uncommitted work was rolled back"
_OPENED = "sqlspec_opened"
_QUERIES = "sqlspec_queries"
_ERRORS = "sqlspec_errors"
_READ_ONLY = TransactionOptions(read_only=True)
# methods of cursors that run nothing
_HARMLESS = frozenset({"setinputsizes", "setoutputsize", "nextset", "scroll", "mogrify", "fetchval", "fileno"})


class Connection(OneAtATime):
    """Be a DB-API connection from the pool; `close` checks it in.

    What PEP 249 does not name is handed to the driver's connection. Errors are the driver's. As a context
    manager it closes at the end of the block; uncommitted work is rolled back, with a warning. Not thread-safe.
    """

    def __init__(self, proxy: PoolProxiedConnection, driver: Driver, dialect: Dialect) -> None:
        self._proxy = proxy
        self._driver = driver
        self._dialect = dialect
        self._connection: Any = proxy.dbapi_connection
        self._slot = slot_of(proxy)
        self._autocommit = driver.autocommit
        self._process_id = forks.process_id
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._closed = self._invalidated = False
        # _open: a transaction may be open on the server; _works: it changed something; _begun: begin() was called;
        # _touched: the driver's connection was used directly, and nobody knows
        self._open = self._works = self._begun = self._touched = False
        proxy.info.setdefault(_OPENED, time.monotonic())

    def _become_read_only(self, seconds: float) -> None:
        """Have the server refuse writes until the checkin, and take no longer for it.

        Under autocommit as well: what is read is in a transaction then, since not every driver knows anything else
        that is read only.
        """
        self._autocommit = False
        deadline = time.monotonic() + seconds
        try:
            within(self._connection, seconds, self._refuse_writes)
            if time.monotonic() >= deadline:
                # it was cut in the last moment
                raise ConnectionTimeout(f"making it read only took longer than {seconds:.3g} s", "ping")
        except BaseException:
            self._closed = True
            discard(self._proxy)
            raise

    def _refuse_writes(self) -> None:
        driver, connection = self._driver, self._connection
        borrow(self._proxy, driver, False, _READ_ONLY)
        # of the driver or of the session, until borrow() changes it back
        driver.begin(connection, _READ_ONLY)
        if driver.sends_begin:
            driver.end(connection, "rollback")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "in transaction" if self._open else "idle"
        return f"<Connection on {self._driver.name}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection cannot be copied or pickled: get another one from the registry")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._connection) if not name.startswith("_"))})

    # -- facts

    @property
    def age(self) -> float:
        """Return the seconds since sqlspec first handed this physical connection out."""
        return time.monotonic() - float(self._live().info[_OPENED])

    @property
    def query_count(self) -> int:
        """Return how many statements ran on this physical connection through sqlspec's cursors."""
        return int(self._live().info.get(_QUERIES, 0))

    @property
    def error_count(self) -> int:
        """Return how many of them failed."""
        return int(self._live().info.get(_ERRORS, 0))

    @property
    def driver_connection(self) -> Any:
        """Return the driver's own connection. It must not be used after `close`."""
        self._live()
        self._touch()
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
            self._touch()
            self._driver.set_autocommit(self._connection, False)
        self._begun = True
        if self._driver.sends_begin:
            self._start()

    def commit(self) -> None:
        """Commit the transaction."""
        self._live()
        self._finish("commit")

    def rollback(self) -> None:
        """Roll the transaction back."""
        self._live()
        self._finish("rollback")

    def _finish(self, how: Literal["commit", "rollback"]) -> None:
        try:
            self._driver.end(self._connection, how)
        except (Exception, asyncio.CancelledError) as error:
            self._failed(error, None)
            raise
        self._ended()

    def invalidate(self) -> None:
        """Close the physical connection; the pool opens another in its place when one is needed."""
        proxy = self._live()
        self._closed = self._invalidated = True
        self._connection = None
        discard(proxy)

    def close(self) -> None:
        """Check the connection in; what is not committed is rolled back.

        A second call does nothing on psycopg2 and sqlite3, and is an InterfaceError on mysqlclient, as closing
        these drivers' own connections twice.
        """
        if self._closed:
            if self._driver.closes_once and not self._invalidated:
                self._live()
            return
        # under autocommit the pool takes it that there is nothing to reset
        self._check_in(roll_back=self._autocommit)

    def _check_in(self, *, roll_back: bool) -> None:
        proxy, connection = self._proxy, self._connection
        is_open = self._open or self._touched
        self._closed, self._connection = True, None
        if self._process_id != forks.process_id:
            return
        try:
            for cursor in list(self._cursors):
                cursor.close()
            if is_open and roll_back and proxy.is_valid:
                self._driver.end(connection, "rollback")
                is_open = False
        except BaseException:
            discard(proxy)
            raise
        if is_open:
            proxy.close()
        else:
            # nothing is open: SQLAlchemy's own rollback would be a round trip for nothing
            cast("Any", proxy)._close_special(transaction_reset=True)

    def __enter__(self) -> Self:
        self._live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._leave(error):
            warnings.warn(LOST_WORK, SQLSpecWarning, stacklevel=2)

    def _leave(self, error: BaseException | None) -> bool:
        """Check in at the end of a block; tell whether uncommitted work was lost that nobody knows of."""
        # after a use of the driver's own connection nobody knows what was committed there
        lost = self._works and not self._closed and (self._begun or not self._touched)
        try:
            if not self._closed:
                self._check_in(roll_back=True)
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"sqlspec: the checkin failed as well: {type(second).__name__}: {second}")
        return lost and error is None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._live()
        value = getattr(self._connection, name)
        if callable(value) and not isinstance(value, type):
            # whatever the driver does there, it may have opened a transaction
            self._touch()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif name == "autocommit":
            raise self._refusal("autocommit belongs to the config; begin() opens a transaction under it")
        else:
            self._live()
            self._touch()
            setattr(self._connection, name, value)

    # -- for the cursor

    @property
    def _errors(self) -> Any:
        return self._driver.errors(self._dialect.loaded_dbapi)

    def _live(self) -> PoolProxiedConnection:
        if self._closed:
            raise self._errors.InterfaceError("the connection is closed: it went back to the pool")
        if self._process_id != forks.process_id:
            forks.refuse(self._process_id)
        return self._proxy

    def _start(self) -> None:
        """Begin a transaction where the driver does not by itself."""
        # known before it is sent: an interruption in between must not hand an open transaction on
        self._open = True
        self._driver.begin(self._connection, None)

    def _touch(self) -> None:
        if not self._proxy.is_valid:
            raise self._errors.InterfaceError("the connection is lost: close it and get another one")
        if not self._touched:
            self._touched = True
            borrow(self._proxy, self._driver, self._autocommit)

    def _before(self, statement: Statement) -> None:
        self._live()
        self._slot.statement = statement.text
        self._count(_QUERIES)
        if self._autocommit and not self._begun:
            return
        if not self._open and statement.opens:
            self._start()
        self._works = self._works or not (statement.reads or statement.controls)

    def _after(self, statement: Statement) -> None:
        if statement.controls in {"begin", "unseen"}:
            self._open = True
        elif statement.controls == "end":
            # the driver must know as well: psycopg2 would send no further BEGIN
            self._driver.end(self._connection, "commit")
            self._open = self._works = False

    def _count(self, what: str) -> None:
        # not once the connection is lost: its place in the pool may have another one already
        if self._proxy.is_valid:
            info = self._proxy.info
            info[what] = info.get(what, 0) + 1

    def _failed(self, error: Exception | asyncio.CancelledError, cursor: Any) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._cancelled(error, cursor)
            return
        self._count(_ERRORS)
        if self._proxy.is_valid and isinstance(error, self._errors.Error):
            count_error(self._slot)
        if self._driver.is_async:
            self._driver.note(error, self._dialect, self._connection)
        if self._proxy.is_valid and self._is_disconnect(error, cursor):
            if classify(error) is ErrorKind.READ_ONLY:
                # the others lead to the same server
                cast("Any", self._proxy)._pool._invalidate(self._proxy, error)
            else:
                self._proxy.invalidate(error)

    def _cancelled(self, error: asyncio.CancelledError, cursor: Any = None) -> None:
        if self._proxy.is_valid:
            # its transaction has gone with the statement, and PEP 249 has no word for that: it is closed in any case
            recover(self._driver, self._connection, cursor)
            self._proxy.invalidate(error)

    def _is_autocommit(self) -> bool:
        """Tell whether statements commit by themselves; to a connection that is lost already, none is sent."""
        return not self._closed and self._proxy.is_valid and self._driver.is_autocommit(self._connection)

    def _is_disconnect(self, error: Exception, cursor: Any) -> bool:
        if not isinstance(error, self._errors.Error):
            return False
        if getattr(cursor, "closed", False) and not getattr(self._connection, "closed", True):
            # a closed cursor, on a connection that is not
            return False
        return bool(self._dialect.is_disconnect(cast("Any", error), cast("Any", self._proxy), cursor))

    def _ended(self) -> None:
        if self._begun and self._autocommit:
            self._driver.set_autocommit(self._connection, True)
        self._open = self._works = self._begun = False

    def _refusal_of_a_second_task(self) -> Exception:
        refusal: Exception = self._refusal("another task is at a statement of this connection: one task at a time")
        return refusal

    def _abandon(self) -> None:
        if not self._closed:
            self.invalidate()

    def _refusal(self, problem: str) -> Any:
        return self._errors.ProgrammingError(problem)


class Cursor:
    """Be a DB-API cursor that takes ``?`` and ``:name`` on every database."""

    _connection: Connection
    _cursor: Any

    def __init__(self, connection: Connection, cursor: Any) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_cursor", cursor)

    def __repr__(self) -> str:
        return f"<Cursor of {self._connection!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cursor cannot be copied or pickled")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._cursor) if not name.startswith("_"))})

    @property
    def connection(self) -> Connection:
        """Return the connection that made this cursor."""
        return self._connection

    def execute(self, statement: str, parameters: Any = None, **options: Any) -> Self:
        """Run one statement with one set of parameters; further options are the driver's.

        Raises:
            Exception: the driver's errors; its ProgrammingError where parameters and placeholders do not fit.
        """
        prepared, values = self._bind(bind, statement, parameters)
        self._run(prepared, self._cursor.execute, *(() if values is None else (values,)), **options)
        return self

    def executemany(self, statement: str, rows: Iterable[Any], **options: Any) -> Self:
        """Run one statement once for each row of parameters; further options are the driver's."""
        sets = self._checked(rows_of, rows)
        if not sets:
            self._run(Statement(statement, opens=False, reads=True), self._cursor.executemany, sets, **options)
            return self
        prepared, values = self._bind(bind_rows, statement, sets)
        if prepared.count == 0:
            # the drivers would look for placeholders in it
            for _ in sets:
                self._run(prepared, self._cursor.execute)
        else:
            self._run(prepared, self._cursor.executemany, values, **options)
        return self

    def _bind(self, binder: Callable[..., tuple[Statement, Any]], statement: str, parameters: Any) -> Any:
        self._connection._live()
        if not isinstance(statement, str):
            # psycopg's Composed and the like are the driver's business
            return Statement(statement), parameters
        return self._checked(binder, statement, parameters, self._connection._driver.language)

    def _checked(self, check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except PlaceholderError as error:
            problem = str(error)
        raise self._connection._refusal(problem)

    def _run(self, statement: Statement, method: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        connection = self._connection
        try:
            connection._before(statement)
            if connection._driver.is_async:
                connection._driver.follow_schema(self._cursor, connection._dialect)
            if method == self._cursor.executemany:
                connection._driver.within_many(self._cursor, method, statement.text, *arguments, **options)
            else:
                connection._driver.within(connection._connection, method, statement.text, *arguments, **options)
            if connection._driver.is_async:
                connection._driver.skip_further(self._cursor)
        except (Exception, asyncio.CancelledError) as error:
            if statement.commits or connection._is_autocommit():
                error.in_commit = True  # type: ignore[union-attr]  # for `sqlspec.resilience.is_ambiguous`
            if statement.controls == "unseen":
                connection._after(statement)
            connection._failed(error, self._cursor)
            raise
        if statement.alters:
            connection._driver.schema_changes(connection._dialect)
        if statement.controls is not None:
            connection._after(statement)

    def _fetch(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self._connection._live()
        try:
            return self._connection._driver.within(self._connection._connection, method, *arguments)
        except StopIteration:
            raise
        except (Exception, asyncio.CancelledError) as error:
            self._connection._failed(error, self._cursor)
            raise

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._fetch(self._cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        """Return the next rows."""
        return self._fetch(self._cursor.fetchmany, self._cursor.arraysize if size is None else size)

    def fetchall(self) -> Any:
        """Return the rows that are left."""
        return self._fetch(self._cursor.fetchall)

    def close(self) -> None:
        """Close the cursor. Harmless when repeated."""
        # of a lost connection nothing is left to close
        proxy = self._connection._proxy
        if proxy.is_valid:
            # one on the server is closed there
            self._connection._driver.within(proxy.dbapi_connection, self._cursor.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._fetch(next, self._cursor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._live(), name)
        if callable(value) and name not in _HARMLESS:
            # such as psycopg2's copy_expert: who can tell what it does
            self._connection._before(Statement(""))
            self._connection._open = True
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._live(), name, value)

    def _live(self) -> Any:
        self._connection._live()
        return self._cursor
