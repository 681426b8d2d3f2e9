"""The asynchronous sessions and connections: each has the synchronous one inside, run in a greenlet of SQLAlchemy's.

Nothing is decided here: SQLAlchemy adapts the asynchronous drivers to PEP 249, and what runs in a greenlet waits for
them without blocking the event loop.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, Self, TypeVar, overload

from sqlalchemy import CursorResult, Executable, MappingResult, Result, Row, ScalarResult
from sqlalchemy.util import await_only

from sqlspec.exceptions import SQLSpecWarning
from sqlspec.pool import Place
from sqlspec.session.connection import LOST_WORK, Connection, Cursor
from sqlspec.session.greenlets import run_in_greenlet
from sqlspec.session.result import DriverResult
from sqlspec.session.savepoint import Savepoint
from sqlspec.session.session import Session

if TYPE_CHECKING:
    import sqlalchemy.ext.asyncio

__all__ = ["AsyncConnection", "AsyncCursor", "AsyncSavepoint", "AsyncSession", "AsyncStream", "PendingResult"]

R = TypeVar("R", bound=Result[Any])


class PendingResult(Generic[R]):
    """Be a statement that runs once it, or one of its methods, is awaited; never awaited, it warns."""

    __slots__ = ("_arguments", "_has_begun", "_place", "_work")

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._work = work
        self._arguments = arguments
        self._has_begun = False
        frame = sys._getframe(2)
        self._place = frame.f_code, frame.f_lasti

    def __await__(self) -> Generator[Any, None, R]:
        if self._has_begun:
            raise RuntimeError("this statement has been awaited already: execute it again")
        self._has_begun = True
        return run_in_greenlet(self._work, *self._arguments).__await__()

    def __repr__(self) -> str:
        return f"<PendingResult at {Place(*self._place)}, {'awaited' if self._has_begun else 'not awaited yet'}>"

    def __del__(self) -> None:
        if not self._has_begun:
            warnings.warn(
                f"the statement at {Place(*self._place)} was never awaited, and has not run",
                RuntimeWarning,
                stacklevel=1,
            )

    async def all(self) -> Sequence[Row[Any]]:
        """Run it and return all rows."""
        return (await self).all()

    async def first(self) -> Row[Any] | None:
        """Run it and return the first row, or None."""
        return (await self).first()

    async def one(self) -> Row[Any]:
        """Run it and return its only row."""
        return (await self).one()

    async def one_or_none(self) -> Row[Any] | None:
        """Run it and return its only row, or None where there is none."""
        return (await self).one_or_none()

    async def scalar(self) -> Any:
        """Run it and return the first value of the first row, or None."""
        return (await self).scalar()

    async def scalar_one(self) -> Any:
        """Run it and return the first value of its only row."""
        return (await self).scalar_one()

    async def scalar_one_or_none(self) -> Any:
        """Run it and return the first value of its only row, or None where there is none."""
        return (await self).scalar_one_or_none()

    async def scalars(self) -> ScalarResult[Any]:
        """Run it and return the first values of its rows."""
        return (await self).scalars()

    async def mappings(self) -> MappingResult:
        """Run it and return its rows as mappings."""
        return (await self).mappings()


class AsyncSession:
    """Run statements in a transaction that commits at the end of the ``async with`` block.

    As `Session`, which it has inside; what waits for the database is awaited. One session belongs to one task at
    a time.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return f"<Async{repr(self._session)[1:]}"

    def __reduce__(self) -> NoReturn:
        self._session.__reduce__()

    @property
    def in_transaction(self) -> bool:
        """Tell whether statements have run that are not yet committed or rolled back."""
        return self._session.in_transaction

    @overload
    def execute(self, statement: str, parameters: Any = None) -> PendingResult[DriverResult]: ...

    @overload
    def execute(self, statement: Executable, parameters: Any = None) -> PendingResult[CursorResult[Any]]: ...

    def execute(self, statement: str | Executable, parameters: Any = None) -> PendingResult[Any]:
        """Return one statement with one set of parameters, to be awaited, by itself or by a method of its result.

        ``await session.execute(sql).all()`` and ``(await session.execute(sql)).all()`` are the same. Errors are
        those of `Session.execute`.
        """
        return PendingResult(self._session._in_task, self._session.execute, statement, parameters)

    @overload
    def execute_many(self, statement: str, rows: Iterable[Any]) -> PendingResult[DriverResult]: ...

    @overload
    def execute_many(
        self, statement: Executable, rows: Iterable[Any]
    ) -> PendingResult[CursorResult[Any] | DriverResult]: ...

    def execute_many(self, statement: str | Executable, rows: Iterable[Any]) -> PendingResult[Any]:
        """Return one statement to be run once for each row of parameters, to be awaited."""
        return PendingResult(self._session._in_task, self._session.execute_many, statement, rows)

    def stream(self, statement: str | Executable, parameters: Any = None, *, chunk_size: int = 1000) -> AsyncStream:
        """Return the rows of a query, which come from the server as they are read, ``chunk_size`` at a time.

        Iterate over it, best in an ``async with`` block, which closes the cursor; the session closes it at the latest.
        Errors are those of `Session.stream`.
        """
        return AsyncStream(self._session, statement, parameters, chunk_size)

    async def load_rows(self, table: str, rows: Iterable[Any] | AsyncIterable[Any], columns: Sequence[str] = ()) -> int:
        """Load rows into a table by the driver's fastest way, as `Session.load_rows`; they may come asynchronously."""
        source = _in_greenlet(rows) if isinstance(rows, AsyncIterable) else rows
        return await run_in_greenlet(self._session._in_task, self._session.load_rows, table, source, columns)

    async def commit(self) -> None:
        """Commit what ran so far; the next statement begins a new transaction."""
        await run_in_greenlet(self._session._in_task, self._session.commit)

    async def rollback(self) -> None:
        """Undo what ran since the last commit; under autocommit, nothing can be undone."""
        await run_in_greenlet(self._session._in_task, self._session.rollback)

    def begin_nested(self) -> AsyncSavepoint:
        """Return a savepoint for an ``async with`` block, or to be awaited."""
        return AsyncSavepoint(self._session)

    async def connection(self) -> sqlalchemy.ext.asyncio.AsyncConnection:
        """Return the SQLAlchemy connection of this session, in the same transaction."""
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

        connection = await run_in_greenlet(self._session._in_task, self._session.connection)
        return AsyncConnection(AsyncEngine(connection.engine), connection)

    async def close(self) -> None:
        """Roll back what is not committed, and check the connection in. Harmless when repeated."""
        await run_in_greenlet(self._session._leave_in_task, None, self._session.close)

    async def __aenter__(self) -> Self:
        self._session.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await run_in_greenlet(self._session._leave_in_task, error, self._session.__exit__, kind, error, traceback)


