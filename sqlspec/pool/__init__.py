"""The pool behind every engine, on SQLAlchemy's QueuePool; the only place that touches its internals."""

from sqlspec.pool.liveness import PrePing
from sqlspec.pool.queue import DeadlinePool, checkout_deadline
from sqlspec.pool.stats import PoolStats

__all__ = ["DeadlinePool", "PoolStats", "PrePing", "checkout_deadline"]
