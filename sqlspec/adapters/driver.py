"""What sqlspec needs of a DB-API driver beyond PEP 249."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

from sqlalchemy import URL
from sqlalchemy.engine import Dialect

from sqlspec.adapters.loading import Converters, Position, Target, batches, is_of_a_row
from sqlspec.config.base import NoPoolSyncConfig
from sqlspec.exceptions import ConfigError
from sqlspec.pool import Abandoned, within, within_each

__all__ = [
    "ISOLATION_LEVELS",
    "Driver",
    "Language",
    "ReadCursor",
    "Syntax",
    "TLSMode",
    "TransactionOptions",
    "check_tls_ca",
    "connection_of",
    "whole_seconds",
]

TLSMode = Literal["disable", "require", "verify-ca", "verify-full"]
Syntax = Literal["postgresql", "mysql", "sqlite"]
# what a driver takes: the syntax of its database, and placeholders of its own
Language = Literal["postgresql", "postgresql $1", "mysql", "sqlite"]
R = TypeVar("R")
T = TypeVar("T")
# Seconds by which the server's limit comes before ours, and a twentieth of it.
_LATER = 0.1
# Rows that a driver sends ahead at a time, at most.
_ROWS_A_STEP = 1000
ISOLATION_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """Say how the transactions of one session differ from the database's default."""

    isolation_level: str | None = None
    read_only: bool = False


class ReadCursor:
    """Be a cursor all of whose rows have been read."""

    def __init__(self, cursor: Any) -> None:
        self._rows = iter(cursor.fetchall())
        self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return list(itertools.islice(self._rows, size))

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def close(self) -> None:
        self._rows = iter(())


