"""What an error means: the one place that knows the codes of databases and drivers.

PostgreSQL says it by an SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), MySQL and MariaDB by
a number (https://mariadb.com/kb/en/mariadb-error-code-reference/), SQLite by its result code
(https://www.sqlite.org/rescode.html). Psycopg2 and psycopg keep nothing but the text where they cannot connect.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from enum import StrEnum

from sqlalchemy import exc

from sqlspec.exceptions import (
    CircuitOpenError,
    ConfigError,
    ConnectionLost,
    ConnectionTimeout,
    FallbackError,
    PoolTimeout,
)

__all__ = ["ErrorKind", "classify", "is_ambiguous", "is_safe_to_repeat", "is_unavailable"]


class ErrorKind(StrEnum):
    """Say what an error means for who meets it."""

    #: no connection could be opened, and it may work in a moment; nothing was sent
    CONNECT = "connect"
    #: wrong password, unknown database, TLS that is not trusted: trying again is of no use
    CONFIGURATION = "configuration"
    #: the server is starting or shutting down; a connection it had is lost
    RESTART = "restart"
    #: the connection ended; nobody knows how far the statement under way came, but without COMMIT nothing stays
    DISCONNECT = "disconnect"
    #: a statement, or the wait for a lock, took longer than it may; the connection works
    TIMEOUT = "timeout"
    #: somebody had the statement cancelled
    CANCELLED = "cancelled"
    #: a deadlock, or transactions that cannot be put in an order: the whole transaction may be run again
    CONFLICT = "conflict"
    #: a write in a transaction that is read only, or on a server that takes none, as after a failover
    READ_ONLY = "read-only"
    #: the server has no connections, no memory or no disk left
    CAPACITY = "capacity"
    #: every connection of the pool is in use
    EXHAUSTED = "exhausted"
    #: a unique key, a foreign key or another constraint
    INTEGRITY = "integrity"
    #: anything else that the database refuses: syntax, types, rights
    PROGRAMMING = "programming"
    #: no error of a database
    OTHER = "other"


_UNAVAILABLE = {ErrorKind.CONNECT, ErrorKind.RESTART, ErrorKind.DISCONNECT, ErrorKind.CAPACITY}

# of a COMMIT, these say that no answer came
_LOST = {ErrorKind.CONNECT, ErrorKind.RESTART, ErrorKind.DISCONNECT, ErrorKind.OTHER}
_PASSES = {*_UNAVAILABLE, ErrorKind.CONFLICT, ErrorKind.EXHAUSTED}

# by SQLSTATE, or by its class of two letters where that means one thing
_SQLSTATES = {
    "08": ErrorKind.DISCONNECT,
    "0A": ErrorKind.PROGRAMMING,
    "22": ErrorKind.PROGRAMMING,
    "23": ErrorKind.INTEGRITY,
    "25006": ErrorKind.READ_ONLY,
    "25P03": ErrorKind.DISCONNECT,
    "28": ErrorKind.CONFIGURATION,
    "3D000": ErrorKind.CONFIGURATION,
    "40": ErrorKind.CONFLICT,
    "53": ErrorKind.CAPACITY,
    "55P03": ErrorKind.TIMEOUT,
    "57014": ErrorKind.CANCELLED,
    "57P01": ErrorKind.RESTART,
    "57P02": ErrorKind.RESTART,
    "57P03": ErrorKind.RESTART,
    "57P04": ErrorKind.CONFIGURATION,
    "57P05": ErrorKind.DISCONNECT,
    "58": ErrorKind.CAPACITY,
}
_MYSQL = {
    ErrorKind.CONNECT: {2001, 2002, 2003, 2004, 2005, 2009},
    ErrorKind.CONFIGURATION: {
        1044,
        1045,
        1049,
        1130,
        1131,
        1251,
        1524,
        1698,
        1862,
        2007,
        2026,
        2049,
        2054,
        2058,
        2059,
        2061,
        3118,
        4151,
    },
    ErrorKind.RESTART: {1053, 1077, 1079},
    # 1047: a node of a Galera cluster that has lost the others; 1927: killed; 4031: idle for too long
    ErrorKind.DISCONNECT: {1047, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2006, 2012, 2013, 2027, 2055, 4031},
    ErrorKind.TIMEOUT: {1205, 1969, 3024, 3572},
    ErrorKind.CANCELLED: {1317},
    ErrorKind.CONFLICT: {1020, 1213, 1614},
    ErrorKind.READ_ONLY: {1290, 1792, 1836, 3100},
    ErrorKind.CAPACITY: {1021, 1037, 1038, 1040, 1041, 1114, 1135, 1203, 1206, 1226, 2008},
    ErrorKind.INTEGRITY: {1022, 1048, 1062, 1169, 1216, 1217, 1364, 1451, 1452, 1557, 1586, 1761, 1762, 3819, 4025},
}
_ERRNOS = {number: kind for kind, numbers in _MYSQL.items() for number in numbers}
# the primary codes; 517 alone means another thing than its own, 5
_SQLITE = {
    5: ErrorKind.TIMEOUT,
    6: ErrorKind.TIMEOUT,
    7: ErrorKind.CAPACITY,
    8: ErrorKind.READ_ONLY,
    9: ErrorKind.CANCELLED,
    10: ErrorKind.CAPACITY,
    11: ErrorKind.CONFIGURATION,
    13: ErrorKind.CAPACITY,
    14: ErrorKind.CONFIGURATION,
    19: ErrorKind.INTEGRITY,
    26: ErrorKind.CONFIGURATION,
    517: ErrorKind.CONFLICT,
}
# What servers and libpq say in English where psycopg2 has no code. Of a message in another language it is known only
# that connecting failed.
_TEXTS = {
    ErrorKind.CAPACITY: re.compile(r"too many (?:clients|connections)|remaining connection slots", re.IGNORECASE),
    ErrorKind.RESTART: re.compile(
        r"the database system is (?:starting up|shutting down|in recovery mode|not (?:yet )?accepting connections)"
        r"|terminating connection due to (?:administrator command|unexpected postmaster exit)"
        r"|terminating connection because of crash",
        re.IGNORECASE,
    ),
    ErrorKind.CONFIGURATION: re.compile(
        r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects"
        r"|(?:role|database|user) \".*\" (?:does not exist|is not permitted)|permission denied for database"
        r"|is not currently accepting connections|does not support SSL|server does not support"
        r"|certificate|SSL error(?!: unexpected eof)|rejected SSL|root\.crt"
        r"|invalid (?:connection option|integer value|sslmode|port)",
        re.IGNORECASE,
    ),
}
_CLOSED = re.compile(r"closed|lost|terminat|EOF|could not (?:receive|send)|no answer|shut down", re.IGNORECASE)
# what TLS says where the other side has gone
_ENDED = re.compile(r"unexpected eof|reset by peer|broken pipe|shutdown while in init", re.IGNORECASE)
# of the operating system, where a network does not work
_NETWORK = {
    getattr(errno, name)
    for name in (
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENOENT",
        "EPIPE",
        "ETIMEDOUT",
    )
}
_NAMES = {
    "IntegrityError": ErrorKind.INTEGRITY,
    "ProgrammingError": ErrorKind.PROGRAMMING,
    "DataError": ErrorKind.PROGRAMMING,
    "NotSupportedError": ErrorKind.PROGRAMMING,
}


def classify(error: BaseException) -> ErrorKind:
    """Return what an error means: one of SQLAlchemy's, of a driver's, or of sqlspec's own."""
    if isinstance(error, ConnectionTimeout) and error.phase != "wait":
        return ErrorKind.CONNECT
    if isinstance(error, PoolTimeout):
        return ErrorKind.EXHAUSTED
    if isinstance(error, CircuitOpenError):
        return ErrorKind.CONNECT
    if isinstance(error, FallbackError) and error.primary is not None:
        return classify(error.primary)
    if isinstance(error, ConfigError):
        return ErrorKind.CONFIGURATION
    if isinstance(error, ConnectionLost):
        return ErrorKind.DISCONNECT
    if isinstance(error, exc.DBAPIError):
        origin = error.orig
        kind = ErrorKind.OTHER if origin is None else _kind_of(origin)
        # the reason why it is of no use any more says more
        says_why = kind in {ErrorKind.RESTART, ErrorKind.READ_ONLY}
        return ErrorKind.DISCONNECT if error.connection_invalidated and not says_why else kind
    return _kind_of(error)


