"""What a borrower has done otherwise on a connection: autocommit, and how transactions begin and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection

from sqlspec.adapters import Driver, TransactionOptions, connection_of
from sqlspec.adapters.commits import commits

__all__ = [
    "adopt_transaction",
    "asks_to_read_only",
    "bare",
    "borrow",
    "discard",
    "marking_commits",
    "transact_through",
]

# In the record_info of a connection: the options of its borrower's transactions, and, for a moment, that
# the transaction that SQLAlchemy is told to begin is there already.
_OPTIONS = "sqlspec_options"
_BEGUN = "sqlspec_begun"


def borrow(
    proxy: PoolProxiedConnection, driver: Driver, autocommit: bool, options: TransactionOptions | None = None
) -> None:
    """Change a connection for its borrower; whatever way it comes back, it is changed back for the next one.

    With the autocommit that it has anyway nothing is sent, and what the borrower does to that is changed back.

    Raises:
        Exception: the driver's error; the connection is closed then.
    """
    record: Any = cast("Any", proxy)._connection_record

    def give_back(connection: Any) -> None:
        record.record_info.pop(_OPTIONS, None)
        try:
            if options is not None:
                driver.restore(connection, options)
            if not driver.autocommit_stays:
                driver.set_autocommit(connection, driver.autocommit)
        except Exception as error:  # noqa: BLE001  # a connection that cannot be changed back is not used again
            record.invalidate(error)

    record.finalize_callback.append(give_back)
    if options is not None:
        # with the connection that they are for: its place in the pool may get another one
        record.record_info[_OPTIONS] = (proxy.dbapi_connection, options)
    try:
        driver.set_autocommit(proxy.dbapi_connection, autocommit)
    except BaseException:
        discard(proxy)
        raise


def discard(proxy: PoolProxiedConnection) -> None:
    """Close a connection whose state is unknown, and check its place in."""
    if proxy.is_valid:
        proxy.invalidate()
        proxy.close()


def adopt_transaction(connection: Connection) -> None:
    """Let SQLAlchemy's connection know of a transaction without sending anything."""
    info: Any = connection.connection.record_info
    try:
        info[_BEGUN] = True
        connection.begin()
    finally:
        info.pop(_BEGUN, None)


def bare(connection: Any) -> Any:
    """Return the connection below the pool's."""
    return getattr(connection, "dbapi_connection", connection)


def asks_to_read_only(connection: Any) -> bool:
    """Tell whether the borrower of a connection only wants to read."""
    borrowed, options = (getattr(connection, "record_info", None) or {}).get(_OPTIONS, (None, None))
    return options is not None and options.read_only and borrowed is bare(connection)


def transact_through(engine: Engine, driver: Driver) -> None:
    """Let SQLAlchemy begin and end transactions in our way: with the options of the borrower.

    sqlite3 would send BEGIN before INSERT, UPDATE and DELETE only, and SQLAlchemy leaves it to that.
    """

    def do_begin(connection: Any) -> None:
        info = connection.record_info or {}
        borrowed, options = info.get(_OPTIONS, (None, None))
        if _BEGUN not in info:
            driver.begin(connection.dbapi_connection, options if borrowed is connection.dbapi_connection else None)

    dialect: Any = engine.dialect
    dialect.do_begin = do_begin
    dialect.do_terminate = driver.terminate(dialect)
    dialect.do_commit = lambda connection: driver.end(bare(connection), "commit")
    if type(driver)._end is not Driver._end or driver.patience is not None:
        dialect.do_rollback = lambda connection: driver.end(bare(connection), "rollback")
    if driver.syntax == "sqlite":
        # pysqlite's own would leave another isolation_level on the connection than the config's
        set_level, reset_level = dialect.set_isolation_level, dialect.reset_isolation_level

        def set_isolation_level(connection: Any, level: Any) -> None:
            set_level(connection, level)
            driver.set_autocommit(connection, level == "AUTOCOMMIT")

        def reset_isolation_level(connection: Any) -> None:
            reset_level(connection)
            driver.set_autocommit(connection, driver.autocommit)

        dialect.set_isolation_level, dialect.reset_isolation_level = set_isolation_level, reset_isolation_level


def marking_commits(driver: Driver) -> Callable[[Any, str, Any], None]:
    """Return what marks the error of a statement that commits, as `Driver.end` does: `is_ambiguous` tells the rest."""

    def mark(error: Any, statement: str, cursor: Any) -> None:
        error.in_commit = commits(statement, driver.syntax) or driver.is_autocommit(connection_of(cursor))

    return mark
