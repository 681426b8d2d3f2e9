"""The errors that sqlspec raises itself.

    SQLSpecError
    ├── ConfigError           (also ValueError)
    ├── ConnectionLost        (also sqlalchemy.exc.OperationalError)
    ├── PoolTimeout           (also sqlalchemy.exc.TimeoutError)
    │   └── ConnectionTimeout
    ├── PoolClosed
    ├── CircuitOpenError
    ├── FallbackError
    └── LoadError

Errors of the database keep their own classes: a session raises what SQLAlchemy would raise, a connection
what its driver raises.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

from sqlalchemy import exc

__all__ = [
    "CircuitOpenError",
    "ConfigError",
    "ConnectionLost",
    "ConnectionTimeout",
    "FallbackError",
    "LoadError",
    "Phase",
    "PoolClosed",
    "PoolTimeout",
    "SQLSpecError",
    "SQLSpecWarning",
    "without_frames",
]

Phase = Literal["wait", "ping", "connect"]


class SQLSpecError(Exception):
    """Be the root of every error that sqlspec raises itself."""


class ConfigError(SQLSpecError, ValueError):
    """Say which option, name or argument cannot be used, and what to write instead.

    Attributes:
        field: the option of a config that is at fault, where it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PoolTimeout(SQLSpecError, exc.TimeoutError):
    """Say that no connection became available within the time given."""


class ConnectionTimeout(PoolTimeout):
    """Say that a checkout ended at its deadline, and in which phase.

    Attributes:
        phase: ``wait`` (every connection was checked out), ``ping`` or ``connect``.
    """

    def __init__(self, message: str, phase: Phase = "wait") -> None:
        super().__init__(message)
        self.phase = phase


class PoolClosed(SQLSpecError):
    """Say that the registry, or the config behind this name, has been closed."""


class ConnectionLost(SQLSpecError, exc.DontWrapMixin, exc.OperationalError):
    """Say that a connection cannot be used any more.

    Attributes:
        ambiguous: whether nobody knows if the server has committed.
        orig: the driver's error, where there is one.
    """

    def __init__(self, message: str, *, ambiguous: bool = False, orig: BaseException | None = None) -> None:
        exc.OperationalError.__init__(self, None, None, orig or Exception(message), connection_invalidated=True)
        self.args = (message,)
        self.ambiguous = ambiguous

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._again, (*self.args, self.ambiguous)

    @classmethod
    def _again(cls, message: str, ambiguous: bool) -> Self:
        return cls(message, ambiguous=ambiguous)


class CircuitOpenError(SQLSpecError):
    """Say that a circuit breaker lets no call through at the moment; the last failure is the cause.

    Attributes:
        retry_after: seconds until the breaker lets a probe through.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FallbackError(SQLSpecError):
    """Say that neither the primary nor its replica gave a connection; the primary's error is the cause.

    Attributes:
        primary: why the primary gave none.
        replica: why the replica gave none.
    """

    def __init__(
        self, message: str, primary: BaseException | None = None, replica: BaseException | None = None
    ) -> None:
        super().__init__(message)
        self.primary = primary
        self.replica = replica
        self.__cause__ = primary


class LoadError(SQLSpecError):
    """Say which row could not be loaded; the database's error is the cause.

    Attributes:
        position: the number of the row, from 1; None where the driver does not say.
        committed: how many rows before it have been committed.
    """

    def __init__(self, table: str, cause: BaseException, position: int | None = None, committed: int = 0) -> None:
        row = "rows" if position is None else f"row {position}"
        origin = getattr(cause, "orig", cause)
        super().__init__(
            f"{row} for {table} cannot be loaded ({type(origin).__name__}); {committed} rows are committed"
        )
        self.table = table
        self.position = position
        self.committed = committed
        self.__cause__ = cause


class SQLSpecWarning(UserWarning):
    """Point at code that works and is probably not meant."""


def without_frames(error: BaseException) -> BaseException:
    """Return a copy of an exception to be kept: its traceback's frames hold what the application holds."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:  # noqa: BLE001  # an exception may refuse to be made anew
        return RuntimeError(f"{type(error).__name__}: {error}")