def is_unavailable(error: BaseException) -> bool:
    """Tell whether an error says that the database cannot be reached, or has nothing left to serve with.

    An exhausted pool, a wrong password or a statement that is refused does not, nor a connect for which the deadline of
    its caller had left hardly any time, nor one too many beside those that the server serves.
    """
    return classify(error) in _UNAVAILABLE and not _is_marked(error, "says_nothing")


def is_ambiguous(error: BaseException) -> bool:
    """Tell whether nobody knows if something stays: the connection was lost in COMMIT, or in a statement that commits.

    Under autocommit, that is each of them. What was certainly not sent is not ambiguous: no connection could be opened,
    or the driver knew before that it was closed.
    """
    if isinstance(error, ConnectionLost):
        return error.ambiguous
    if not _is_marked(error, "in_commit") or classify(error) not in _LOST:
        return False
    return _dbapi_name(error.orig if isinstance(error, exc.DBAPIError) and error.orig else error) != "InterfaceError"


def is_safe_to_repeat(error: BaseException) -> bool:
    """Tell whether the transaction that an error ended may be run again: nothing of it stays, and the reason passes."""
    # a server that takes no writes any more has refused one, and its transaction went with that
    return (classify(error) in _PASSES or _is_marked(error, "is_undone")) and not is_ambiguous(error)


