"""The errors that sqlspec raises itself.

    SQLSpecError
    ├── ConfigError           (also ValueError)
    ├── PoolTimeout           (also sqlalchemy.exc.TimeoutError)
    │   └── ConnectionTimeout
    └── PoolClosed

Errors of the database keep their own classes: a session raises what SQLAlchemy would raise, a connection
what its driver raises.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import exc

__all__ = [
    "ConfigError",
    "ConnectionTimeout",
    "Phase",
    "PoolClosed",
    "PoolTimeout",
    "SQLSpecError",
    "SQLSpecWarning",
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


class SQLSpecWarning(UserWarning):
    """Point at code that works and is probably not meant."""
