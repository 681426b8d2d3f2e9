"""ScriptedDriver: a DB-API driver (PEP 249) without a database, which breaks where it is told to."""

from __future__ import annotations

import datetime
import itertools
import math
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import sqlalchemy
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect

from sqlspec.pool import FairQueuePool

__all__ = ["Phase", "Rows", "ScriptedConnection", "ScriptedCursor", "ScriptedDriver"]

Phase = Literal["connect", "ping", "execute", "commit", "rollback", "close"]
# What a statement returns. Rows that are mappings name their columns; others have the names that the statement gives.
# None: it returns no rows, as an INSERT.
Rows = Sequence[Sequence[Any] | Mapping[str, Any]] | None

_QUERY = re.compile(r"\s*\(?\s*(SELECT|VALUES|WITH|SHOW|EXPLAIN)\b|.*\bRETURNING\b", re.IGNORECASE | re.DOTALL)
# what stands between SELECT and FROM, or behind RETURNING; a comma that is not between brackets
_COLUMNS = re.compile(
    r"(?:\s*SELECT\s+(?:DISTINCT\s+)?|.*\bRETURNING\s+)(.+?)(?:\bFROM\b.*|$)", re.IGNORECASE | re.DOTALL
)
_COMMA = re.compile(r",(?![^()]*\))")


class Error(Exception):
    """Be the root of what the driver raises."""


class InterfaceError(Error):
    """Say that a connection or a cursor was used that is closed."""


class DatabaseError(Error):
    """Be the root of what a database says."""


class DataError(DatabaseError):
    """Say that a value cannot be used."""


class OperationalError(DatabaseError):
    """Say that the database cannot work at the moment."""


class Disconnect(OperationalError):
    """Say that the connection is lost. Whatever raised it, the connection is dead from then on."""


class IntegrityError(DatabaseError):
    """Say that a constraint is broken."""


class InternalError(DatabaseError):
    """Say that the database is in disorder."""


class ProgrammingError(DatabaseError):
    """Say that a statement is wrong."""


class NotSupportedError(DatabaseError):
    """Say that the database has no such thing."""


class _Fault:
    """Have the next calls of a phase wait, fail, or both, as often as it is told to."""

    def __init__(
        self, times: int | None, seconds: float | None = 0.0, error: BaseException | type[BaseException] | None = None
    ) -> None:
        self.left = math.inf if times is None else times
        # None: until it is released
        self.seconds = seconds
        self.error = error
        self.released = threading.Event()


