"""The pool behind every engine, on SQLAlchemy's QueuePool; the only place that touches its internals."""

from sqlspec.pool.aio import AsyncFairQueuePool, sleep_in_task
from sqlspec.pool.base import NestedCheckout
from sqlspec.pool.deadlines import call_aside, checkout_deadline, seconds_left, within, within_each
from sqlspec.pool.forks import Abandoned, tell_of_forks
from sqlspec.pool.gate import apart_from_forks
from sqlspec.pool.housekeeping import look_after
from sqlspec.pool.liveness import PING_AFTER
from sqlspec.pool.places import Place
from sqlspec.pool.queue import BEYOND_QUEUEPOOL, FairQueuePool
from sqlspec.pool.recycling import ConnectionFacts, RecyclingStrategy
from sqlspec.pool.sizing import AdaptivePool, PoolMetrics
from sqlspec.pool.statements import count_error, follow_statements, report_slow_statements, slot_of
from sqlspec.pool.stats import Holder, PoolStats, Timing
from sqlspec.pool.threads import start_thread
from sqlspec.pool.upkeep import probe

__all__ = [
    "BEYOND_QUEUEPOOL",
    "PING_AFTER",
    "Abandoned",
    "AdaptivePool",
    "AsyncFairQueuePool",
    "ConnectionFacts",
    "FairQueuePool",
    "Holder",
    "NestedCheckout",
    "Place",
    "PoolMetrics",
    "PoolStats",
    "RecyclingStrategy",
    "Timing",
    "apart_from_forks",
    "call_aside",
    "checkout_deadline",
    "count_error",
    "follow_statements",
    "look_after",
    "probe",
    "report_slow_statements",
    "seconds_left",
    "sleep_in_task",
    "slot_of",
    "start_thread",
    "tell_of_forks",
    "within",
    "within_each",
]
