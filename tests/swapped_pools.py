"""A plugin of pytest: our pools in the place of SQLAlchemy's, while SQLAlchemy's own tests run."""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlalchemy.pool import impl

from sqlspec.pool import AsyncFairQueuePool, FairQueuePool


def pytest_configure() -> None:
    """Rebind the names before the tests, and the dialects that they load, look them up."""
    for module in (sqlalchemy, sqlalchemy.pool, impl):
        module.QueuePool = FairQueuePool  # type: ignore[misc]  # a swap is what this is
        module.AsyncAdaptedQueuePool = AsyncFairQueuePool  # type: ignore[misc]  # as above
    if type(sqlalchemy.create_engine("sqlite:///never-opened.db").pool) is not FairQueuePool:
        raise pytest.UsageError("create_engine still makes SQLAlchemy's own pool: the tests would prove nothing")