class Driver(ABC):
    """Do on a live DB-API connection what each driver does in its own way.

    Every method that takes a connection takes the driver's own, never a proxy. Stateless but for the config;
    safe to share between threads.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    syntax: ClassVar[Syntax]
    language: ClassVar[Language]
    isolation_levels: ClassVar[tuple[str, ...]] = ISOLATION_LEVELS
    # whether its connections are SQLAlchemy's adapters of asynchronous ones: calls wait in a greenlet of SQLAlchemy's
    is_async: ClassVar[bool] = False
    # whether begin() must be called before each transaction even without options
    sends_begin: ClassVar[bool] = False
    # whether switching autocommit is a round trip: it stays as the last borrower had it until one needs another
    autocommit_stays: ClassVar[bool] = False
    # Whether only queries can be streamed: PostgreSQL declares cursors for no other statements, and on SQLite a change
    # with rows that are not read stands in the way of others. Of other statements rows come all at once.
    streams_queries_only: ClassVar[bool] = False
    # whether executemany() sends rows before those before them are answered, or reads all of them before it sends one
    sends_ahead: ClassVar[bool] = False
    # Where the server can be asked what became of a transaction: the query for its number, NULL while it has written
    # nothing; that for something that is another after a crash and on another server; and that for the outcome of a
    # number, and the other thing as it is then.
    number_query: ClassVar[str] = ""
    server_query: ClassVar[str] = ""
    outcome_query: ClassVar[str] = ""
    # whether closing a connection a second time is an error, which PEP 249 leaves open
    closes_once: ClassVar[bool] = False

    _config: NoPoolSyncConfig

    def __init__(self, config: NoPoolSyncConfig) -> None:
        self._config = config
        # Seconds after which a call is ended here, whatever the server does: it has its own limit before that.
        self.patience: float | None = None
        if config.command_timeout is not None and self.syntax != "sqlite":
            self.patience = 1.05 * config.command_timeout + _LATER

    def within(self, connection: Any, work: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Call what waits for the server, and no longer than command_timeout where it hangs.

        Raises:
            Exception: the driver's, which says so; the connection is of no use then.
        """
        if self.patience is None:
            return work(*arguments, **options)
        return within(connection, self.patience, work, *arguments, **options)

    def within_each(self, connection: Any, work: Callable[[Iterable[T]], R], things: Iterable[T]) -> R:
        """Call what sends one thing after the other, and waits no longer than command_timeout before it takes the next.

        Raises:
            Exception: the driver's, which says so; the connection is of no use then.
        """
        return work(things) if self.patience is None else within_each(connection, self.patience, work, things)

    def within_many(
        self, cursor: Any, work: Callable[..., R], statement: str, rows: Sequence[Any], *arguments: Any, **options: Any
    ) -> R:
        """Call what runs a statement once for each row, and waits no longer than command_timeout for each of them.

        Raises:
            Exception: the driver's, which says so; the connection is of no use then.
        """
        if self.patience is None:
            return work(statement, rows, *arguments, **options)

        def executemany(part: Iterable[Any]) -> R:
            return work(statement, part, *arguments, **options)

        connection = connection_of(cursor)
        if self.sends_ahead:
            # nobody knows how far the server is: all of them together
            return within(connection, self.patience * len(rows), executemany, rows)
        return within_each(connection, self.patience, executemany, rows)

    @property
    def autocommit(self) -> bool:
        """Return whether connections are in autocommit while nobody has changed it."""
        return self._config.autocommit

    @abstractmethod
    def url(self) -> URL:
        """Return the URL of the engine: explicit driver, no password."""

    @abstractmethod
    def connect_args(self) -> dict[str, Any]:
        """Return the keyword arguments of the driver's ``connect``, without the password."""

    def password(self, secret: str) -> str | bytes:
        """Return a password as ``connect`` takes it."""
        return secret

    def missing(self) -> str | None:
        """Say what the config lacks to name a database; None where nothing is lacking."""
        return None

    def limit_connect(self, arguments: dict[str, Any], seconds: float) -> None:
        """Lower the connect timeout among the arguments of ``connect``."""
        arguments["connect_timeout"] = min(arguments.get("connect_timeout", math.inf), whole_seconds(seconds))

    def timeout_error(self, dbapi: Any, problem: str) -> Exception:
        """Return the driver's error of a connect that took too long."""
        return cast("Exception", dbapi.OperationalError(problem))

    def connect_error(self, dbapi: Any, error: BaseException) -> BaseException:
        """Return what to raise for an error of connecting: an error of the dialect's DB-API."""
        return error

    def prepare(self, connection: Any) -> None:
        """Bring a new connection into the state that the config asks for; leave no transaction open."""
        return

    def check_settings(self, connection: Any) -> None:
        """Refuse a server that has not been told what is to be said at the start of a connection.

        Raises:
            ConfigError: a proxy has dropped it.
        """
        return

    @abstractmethod
    def begin(self, connection: Any, options: TransactionOptions | None) -> None:
        """Do what must come before the first statement of a transaction."""

    def end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        """End the transaction that is open, also one that was begun by hand under autocommit.

        Where COMMIT fails, the error's ``in_commit`` says so: if the connection is lost with it, nobody knows whether
        the server has committed.
        """
        if how == "rollback" and isinstance(connection, Abandoned):
            # in a forked child: its parent decides
            return
        try:
            self._end(connection, how)
        except BaseException as error:
            error.in_commit = how == "commit"  # type: ignore[attr-defined]  # for `sqlspec.resilience.is_ambiguous`
            raise

    def _end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        self.within(connection, getattr(connection, how))

    def restore(self, connection: Any, options: TransactionOptions) -> None:
        """Undo what begin() left on the connection beyond its transaction."""
        return

    def recover(self, connection: Any, cursor: Any) -> bool:
        """End the statement of a cursor that its task has given up, and the transaction around it, also on the server.

        The cursor may be None. Return False where the connection must be closed for that.
        """
        return False

    def terminate(self, dialect: Dialect) -> Callable[[Any], None]:
        """Return what closes connections of the dialect without waiting for the server: SQLAlchemy has a way."""
        return dialect.do_terminate

    async def finish_closing(self) -> None:
        """Wait until the connections that were terminated on the running loop are closed."""
        return

    def follow_schema(self, cursor: Any, dialect: Dialect) -> None:
        """Let an asynchronous cursor know which plans are too old."""
        return

    def schema_changes(self, dialect: Dialect) -> None:
        """Know that a statement has changed the schema, and what was prepared before is too old."""
        return

    def read_to_end(self, cursor: Any) -> Any:
        """Read what would stand in the way of other statements, or of COMMIT; return what has the rows of the cursor.

        It is called after a statement that has rows and may have left something behind them. What a procedure returned
        further is lost: the next statement would get it otherwise, or its error.
        """
        return cursor

    def skip_further(self, cursor: Any) -> None:
        """Read what a procedure returned behind the rows that the cursor has, and raise its error."""
        return

    def note(self, error: BaseException, dialect: Dialect, connection: Any) -> None:
        """Learn from an error of an asynchronous statement which plans are too old."""
        return

    def describe(self, cursor: Any) -> Any:
        """Return what tells the columns of a cursor from other columns; something empty where it has none."""
        return cursor.description

    def parse_json(self, connection: Any, enabled: bool) -> None:
        """Have the driver parse JSON, as usual, or not; where it never does, there is nothing to do."""
        return

    @abstractmethod
    def is_autocommit(self, connection: Any) -> bool:
        """Tell whether the driver is in autocommit, without asking the server; also of a connection that is lost."""

    @abstractmethod
    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        """Switch the driver's autocommit, where it is otherwise; outside a transaction only."""

    def refuses_writes(self, connection: Any, error: Exception) -> bool:
        """Tell whether a write was refused by the server, and not by a transaction that was to read only."""
        return False

    def check_preparing(self) -> None:
        """Refuse prepared statements where there are none.

        Raises:
            ConfigError: the driver has none, or the config says that a proxy is in between.
        """
        return

    @abstractmethod
    def discard(self, connection: Any) -> bool:
        """Roll back and clear the session state; the connection is then as prepare() left it.

        Return False where it must be closed for that.
        """

    # values that the driver does not take, and what it takes instead
    converters: ClassVar[Converters] = {}
    # a placeholder of the driver's own
    mark: ClassVar[str] = "%s"

    def execute_many(self, cursor: Any, statement: str, rows: list[Any]) -> int | None:
        """Run a statement for each row, in the fastest way; return how many rows changed if the cursor forgets it."""
        connection = connection_of(cursor)
        # under autocommit, executemany() of such drivers keeps all or nothing
        if self.patience is None or not self.sends_ahead or getattr(connection, "autocommit", False) is True:
            self.within_many(cursor, cursor.executemany, statement, rows)
            return None
        changed = 0
        for step in _steps(rows, self.patience / 4):
            within(connection, 1.25 * self.patience, cursor.executemany, statement, step)
            changed += cursor.rowcount
        return changed if changed >= 0 else None

    def load(self, connection: Any, target: Target, rows: Position) -> None:
        """Load rows within the transaction, in the fastest way; note the row that the database refuses."""
        insert = None
        with contextlib.closing(connection.cursor()) as cursor:
            for batch in batches(rows, self.converters):
                insert = insert or target.insert(self.mark, len(batch[0]))
                self.within(connection, cursor.execute, "SAVEPOINT sqlspec_load")
                try:
                    self._load_batch(cursor, target, insert, batch)
                    # SQLite would keep each of them
                    self.within(connection, cursor.execute, "RELEASE SAVEPOINT sqlspec_load")
                except Exception as error:
                    try:
                        self.within(connection, cursor.execute, "ROLLBACK TO SAVEPOINT sqlspec_load")
                    except Exception:  # noqa: BLE001  # the transaction has gone with it, or the connection
                        raise error from None
                    if is_of_a_row(error):
                        self._find_bad(cursor, target, insert, batch, rows)
                    raise

    def _find_bad(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]], rows: Position) -> None:
        """Load the rows of a batch one by one, and raise the error of the one that is refused."""
        for position, row in enumerate(batch, rows.taken - len(batch) + 1):
            try:
                self._load_batch(cursor, target, insert, [row])
            except Exception as error:
                is_blamed = is_of_a_row(error) and not self._fails_anyway(cursor, target, error)
                rows.bad = position if is_blamed else None
                raise

    def _fails_anyway(self, cursor: Any, target: Target, error: Exception) -> bool:
        """Tell whether the error of a row comes without any row as well, as that of a table which is not there."""
        try:
            cursor.execute(target.insert_nothing())
        except Exception as of_none:  # noqa: BLE001  # the row's own is raised
            # MySQL puts a number first, SQLite the message
            return (type(of_none), of_none.args[:1]) == (type(error), error.args[:1])
        return False

    def _load_batch(self, cursor: Any, target: Target, insert: str, batch: list[Sequence[Any]]) -> None:
        cursor.executemany(insert, batch)

    def errors(self, dbapi: Any) -> Any:
        """Return what has all the exceptions of PEP 249, of what SQLAlchemy takes for the driver's module."""
        return dbapi

    @abstractmethod
    def server_version(self, connection: Any) -> str:
        """Return what the server calls its version."""

    def uses_tls(self, connection: Any) -> bool | None:
        """Tell whether the connection is encrypted; None where there is no network."""
        return None

    def host(self, connection: Any) -> str | None:
        """Return the host that the connection goes to; None where there is no network."""
        return None

    def check(self, options: TransactionOptions) -> None:
        """Refuse options that the database does not have.

        Raises:
            ConfigError: naming the levels there are.
        """
        level = options.isolation_level
        if level is not None and level not in self.isolation_levels:
            hint = "pass autocommit=True" if level == "AUTOCOMMIT" else f"one of {', '.join(self.isolation_levels)}"
            raise ConfigError(f"isolation_level {level!r} is not known to {self.name}: {hint}")


def _steps(rows: list[Any], seconds: float) -> Iterator[list[Any]]:
    """Return rows in steps, the first one of one row, of which none is to take longer than so many seconds."""
    start, size = 0, 1
    while start < len(rows):
        begin = time.monotonic()
        yield rows[start : start + size]
        start += size
        took = max(1e-6, time.monotonic() - begin)
        size = max(1, min(4 * size, _ROWS_A_STEP, int(size * seconds / took)))


def connection_of(cursor: Any) -> Any:
    """Return the driver's connection of a cursor; what SQLAlchemy adapts knows it by another name."""
    return getattr(cursor, "_adapt_connection", None) or cursor.connection


def check_tls_ca(tls_ca: str | None, mode: object) -> None:
    """Refuse trusted certificates that the TLS mode would not look at.

    Raises:
        ConfigError: naming the modes that do.
    """
    if tls_ca is not None and mode not in {"verify-ca", "verify-full"}:
        raise ConfigError("tls_ca is used by tls='verify-ca' and tls='verify-full' only: add one of them")


def whole_seconds(seconds: float) -> int:
    """Round a timeout up: drivers take whole seconds, and 0 means for ever."""
    return max(1, math.ceil(seconds))
