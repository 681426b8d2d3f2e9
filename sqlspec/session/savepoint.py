"""Savepoint: a part of a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy import NestedTransaction, exc

from sqlspec.session.recovery import clean_up_after

__all__ = ["Savepoint"]


class Unit(Protocol):
    """Be the session whose transaction has the savepoint.

    Attributes:
        _transactions: how many transactions have ended.
        _streams: its streams, those that are open among them.
    """

    _transactions: int
    _streams: Sequence[Any]

    def _close_streams(self, kept: Sequence[Any]) -> None: ...

    def _require_free(self) -> None: ...

    def execute(self, statement: str) -> Any:
        """Run a statement."""


class Savepoint:
    """Be a part of a transaction that can be undone by itself.

    Leaving the ``with`` block keeps the part; an exception that leaves it undoes the part and goes on.
    """

    def __init__(self, session: Unit, *, name: str = "", nested: NestedTransaction | None = None) -> None:
        self._session = session
        self._nested = nested
        self._name = name
        self._active = True
        if nested is None:
            session.execute(f"SAVEPOINT {name}")
        self._transaction = session._transactions
        self._streams = session._streams

    def __repr__(self) -> str:
        return f"<Savepoint of {self._session!r}, {'active' if self._active else 'ended'}>"

    @property
    def is_active(self) -> bool:
        """Tell whether the savepoint has been neither released nor rolled back."""
        return self._active

    def commit(self) -> None:
        """Keep what ran since the savepoint, as part of the transaction around it.

        Raises:
            sqlalchemy.exc.InvalidRequestError: it is rolled back or released, or its transaction has ended.
        """
        if not self._active:
            raise exc.InvalidRequestError("this savepoint has been released or rolled back already")
        self._finish("commit", f"RELEASE SAVEPOINT {self._name}")

    def rollback(self) -> None:
        """Undo what ran since the savepoint; the transaction around it goes on. Harmless when repeated."""
        if self._active:
            self._finish("rollback", f"ROLLBACK TO SAVEPOINT {self._name}")

    def _finish(self, how: str, sql: str) -> None:
        if self._session._transactions != self._transaction:
            self._active = False
            raise exc.InvalidRequestError(
                "the transaction of this savepoint has ended: commit() and rollback() of the session end its savepoints"
            )
        if how == "rollback":
            # The server's cursors go with the savepoint: closed later, they would abort PostgreSQL's transaction. On
            # MySQL nothing else can run before.
            self._session._close_streams(self._streams)
        self._session._require_free()
        if self._nested is not None:
            getattr(self._nested, how)()
        else:
            self._session.execute(sql)
        self._active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            if self._active:
                self.commit()
            return
        clean_up_after(error, "ROLLBACK TO SAVEPOINT", self.rollback)
