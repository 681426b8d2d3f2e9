"""What a borrower holds: SQLAlchemy's proxy of a connection, made and given back in fewer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.pool.base import _ConnectionFairy

if TYPE_CHECKING:
    from sqlspec.pool.slot import Slot

__all__ = ["Proxy", "lent"]

# The slots of all pools that are checked out, by the weak reference to the proxy that the borrower holds. Where that
# is dropped, they stay here until they are taken back; also where the pool itself is garbage by then, since Python
# tells of nothing that dies together with who wants to know.
lent: dict[Any, Slot] = {}


class _NoFinalizer:
    def detach(self) -> None:
        """Do nothing, where SQLAlchemy ends the watch over a proxy."""


class Proxy(_ConnectionFairy):
    """Be a `_ConnectionFairy` whose pool watches over it, which takes a sixth of a checkout less.

    Where a proxy is dropped without having been closed, the pool is told by the weak reference that it keeps. It is
    for drivers that block; what is dropped of the others SQLAlchemy alone knows how to end.
    """

    __slots__ = ()
    _finalizer: Any = _NoFinalizer()
    _pool: Any

    def __init__(self, pool: Any, connection: Any, slot: Slot, echo: Any) -> None:
        self._pool = pool
        # how often it is checked out; there may be several who close it
        self._counter = 0
        self.dbapi_connection = connection
        self._connection_record = slot
        self._echo = echo

    def _checkin(self, transaction_was_reset: bool = False) -> None:
        slot, pool = self._connection_record, self._pool
        ref = None if slot is None else slot.fairy_ref
        # None: this proxy was made to give back what the borrower dropped
        if slot is not None and (ref is None or ref() not in (self, None)):
            # Somebody else has it: it was given back already. A __del__ may close what was dropped with it.
            self._let_go()
            return
        if slot is None or self.dbapi_connection is None or self._echo:
            # detached, invalidated, or to be told of
            super()._checkin(transaction_was_reset)
            return
        try:
            self._reset(pool, transaction_was_reset, terminate_only=False, asyncio_safe=True)
        except BaseException as error:
            pool.logger.error("Exception during reset or similar", exc_info=True)
            self._let_go()
            if slot.fairy_ref is ref:
                slot._checkin_failed(error)
            if not isinstance(error, Exception):
                raise
            return
        # a listener, or another thread, may have given it back
        if slot.fairy_ref is ref:
            slot.checkin()
        self._let_go()

    def _let_go(self) -> None:
        self.dbapi_connection = self._connection_record = None  # type: ignore[assignment]  # as SQLAlchemy does

    def detach(self) -> None:
        """Take the connection out of the pool: it is the caller's alone from now on."""
        if self._connection_record is not None:
            lent.pop(self._connection_record.fairy_ref, None)
        super().detach()
