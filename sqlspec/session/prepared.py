"""PreparedStatementCache: statements that the server parses and plans once for each physical connection."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from typing import Any

from sqlspec.engine import SESSION_STATE
from sqlspec.session.connection import Connection, Cursor
from sqlspec.session.placeholders import PlaceholderError, Statement, bind, is_single, prepare

__all__ = ["PreparedStatement", "PreparedStatementCache"]

# names of prepared statements are never used twice
_numbers = itertools.count(1)
# SQLSTATEs of what may come of a change of the schema: other columns; a type that a parameter no longer has, found
# before anything runs (all of class 42) or in a value; and of a statement that somebody has deallocated.
_OUTDATED = re.compile("0A000|26000|42...|22P02|22P03|22003")
_DEALLOCATE = (
    "DO $sqlspec$ BEGIN IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = '{0}') "
    "THEN DEALLOCATE {0}; END IF; END $sqlspec$"
)


class PreparedStatement:
    """Be a statement on one connection, to be executed with ever new values.

    It is bound to the connection of its `PreparedStatementCache.get_or_prepare`, and to be used until that is
    closed.
    """

    def __init__(self, connection: Connection, sql: str) -> None:
        self._connection = connection
        self._sql = sql

    def __repr__(self) -> str:
        return f"<PreparedStatement {self._sql!r}>"

    def execute(self, parameters: Any = None) -> Cursor:
        """Run the statement with one set of parameters; return a cursor with its rows.

        Raises:
            Exception: the driver's errors; its ProgrammingError where parameters and placeholders do not fit.
        """
        return self._connection.cursor().execute(self._sql, parameters)


class _ByPsycopg(PreparedStatement):
    """Let psycopg prepare it at its first use."""

    def execute(self, parameters: Any = None) -> Cursor:
        return self._connection.cursor().execute(self._sql, parameters, prepare=True)


class _ByHand(PreparedStatement):
    """Have it prepared by PREPARE, and run by EXECUTE."""

    def __init__(self, connection: Connection, sql: str, max_size: int) -> None:
        super().__init__(connection, sql)
        self._statement = _numbered(connection, sql)
        self._max_size = max_size

    def prepared(self) -> str:
        """Return its name on the server, which it has from now on, and is the most recently used one."""
        known, outdated = _of(self._connection)
        if self._sql in known and known[self._sql] not in outdated:
            known.move_to_end(self._sql)
            return known[self._sql]
        while self._sql in known or len(known) >= self._max_size:
            oldest = self._sql if self._sql in known else next(iter(known))
            # of what somebody has deallocated by hand, it is no error; and it is known until it is done
            _send(self._connection, _DEALLOCATE.format(known[oldest]))
            outdated.discard(known.pop(oldest))
        name = f"sqlspec_{next(_numbers)}"
        _send(self._connection, f"PREPARE {name} AS {self._statement.text}")
        known[self._sql] = name
        return name

    def execute(self, parameters: Any = None) -> Cursor:
        connection = self._connection
        # after a rollback it can be tried again, where that would undo nothing
        is_used = connection._open or connection._begun or connection._touched
        name = self.prepared()
        try:
            return self._execute(name, parameters)
        except Exception as error:
            if not _OUTDATED.match(getattr(error, "pgcode", None) or ""):
                raise
            # when it is run again, it is prepared anew
            _of(connection)[1].add(name)
            if is_used:
                # the transaction is lost
                raise
        connection.rollback()
        return self._execute(self.prepared(), parameters)

    def _execute(self, name: str, parameters: Any) -> Cursor:
        cursor = self._connection.cursor()
        values = cursor._checked(bind, self._sql, parameters, "postgresql $1")[1] or ()
        marks = f" ({', '.join(['%s'] * len(values))})" if values else ""
        text = f"EXECUTE {name}{marks}"
        cursor._run(Statement(text, reads=self._statement.reads), cursor._cursor.execute, values or None)
        return cursor


def _numbered(connection: Connection, sql: str) -> Statement:
    """Return the statement with the placeholders of PREPARE."""
    if not is_single(sql, "postgresql"):
        # what comes after the first one would run, now and never again
        raise connection._refusal("one statement can be prepared at a time")
    try:
        return prepare(sql, "postgresql $1", "positional")
    except PlaceholderError:
        pass
    try:
        return prepare(sql, "postgresql $1", "named")
    except PlaceholderError as error:
        problem = str(error)
    raise connection._refusal(problem)


def _send(connection: Connection, text: str) -> None:
    with connection.cursor() as cursor:
        cursor._run(Statement(text, reads=True), cursor._cursor.execute)


class PreparedStatementCache:
    """Prepare statements once for each physical connection, and forget the least recently used ones.

    On psycopg2 by PREPARE and EXECUTE; psycopg and sqlite3 have caches of their own, which are used instead. What was
    prepared lives with the physical connection, whoever borrows it: it is prepared anew after a reconnect, after a
    reset that discards the state of the session, and after a change of the schema. Thread-safe.

    Args:
        max_size: how many statements a connection keeps.
    """

    def __init__(self, max_size: int = 100) -> None:
        if max_size < 1:
            raise ValueError(f"max_size={max_size}: at least one statement")
        self.max_size = max_size

    def __repr__(self) -> str:
        return f"<PreparedStatementCache of up to {self.max_size} statements a connection>"

    def get_or_prepare(self, connection: Connection, sql: str) -> PreparedStatement:
        """Return the statement of this text, prepared by the first caller.

        Raises:
            ConfigError: the driver has no prepared statements, or the config says that there is a proxy
                (``prepare_threshold=None``), behind which the next transaction may run on another server connection.
            Exception: the driver's, where the server refuses the statement.
        """
        if not isinstance(connection, Connection):
            raise TypeError(
                f"get_or_prepare() takes a connection of get_connection(), not a {type(connection).__name__}: "
                "asyncpg and psycopg prepare asynchronous statements by themselves"
            )
        driver = connection._driver
        driver.check_preparing()
        if driver.name == "psycopg":
            return _ByPsycopg(connection, sql)
        if driver.name != "psycopg2":
            return PreparedStatement(connection, sql)
        statement = _ByHand(connection, sql, self.max_size)
        statement.prepared()
        return statement


def _of(connection: Connection) -> tuple[OrderedDict[str, str], set[str]]:
    """Return the names of what is prepared on the physical connection, and which of them may be outdated.

    The names are by text, the least recently used first.
    """
    state: dict[str, Any] = connection._live().info.setdefault(SESSION_STATE, {})
    return state.setdefault("prepared", OrderedDict()), state.setdefault("outdated", set())
