"""SharedConnection: SQLAlchemy's connection of a session."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["SharedConnection"]


class Owner(Protocol):
    """Be the session, which has the rules."""

    def _require_free(self) -> None: ...

    def _receive(self, result: CursorResult[Any]) -> None: ...


class SharedConnection(Connection):
    """Be SQLAlchemy's connection of a session, so that the session's rules hold for what others run on it.

    Nothing runs where it would cut off a stream or `Session.load_rows`, and the session knows of open streams.
    """

    def __init__(self, owner: Owner, engine: Engine, proxy: PoolProxiedConnection | None) -> None:
        # weakly: a session that nobody closed must not need the garbage collector to be found
        self._owner = weakref.ref(owner)
        super().__init__(engine, proxy)

    def _execute_context(self, *arguments: Any, **options: Any) -> CursorResult[Any]:
        owner = self._owner()
        if owner is not None:
            owner._require_free()
        result = super()._execute_context(*arguments, **options)
        if owner is not None:
            owner._receive(result)
        return result