class ScriptedDriver:
    """Be a driver that works until it is told to break: `fail`, `slow` and `hang` in a phase, `stop` altogether.

    The phases are ``connect``, ``ping``, ``execute``, ``commit``, ``rollback`` and ``close``. `engine` gives a
    SQLAlchemy engine on it; ``FairQueuePool(driver.connect)`` is a bare pool. There is no database: statements return
    the rows of ``rows``, a mapping from statements (white space does not matter) or a callable that gets the
    statement and its parameters and may raise. Without it, and for statements that a mapping does not have, queries
    return ``[(1,)]``. Thread-safe.

    Attributes:
        opened: connections opened so far.
        closed: connections closed so far; one whose close failed is among them.
        calls: phase to the number of calls so far, those that failed or hang included.
        double_closes: connections closed that were closed already.
        uses_after_close: connections used in another way that were closed already; each raised `InterfaceError`.
    """

    apilevel = "2.0"
    threadsafety = 2
    paramstyle = "qmark"

    Error = Error
    InterfaceError = InterfaceError
    DatabaseError = DatabaseError
    DataError = DataError
    OperationalError = OperationalError
    Disconnect = Disconnect
    IntegrityError = IntegrityError
    InternalError = InternalError
    ProgrammingError = ProgrammingError
    NotSupportedError = NotSupportedError

    Binary = bytes
    Date = datetime.date
    Time = datetime.time
    Timestamp = datetime.datetime

    def __init__(self, rows: Callable[[str, Any], Rows] | Mapping[str, Rows] | None = None) -> None:
        self._rows = (
            rows if callable(rows) else {_normal(statement): given for statement, given in (rows or {}).items()}
        )
        # Guards everything below; nothing waits under it. Reentrant, since a garbage collector may close a
        # connection in a thread that has it.
        self._lock = threading.RLock()
        self._faults: list[tuple[Phase, _Fault]] = []
        self._open: set[ScriptedConnection] = set()
        self._is_stopped = False
        self.opened = self.closed = self.double_closes = self.uses_after_close = 0
        self.calls: Counter[Phase] = Counter()
        self._row_ids = itertools.count(1)

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else "running"
        return f"<ScriptedDriver {state}, {self.open_connections} open>"

    @property
    def open_connections(self) -> int:
        """Return how many connections are open, dead ones included: whoever opened them must close them."""
        return len(self._open)

    def engine(self, **options: Any) -> sqlalchemy.Engine:
        """Return an engine on this driver, with the options of `sqlalchemy.create_engine`.

        Its pool is a `FairQueuePool` unless there is a ``poolclass``; `Disconnect` counts as a lost connection.
        """
        return sqlalchemy.create_engine("scripted://", module=self, **{"poolclass": FairQueuePool, **options})

    # -- the script

    def fail(
        self, phase: Phase, error: BaseException | type[BaseException] = Disconnect, *, times: int | None = None
    ) -> None:
        """Have calls of a phase raise this error: so many, or all until `heal`.

        Of a class, each call raises an instance of its own. A `Disconnect` leaves the connection dead.
        """
        self._add(phase, _Fault(times, error=error))

    def slow(self, phase: Phase, seconds: float, *, times: int | None = None) -> None:
        """Have calls of a phase take so many seconds: so many calls, or all until `heal`."""
        self._add(phase, _Fault(times, seconds))

    def hang(self, phase: Phase, *, times: int | None = None) -> threading.Event:
        """Have calls of a phase wait for the event that is returned, or for `heal`: so many calls, or all."""
        fault = _Fault(times, None)
        self._add(phase, fault)
        return fault.released

    def heal(self, *phases: Phase) -> None:
        """Forget what was said about these phases, or about all; calls that hang go on."""
        with self._lock:
            gone = [fault for phase, fault in self._faults if not phases or phase in phases]
            self._faults = [(phase, fault) for phase, fault in self._faults if fault not in gone]
        for fault in gone:
            fault.released.set()

    def stop(self) -> None:
        """Be a database that goes down: every connection is dead, and connecting fails until `restart`."""
        with self._lock:
            self._is_stopped = True
            for connection in self._open:
                connection.is_dead = True

    def restart(self) -> None:
        """Be a database that comes up again: connecting works; connections from before stay dead."""
        with self._lock:
            self._is_stopped = False

    def _add(self, phase: Phase, fault: _Fault) -> None:
        phases = get_args(Phase)
        if phase not in phases:
            raise ValueError(f"there is no phase {phase!r}: it is one of {', '.join(phases)}")
        with self._lock:
            self._faults.append((phase, fault))

    # -- what pools and engines call

    def connect(self, *arguments: Any, **parameters: Any) -> ScriptedConnection:
        """Open a connection; the arguments make no difference."""
        self._run("connect")
        with self._lock:
            self._check_running()
            connection = ScriptedConnection(self)
            self._open.add(connection)
            self.opened += 1
        return connection

    def _run(self, phase: Phase, connection: ScriptedConnection | None = None) -> None:
        """Do what the script says of this call."""
        error = self._next_error(phase)
        if connection is None:
            self._check_running()
        elif connection.is_dead and phase != "close":
            raise Disconnect("the database has ended this connection")
        if isinstance(error, Disconnect) and connection is not None:
            connection.is_dead = True
        try:
            if error is not None:
                raise error
        finally:
            # The error holds this frame, which must not hold the error: the frames of the callers would stay until
            # the garbage collector comes, and with them the connections that they have.
            del error

    def _next_error(self, phase: Phase) -> BaseException | None:
        """Count a call, wait where the script says so, and return what the call is to raise."""
        with self._lock:
            self.calls[phase] += 1
            faults = [fault for known, fault in self._faults if known == phase and fault.left > 0]
            for fault in faults:
                fault.left -= 1
        for fault in faults:
            fault.released.wait(fault.seconds)
        with self._lock:
            # what has happened as often as it was to is forgotten, with its error and all that hangs on that
            gone = [fault for fault in faults if fault.left <= 0]
            self._faults = [(known, fault) for known, fault in self._faults if fault not in gone]
        errors = (fault.error for fault in faults if fault.error is not None)
        error = next(errors, None)
        if error is Disconnect:
            return Disconnect(f"the script says that {phase} fails")
        return error() if isinstance(error, type) else error

    def _check_running(self) -> None:
        if self._is_stopped:
            raise Disconnect("the database is down")

    def _check_open(self, connection: ScriptedConnection) -> None:
        if connection.is_closed:
            with self._lock:
                self.uses_after_close += 1
            raise InterfaceError("the connection is closed")

    def _close(self, connection: ScriptedConnection) -> None:
        with self._lock:
            if connection.is_closed:
                self.double_closes += 1
                return
            connection.is_closed = True
        try:
            self._run("close", connection)
        finally:
            with self._lock:
                self._open.discard(connection)
                self.closed += 1

    def _rows_of(self, statement: str, parameters: Any) -> Rows:
        if callable(self._rows):
            return self._rows(statement, parameters)
        usual = [(1,)] if _QUERY.match(statement) else None
        return self._rows.get(_normal(statement), usual)


