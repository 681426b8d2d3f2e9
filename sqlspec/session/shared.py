"""SharedConnection: SQLAlchemy's connection of a session."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn, Protocol

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["SharedConnection"]


class Owner(Protocol):
    """Be the session, which has the rules."""

    def _require_free(self) -> None: ...

    def _receive(self, result: CursorResult[Any]) -> None: ...

    def _judge(self, error: BaseException, statement: str | None) -> None: ...

    _has_committed: bool


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

    def _commit_impl(self) -> None:
        super()._commit_impl()
        owner = self._owner()
        if owner is not None:
            owner._has_committed = True

    def _handle_dbapi_exception(
        self, e: BaseException, statement: str | None, *arguments: Any, **options: Any
    ) -> NoReturn:
        try:
            super()._handle_dbapi_exception(e, statement, *arguments, **options)
        except BaseException as error:
            owner = self._owner()
            if owner is not None:
                owner._judge(error, statement)
            raise
