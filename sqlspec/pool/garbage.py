"""What a starved pool does about connections that nobody can reach any more."""

from __future__ import annotations

import gc
import time

__all__ = ["collect_garbage"]

_collection = {"next": 0.0, "took": 0.0}
# Seconds between collections, at least.
_RARELY = 0.5
# Seconds that one may take at most before another thread tries.
_LONGEST = 60.0


def collect_garbage(now: float, deadline: float) -> None:
    """Free connections that only unreachable cycles hold, such as an unclosed sqlalchemy.Connection.

    When every thread waits in a pool nothing is allocated, so that the collector would not run by itself. It may
    take long: it gets a tenth of a processor at most, and is not begun where it would not end before the
    deadline.
    """
    if now < _collection["next"] or now + _collection["took"] >= deadline:
        return
    used = time.thread_time()
    _collection["next"] = now + _LONGEST
    try:
        gc.collect()
    finally:
        used = time.thread_time() - used
        end = time.monotonic()
        _collection.update(next=end + max(_RARELY, 10 * used), took=end - now)