class ScriptedConnection:
    """Be a connection of a `ScriptedDriver`.

    Attributes:
        is_closed: it has been closed.
        is_dead: the database has ended it; all but closing it raises `Disconnect`.
    """

    def __init__(self, driver: ScriptedDriver) -> None:
        self.driver = driver
        self.is_closed = self.is_dead = False

    def cursor(self) -> ScriptedCursor:
        """Return a cursor."""
        self.driver._check_open(self)
        return ScriptedCursor(self)

    def commit(self) -> None:
        """Go through the phase ``commit``."""
        self._run("commit")

    def rollback(self) -> None:
        """Go through the phase ``rollback``."""
        self._run("rollback")

    def ping(self) -> None:
        """Go through the phase ``ping``."""
        self._run("ping")

    def close(self) -> None:
        """Go through the phase ``close``; whatever it raises, the connection is closed then."""
        self.driver._close(self)

    def _run(self, phase: Phase) -> None:
        self.driver._check_open(self)
        self.driver._run(phase, self)


class ScriptedCursor:
    """Be a cursor of a `ScriptedConnection`; executing goes through the phase ``execute``."""

    def __init__(self, connection: ScriptedConnection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self._left: deque[tuple[Any, ...]] = deque()
        self._is_closed = False

    def execute(self, operation: str, parameters: Any = ()) -> None:
        """Execute a statement with one set of parameters."""
        self._run(operation, parameters, 1)

    def executemany(self, operation: str, seq_of_parameters: Iterable[Any]) -> None:
        """Execute a statement once, with many sets of parameters."""
        sets = list(seq_of_parameters)
        self._run(operation, sets, len(sets))

    def _run(self, statement: str, parameters: Any, affected: int) -> None:
        self._check_open()
        self.connection._run("execute")
        rows = self.connection.driver._rows_of(statement, parameters)
        if rows is None:
            self.description, self.rowcount, self._left = None, affected, deque()
            self.lastrowid = next(self.connection.driver._row_ids)
            return
        self.description = [(name, None, None, None, None, None, None) for name in _names(statement, rows)]
        self.rowcount = len(rows)
        self._left = deque(tuple(row.values()) if isinstance(row, Mapping) else tuple(row) for row in rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, None after the last."""
        self._check_rows()
        return self._left.popleft() if self._left else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next rows, at most so many."""
        self._check_rows()
        wanted = self.arraysize if size is None else size
        return [self._left.popleft() for _ in range(min(wanted, len(self._left)))]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return self.fetchmany(len(self._left))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchone, None)

    def setinputsizes(self, sizes: Any) -> None:
        """Do nothing, as PEP 249 allows."""

    def setoutputsize(self, size: Any, column: Any = None) -> None:
        """Do nothing, as PEP 249 allows."""

    def close(self) -> None:
        """Close the cursor. Harmless when repeated."""
        self._is_closed = True

    def _check_open(self) -> None:
        self.connection.driver._check_open(self.connection)
        if self._is_closed:
            raise InterfaceError("the cursor is closed")

    def _check_rows(self) -> None:
        self._check_open()
        if self.description is None:
            raise ProgrammingError("the last statement returned no rows")


class ScriptedDialect(DefaultDialect):
    """Tell SQLAlchemy of the driver."""

    name = driver = "scripted"
    supports_statement_cache = True
    _is_initializing = False

    def initialize(self, connection: sqlalchemy.Connection) -> None:
        """Ask nothing: there is no database."""
        super().initialize(connection)
        self._is_initializing = True

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back, but not the transaction in which SQLAlchemy believes to have asked: no script expects that."""
        if self._is_initializing:
            self._is_initializing = False
        else:
            dbapi_connection.rollback()

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Go through the phase ``ping``."""
        dbapi_connection.ping()
        return True

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Tell whether an error means that the connection is lost."""
        return isinstance(e, Disconnect)


registry.register("scripted", __name__, "ScriptedDialect")


def _normal(statement: str) -> str:
    return " ".join(statement.split())


def _names(statement: str, rows: Sequence[Any]) -> list[str]:
    """Return the names of the columns, as far as they can be told from a statement that no database has read."""
    if rows and isinstance(rows[0], Mapping):
        return list(rows[0])
    found = _COLUMNS.match(statement)
    names = [re.split(r"[\s.]", item.strip())[-1].strip('"`') for item in _COMMA.split(found[1])] if found else []
    if rows and len(rows[0]) != len(names):
        return [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    return names
