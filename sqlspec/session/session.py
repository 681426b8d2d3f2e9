"""Session: a unit of work on one pooled connection."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast, overload

from sqlalchemy import ClauseElement, CursorResult, Executable, FunctionElement, Result, exc

from sqlspec.adapters.commits import commits
from sqlspec.adapters.loading import Position, RowProblem, Target
from sqlspec.engine import adopt_transaction
from sqlspec.exceptions import LoadError
from sqlspec.pool import forks
from sqlspec.session.base import BaseSession
from sqlspec.session.bulk import sequences_of
from sqlspec.session.placeholders import PlaceholderError, Statement, bind, bind_rows, is_query, prepare, rows_of
from sqlspec.session.result import DriverResult, NoCursor, StreamCursor, columns_of
from sqlspec.session.savepoint import Savepoint

__all__ = ["Session"]

R = TypeVar("R", bound=Result[Any])


class Session(BaseSession):
    """Run statements in a transaction that commits at the end of the ``with`` block.

    The connection is checked out by the first statement. An exception that leaves the block rolls back and
    goes on unchanged. Strings go straight to the driver; SQLAlchemy executables run in the same transaction.
    Not thread-safe: one session belongs to one thread at a time.
    """

    _savepoints = 0

    @overload
    def execute(self, statement: str, parameters: Any = None) -> DriverResult: ...

    @overload
    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]: ...

    def execute(self, statement: str | Executable, parameters: Any = None) -> Any:
        """Run one statement with one set of parameters.

        Strings take ``?`` with a sequence and ``:name`` with a mapping on every database.

        Returns:
            A SQLAlchemy ``Result``; of a statement without rows it has ``rowcount`` and ``lastrowid``.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself would raise it.
            sqlspec.exceptions.ConnectionTimeout: the first statement found no free connection in time.
        """
        if not isinstance(statement, str):
            return self._remember(self.connection().execute(statement, parameters))
        try:
            prepared, values = bind(statement, parameters, self._driver.language)
        except PlaceholderError as error:
            problem = str(error)
        else:
            return self._run(prepared, values, many=False)
        return self._refuse(problem, statement, parameters)

    @overload
    def execute_many(self, statement: str, rows: Iterable[Any]) -> DriverResult: ...

    @overload
    def execute_many(self, statement: Executable, rows: Iterable[Any]) -> CursorResult[Any] | DriverResult: ...

    def execute_many(self, statement: str | Executable, rows: Iterable[Any]) -> Any:
        """Run one statement once for each row of parameters; without rows nothing runs, and rowcount is 0.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself would raise it.
        """
        sets: list[Any] = []
        try:
            sets = rows_of(rows)
            if not sets:
                self._require_open()
                return DriverResult(None, NoCursor(), self)
            if not isinstance(statement, str):
                return self._remember(self.connection().execute(statement, sets))
            prepared, values = bind_rows(statement, sets, self._driver.language)
        except PlaceholderError as error:
            problem = str(error)
        else:
            if prepared.count == 0:
                # the drivers would look for placeholders in it
                return [self._run(prepared, None, many=False) for _ in sets][-1]
            return self._run(prepared, values, many=True)
        return self._refuse(problem, statement, sets)

    def stream(
        self, statement: str | Executable, parameters: Any = None, *, chunk_size: int = 1000
    ) -> CursorResult[Any]:
        """Run a query whose rows come from the server as they are read, ``chunk_size`` at a time.

        Iterate over it, best in a ``with`` block, which closes the cursor; the session closes it at the latest. On
        MySQL nothing else can run in the session until it is read or closed, and is refused. Of statements that change
        something, such as INSERT … RETURNING, the rows come all at once on psycopg2, psycopg and SQLite.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself would raise it.
            sqlalchemy.exc.InvalidRequestError: under autocommit on PostgreSQL, whose cursors live in transactions.
        """
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: at least one row")
        if self._autocommit and self._driver.syntax == "postgresql":
            raise exc.InvalidRequestError("stream() needs a transaction on PostgreSQL, and this session autocommits")
        options: dict[str, Any] = {}
        if not self._driver.streams_queries_only or is_query(self._text_of(statement), self._driver.syntax):
            options = {"stream_results": True, "yield_per": chunk_size}
        if not isinstance(statement, str):
            return self._open_stream(self.connection().execute(statement, parameters, execution_options=options))
        try:
            prepared, values = bind(statement, parameters, self._driver.language)
        except PlaceholderError as error:
            problem = str(error)
        else:
            return self._open_stream(self._run_watched(prepared, values, many=False, options=options))
        return self._refuse(problem, statement, parameters)

    def _text_of(self, statement: str | Executable) -> str:
        if isinstance(statement, FunctionElement):
            statement = statement.select()
        if isinstance(statement, ClauseElement):
            return str(statement.compile(dialect=self._engine.dialect))
        return str(statement)

    def load_rows(self, table: str, rows: Iterable[Any], columns: Sequence[str] = ()) -> int:
        """Load rows into a table by the driver's fastest way, within the transaction; return how many.

        Args:
            table: its name, with a schema and a point before it or without; quoted where it must be.
            rows: sequences, or mappings of column to value; any iterable, of which little is kept in memory.
            columns: what the values are for; without, the keys of mappings, or all columns in their order.

        Raises:
            sqlspec.exceptions.LoadError: a row does not fit; nothing of this call is kept once you roll back.
            sqlalchemy.exc.InvalidRequestError: under autocommit; or the rows may come from a stream of this session,
                whose connection they would be loaded on: SQLite alone can do both.
        """
        if self._autocommit:
            raise exc.InvalidRequestError("load_rows() needs a transaction, and this session autocommits")
        names, position = sequences_of(rows, columns)
        connection = self.connection()
        if not isinstance(rows, Sequence):
            self._require_no_stream()
        if not connection.in_transaction():
            connection.begin()
        self._occupied = "load_rows() is under way: take its rows from another session"
        try:
            self._driver.load(self._driver_connection, Target(table, names, self._engine.dialect), position)
        except BaseException as error:  # noqa: BLE001  # always raised again
            self._fail_to_load(table, position, error)
        finally:
            self._occupied = ""
        return position.taken

    def _require_no_stream(self) -> None:
        # Only now, since it may be the first row that opens it. COPY has the connection for itself: rows that come from
        # there would be waited for without end.
        if self._driver.syntax == "postgresql" and not all(stream._soft_closed for stream in self._streams):
            raise exc.InvalidRequestError(
                "load_rows() cannot take rows one by one while a stream of its session is open on PostgreSQL: "
                "read them into a list first, or take them from another session, as copy_rows() does"
            )

    def _fail_to_load(self, table: str, position: Position, error: BaseException) -> NoReturn:
        problem = position.failure or error
        if isinstance(problem, RowProblem):
            raise LoadError(table, problem, problem.position) from problem
        if position.failure is not None:
            raise position.failure from None
        try:
            self._fail(error)
        except Exception as failed:
            raise LoadError(table, failed, position.bad) from failed

    @contextlib.contextmanager
    def _text_of_json(self) -> Iterator[None]:
        """Have JSON come as its text for a while, so that it can go on as it is: to `copy_rows`."""
        self.connection()
        connection, driver = self._driver_connection, self._driver
        driver.parse_json(connection, False)
        try:
            yield
        finally:
            driver.parse_json(connection, True)

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

    def _receive(self, result: CursorResult[Any]) -> None:
        context = result.context
        if commits(context.statement, self._driver.syntax):
            self._has_committed = True
        if context._is_server_side:
            self._open_stream(result)
        elif result.returns_rows and prepare(context.statement, self._driver.language, "none").lingers:
            parameters = context.parameters if context.executemany else context.parameters[0]
            try:
                result.cursor = self._driver.read_to_end(result.cursor)
                context._rowcount = result.cursor.rowcount
            except BaseException as error:  # noqa: BLE001  # always raised again
                self._fail(error, result.cursor, context.statement, parameters)

    def _open_stream(self, result: CursorResult[Any]) -> CursorResult[Any]:
        if result in self._streams:
            return result
        if result.cursor is not None:
            result.cursor = cast("Any", StreamCursor(result.cursor, self._driver, self._driver_connection))
        # on MySQL nothing else can run, not even COMMIT, before it is closed
        self._streams = [known for known in self._streams if not known._soft_closed] + [result]
        return result

    def _refuse(self, problem: str, sql: Any, parameters: Any) -> NoReturn:
        origin = self._engine.dialect.loaded_dbapi.ProgrammingError(problem)
        raise exc.ProgrammingError(str(sql), parameters, origin, hide_parameters=self._engine.hide_parameters)

    def _run(self, statement: Statement, parameters: Any, *, many: bool) -> Result[Any]:
        if self._closed:
            self._require_open()
        if self._streams or self._occupied:
            self._require_free()
        if statement.controls == "begin" and self._options is not None:
            raise exc.InvalidRequestError("this session begins its transactions itself, with its options: leave it out")
        connection = self._connection
        if connection is not None:
            connection = self._living(connection)
        elif self._is_lost:
            self._require_committed()
        if self._driver_connection is None:
            self._open()
        elif self._process_id != forks.process_id:
            forks.refuse(self._process_id)
        engine = self._engine
        # Somebody listens to statements, or wants them in the log: they go the way that SQLAlchemy's own go.
        watched = engine._has_events or engine.dialect._has_events or self._echo
        if watched or (connection is not None and connection._has_events):
            return self._run_watched(statement, parameters, many)
        if not statement.opens or self._autocommit:
            pass
        elif connection is not None:
            if not connection.in_transaction():
                connection.begin()
        elif not self._in_transaction:
            self._begin()
        self._slot.statement = statement.text
        cursor = changed = None
        try:
            cursor = self._driver_connection.cursor()
            if self._driver.is_async:
                self._driver.follow_schema(cursor, engine.dialect)
            if many:
                changed = self._driver.execute_many(cursor, statement.text, parameters)
            elif self._driver.patience is not None:
                arguments = (statement.text,) if parameters is None else (statement.text, parameters)
                self._driver.within(self._driver_connection, cursor.execute, *arguments)
            elif parameters is None:
                cursor.execute(statement.text)
            else:
                cursor.execute(statement.text, parameters)
            columns = columns_of(statement, cursor, self._driver, engine.dialect)
            if columns is not None and statement.lingers:
                cursor = self._driver.read_to_end(cursor)
        except BaseException as error:  # noqa: BLE001  # always raised again
            if statement.controls == "unseen":
                self._follow("unseen")
            self._fail(error, cursor, statement.text, parameters)
        if statement.commits:
            self._has_committed = True
        if statement.alters:
            self._driver.schema_changes(engine.dialect)
        if statement.controls is not None:
            self._follow(statement.controls)
        result = DriverResult(columns, cursor, self)
        if changed is not None:
            result._rowcount = changed
        if columns is not None:
            self._note(weakref.ref(result))
        return result

    def _run_watched(
        self, statement: Statement, parameters: Any, many: bool, options: dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        connection = self.connection()
        sets = parameters if many else [] if parameters is None else [parameters]
        arguments = [values if isinstance(values, dict) else tuple(values) for values in sets]
        # without parameters the driver must not look for its placeholders: a % stands for itself
        options = {**(options or {}), "no_parameters": parameters is None}
        outside = not statement.opens and not connection.in_transaction()
        if outside:
            adopt_transaction(connection)
        try:
            result = connection.exec_driver_sql(statement.text, arguments or None, execution_options=options)
        except BaseException as error:
            if self._driver.is_async:
                self._driver.note(getattr(error, "orig", error), self._engine.dialect, self._driver_connection)
            if outside:
                connection.rollback()
            if statement.controls == "unseen":
                self._follow("unseen")
            raise
        if outside and statement.controls != "begin":
            connection.commit()
        if statement.alters:
            self._driver.schema_changes(self._engine.dialect)
        if statement.controls is not None:
            self._follow(statement.controls)
        return self._remember(result)

    def _follow(self, control: str) -> None:
        """Know of a transaction that a statement in a string began or ended."""
        if control == "end":
            # the driver must know as well: psycopg2 would send no further BEGIN
            self._in_transaction = self._connection is None
            self._end("commit")
            return
        if control == "unseen" and not self._autocommit:
            return
        # under autocommit SQLAlchemy takes it that there is nothing to roll back
        self._by_hand = self._autocommit
        if self._connection is None:
            self._in_transaction = True
        elif not self._connection.in_transaction():
            adopt_transaction(self._connection)

    def _remember(self, result: R) -> R:
        if not result._soft_closed:
            self._note(lambda: result)
        return result

    def _note(self, reference: Callable[[], Result[Any] | None]) -> None:
        self._results.append(reference)
        if len(self._results) > self._results_limit:
            found = ((known, known()) for known in self._results)
            self._results = [known for known, result in found if result is not None and not result._soft_closed]
            self._results_limit = max(1000, 2 * len(self._results))