def _is_marked(error: BaseException, mark: str) -> bool:
    """Tell whether who has met an error of a driver, or of its adapter, has marked it; it may be within another one.

    SQLAlchemy's has it as its origin, and that of a deadline, also asyncio's, as its cause.
    """
    return any(getattr(known, mark, False) for known in (error, getattr(error, "orig", None), error.__cause__))


def _kind_of(error: BaseException) -> ErrorKind:
    """Return what an error of a driver means."""
    if isinstance(error, OSError):
        return _kind_of_system(error)
    name = _dbapi_name(error)
    number = error.args[0] if error.args else None
    if name is not None and isinstance(number, int):
        # with this mark it is of a statement, or of the end of a transaction
        return _kind_of_number(number, name, str(error), is_under_way=hasattr(error, "in_commit"))
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(sqlstate, str):
        return _kind_of_sqlstate(sqlstate, str(error))
    sqlite_code = getattr(error, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return _SQLITE.get(sqlite_code) or _SQLITE.get(sqlite_code & 0xFF, ErrorKind.PROGRAMMING)
    if type(error).__module__ == "sqlite3":
        # Python's own part of it has no codes: a value is at fault
        return ErrorKind.PROGRAMMING
    return ErrorKind.OTHER if name is None else _kind_of_text(name, str(error))


def _kind_of_system(error: OSError) -> ErrorKind:
    if isinstance(error, ssl.SSLError) or _TEXTS[ErrorKind.CONFIGURATION].search(str(error)):
        return ErrorKind.CONFIGURATION
    is_network = isinstance(error, (TimeoutError, ConnectionError, socket.gaierror)) or error.errno in _NETWORK
    return ErrorKind.CONNECT if is_network else ErrorKind.OTHER


def _kind_of_sqlstate(sqlstate: str, text: str) -> ErrorKind:
    if sqlstate == "57014" and "statement timeout" in text:
        return ErrorKind.TIMEOUT
    return _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2], ErrorKind.PROGRAMMING)


def _kind_of_number(number: int, name: str, text: str, *, is_under_way: bool) -> ErrorKind:
    if number == 1290 and "read-only" not in text:
        # another option of the server's stands against it
        return ErrorKind.PROGRAMMING
    if number == 2003 and "[SSL" in text:
        # asyncmy's word for TLS that does not come about
        return ErrorKind.CONFIGURATION
    if number == 2026 and (is_under_way or _ENDED.search(text)):
        # mysqlclient's for all that goes wrong under TLS, whose text may be of an earlier connection
        return ErrorKind.DISCONNECT
    if number == 2013 and "handshake" in text:
        # it did not come so far as to be one
        return ErrorKind.CONNECT
    if number == 0 and name == "InterfaceError":
        # mysqlclient's word for a connection that is closed
        return ErrorKind.DISCONNECT
    return _ERRNOS.get(number) or _NAMES.get(name, ErrorKind.PROGRAMMING)


def _kind_of_text(name: str, text: str) -> ErrorKind:
    """Return what an error means that has no code: psycopg2 and psycopg could not connect, or lost the connection."""
    if name in _NAMES:
        return _NAMES[name]
    if name == "InterfaceError":
        return ErrorKind.DISCONNECT if "connection" in text and _CLOSED.search(text) else ErrorKind.PROGRAMMING
    for kind, known in _TEXTS.items():
        if known.search(text):
            return kind
    return ErrorKind.DISCONNECT if _CLOSED.search(text) else ErrorKind.CONNECT


def _dbapi_name(error: BaseException) -> str | None:
    """Return the name of the class of PEP 249 that an error is of."""
    names = [kind.__name__ for kind in type(error).__mro__]
    is_database = "DatabaseError" in names or "InterfaceError" in names
    known = (
        "IntegrityError",
        "ProgrammingError",
        "DataError",
        "NotSupportedError",
        "InterfaceError",
        "OperationalError",
    )
    return next((name for name in names if name in known), "DatabaseError") if is_database else None
