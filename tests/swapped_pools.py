"""A plugin of pytest: our pools in the place of SQLAlchemy's, while SQLAlchemy's own tests run."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy
from sqlalchemy.pool import Pool, impl
from sqlalchemy.pool.base import _ConnectionRecord

from sqlspec.pool import AsyncFairQueuePool, FairQueuePool, slot
from sqlspec.pool.slot import Slot


def pytest_configure() -> None:
    """Rebind the names before the tests, and the dialects that they load, look them up."""
    for module in (sqlalchemy, sqlalchemy.pool, impl):
        module.QueuePool = FairQueuePool  # type: ignore[misc]  # a swap is what this is
        module.AsyncAdaptedQueuePool = AsyncFairQueuePool  # type: ignore[misc]  # as above
    make_checkout_replaceable()
    leave_mocks_alone()
    if type(sqlalchemy.create_engine("sqlite:///never-opened.db").pool) is not FairQueuePool:
        raise pytest.UsageError("create_engine still makes SQLAlchemy's own pool: the tests would prove nothing")


def make_checkout_replaceable() -> None:
    """Have our pools find their checkout where SQLAlchemy's do: one test replaces it there."""
    theirs, ours = _ConnectionRecord.checkout, Slot.checkout

    def checkout(cls: type, pool: Pool) -> object:
        is_ours = isinstance(pool, FairQueuePool) and not pool._dialect.is_async
        return (ours if is_ours else theirs)(pool)

    _ConnectionRecord.checkout = classmethod(checkout)  # type: ignore[method-assign,assignment]  # as above
    Slot.checkout = lambda pool: _ConnectionRecord.checkout(pool)  # type: ignore[method-assign]  # as above


def leave_mocks_alone() -> None:
    """Look for no socket in a mock: it has none, and some tests compare all calls that it got."""
    socket_of = slot.socket_of

    def socket_of_real(connection: Any) -> object:
        return None if isinstance(connection, Mock) else socket_of(connection)

    slot.socket_of = socket_of_real  # type: ignore[assignment]  # as above