def _in_greenlet(rows: AsyncIterable[Any]) -> Iterator[Any]:
    """Iterate within a greenlet of SQLAlchemy's."""
    iterator = aiter(rows)
    while True:
        try:
            yield await_only(anext(iterator))
        except StopAsyncIteration:
            return


class AsyncStream:
    """Be the rows of a query that come as they are read; once closed, there are no more."""

    _result: CursorResult[Any] | None = None
    _closed = False

    def __init__(self, session: Session, statement: str | Executable, parameters: Any, chunk_size: int) -> None:
        self._session = session
        self._statement = statement
        self._parameters = parameters
        self._chunk_size = chunk_size

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not begun" if self._result is None else "open"
        return f"<AsyncStream of {self._session!r}, {state}>"

    def _next(self) -> Sequence[Row[Any]]:
        if self._closed:
            return []
        if self._result is None:
            self._result = self._session.stream(self._statement, self._parameters, chunk_size=self._chunk_size)
        return self._result.fetchmany(self._chunk_size)

    def _close(self) -> None:
        self._closed = True
        if self._result is not None:
            self._result.close()

    async def __aiter__(self) -> AsyncIterator[Row[Any]]:
        while rows := await run_in_greenlet(self._session._in_task, self._next):
            for row in rows:
                yield row

    async def close(self) -> None:
        """Close the cursor. Harmless when repeated."""
        await run_in_greenlet(self._session._in_task, self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncSavepoint:
    """Be a part of a transaction that can be undone by itself, as `Savepoint`."""

    _savepoint: Savepoint | None = None

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return f"<Async{repr(self._set())[1:]}" if self._savepoint is not None else "<AsyncSavepoint, not set yet>"

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def _set(self) -> Savepoint:
        if self._savepoint is None:
            raise RuntimeError("the savepoint is not set yet: write `async with session.begin_nested()`, or await it")
        return self._savepoint

    @property
    def is_active(self) -> bool:
        """Tell whether the savepoint has been neither released nor rolled back."""
        return self._set().is_active

    async def commit(self) -> None:
        """Keep what ran since the savepoint, as part of the transaction around it."""
        await run_in_greenlet(self._session._in_task, self._set().commit)

    async def rollback(self) -> None:
        """Undo what ran since the savepoint; the transaction around it goes on. Harmless when repeated."""
        await run_in_greenlet(self._session._in_task, self._set().rollback)

    async def __aenter__(self) -> Self:
        self._savepoint = await run_in_greenlet(self._session._in_task, self._session.begin_nested)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await run_in_greenlet(self._session._in_task, self._set().__exit__, kind, error, traceback)


class Connections(Protocol):
    """Be where DB-API connections come from."""

    def get_connection(self, timeout: float | None) -> Connection:
        """Check a connection out."""


class AsyncConnection:
    """Be a DB-API connection from the pool for an ``async with`` block, as `Connection`, with awaitable methods.

    The block checks it out and in; uncommitted work is rolled back, with a warning.
    """

    _connection: Connection | None = None

    def __init__(self, source: Connections, timeout: float | None) -> None:
        self._source = source
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<Async{repr(self._connection)[1:]}" if self._connection else "<AsyncConnection, not checked out yet>"

    def _live(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the connection is not checked out yet: write `async with …get_async_connection()`")
        return self._connection

    @property
    def age(self) -> float:
        """Return the seconds since sqlspec first handed this physical connection out."""
        return self._live().age

    @property
    def query_count(self) -> int:
        """Return how many statements ran on this physical connection through sqlspec's cursors."""
        return self._live().query_count

    @property
    def error_count(self) -> int:
        """Return how many of them failed."""
        return self._live().error_count

    @property
    def driver_connection(self) -> Any:
        """Return the driver's own connection. It must not be used after the block."""
        return self._live().driver_connection.driver_connection

    def cursor(self) -> AsyncCursor:
        """Return a cursor."""
        self._live()._live()
        return AsyncCursor(self)

    async def begin(self) -> None:
        """Mark the begin of a transaction, as `Connection.begin`."""
        await run_in_greenlet(self._live()._in_task, self._live().begin)

    async def commit(self) -> None:
        """Commit the transaction."""
        await run_in_greenlet(self._live()._in_task, self._live().commit)

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await run_in_greenlet(self._live()._in_task, self._live().rollback)

    async def invalidate(self) -> None:
        """Close the physical connection; the pool opens another in its place when one is needed."""
        await run_in_greenlet(self._live().invalidate)

    async def close(self) -> None:
        """Check the connection in; what is not committed is rolled back."""
        await run_in_greenlet(self._live()._leave_in_task, None, self._live().close)

    async def __aenter__(self) -> Self:
        self._connection = await run_in_greenlet(self._source.get_connection, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if await run_in_greenlet(self._live()._leave_in_task, error, self._live()._leave, error):
            warnings.warn(LOST_WORK, SQLSpecWarning, stacklevel=2)


class AsyncCursor:
    """Be a DB-API cursor that takes ``?`` and ``:name`` on every database, with awaitable methods."""

    _cursor: Cursor | None = None

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<AsyncCursor of {self._connection!r}>"

    @property
    def connection(self) -> AsyncConnection:
        """Return the connection that made this cursor."""
        return self._connection

    @property
    def description(self) -> Any:
        """Return the columns of the last statement, None where it has none."""
        return None if self._cursor is None else self._cursor.description

    @property
    def rowcount(self) -> int:
        """Return how many rows the last statement changed or returned; -1 unknown."""
        return -1 if self._cursor is None else int(self._cursor.rowcount)

    @property
    def lastrowid(self) -> Any:
        """Return the driver's last generated key."""
        return getattr(self._cursor, "lastrowid", None)

    def _in_greenlet(self, method: str, *arguments: Any) -> Awaitable[Any]:
        return run_in_greenlet(self._connection._live()._in_task, self._call, method, *arguments)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._cursor is None:
            self._cursor = self._connection._live().cursor()
        return getattr(self._cursor, method)(*arguments)

    async def execute(self, statement: str, parameters: Any = None) -> Self:
        """Run one statement with one set of parameters.

        Raises:
            Exception: the driver's errors; its ProgrammingError where parameters and placeholders do not fit.
        """
        await self._in_greenlet("execute", statement, parameters)
        return self

    async def executemany(self, statement: str, rows: Iterable[Any]) -> Self:
        """Run one statement once for each row of parameters."""
        await self._in_greenlet("executemany", statement, rows)
        return self

    async def fetchone(self) -> Any:
        """Return the next row, or None."""
        return await self._in_greenlet("fetchone")

    async def fetchmany(self, size: int | None = None) -> Any:
        """Return the next rows."""
        return await self._in_greenlet("fetchmany", size)

    async def fetchall(self) -> Any:
        """Return the rows that are left."""
        return await self._in_greenlet("fetchall")

    async def close(self) -> None:
        """Close the cursor. Harmless when repeated."""
        if self._cursor is not None:
            await self._in_greenlet("close")

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (row := await self.fetchone()) is not None:
            yield row

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
