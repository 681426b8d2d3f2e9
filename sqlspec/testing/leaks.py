"""assert_no_leaks: whoever checked a connection out has given it back."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.pool import Pool

from sqlspec.pool import FairQueuePool, Holder
from sqlspec.registry import SQLSpec

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["assert_no_leaks"]


def assert_no_leaks(target: Engine | AsyncEngine | Pool | SQLSpec, timeout: float = 1.0) -> None:
    """Wait until no connection is checked out, up to ``timeout`` seconds.

    A registry may be closed already. What only the garbage collector can find is given back by it, and is no leak.
    This blocks its thread: with asyncio, use ``await asyncio.to_thread(assert_no_leaks, engine)``.

    Raises:
        AssertionError: connections are still checked out; the message says by whom and where.
        TypeError: the pool does not count its connections, such as a NullPool.
    """
    pools = _pools(target)
    if not _leaks(pools):
        return
    gc.collect()
    deadline = time.monotonic() + timeout
    while leaks := _leaks(pools):
        if time.monotonic() >= deadline:
            raise AssertionError("\n  ".join(["connections are still checked out:", *leaks]))
        time.sleep(0.005)


def _pools(target: Engine | AsyncEngine | Pool | SQLSpec) -> Sequence[tuple[str, Pool]]:
    """Return name to pool; those of a registry that have come into being, and that count."""
    if isinstance(target, SQLSpec):
        # not by get_engine(), which would build engines, and refuses after close()
        return [(f"{name}: ", pool) for name, manager in target._managers.items() for pool in manager.pools()]
    pool = target if isinstance(target, Pool) else target.pool
    if not hasattr(pool, "checkedout"):
        raise TypeError(f"a {type(pool).__name__} does not count what is checked out")
    return [("", pool)]


def _leaks(pools: Sequence[tuple[str, Pool]]) -> list[str]:
    return [name + leak for name, pool in pools for leak in _describe(pool)]


def _describe(pool: Pool) -> list[str]:
    if isinstance(pool, FairQueuePool):
        return [_tell(holder) for holder in pool.get_holders()]
    checked_out: int = pool.checkedout()  # type: ignore[attr-defined]  # QueuePool has it, and what resembles it
    return [f"{checked_out} of a {type(pool).__name__}. {pool.status()}"] if checked_out else []


def _tell(holder: Holder) -> str:
    last = f"; last statement: {holder.statement}" if holder.statement else ""
    return f"checked out at {holder.place} by {holder.owner}, {holder.seconds:.3g} s ago{last}"
