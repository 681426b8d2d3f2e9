"""Riding through outages: what an error means, a circuit breaker, and trying again."""

from sqlspec.resilience.breaker import CircuitBreaker, CircuitState
from sqlspec.resilience.classification import ErrorKind, classify, is_ambiguous, is_safe_to_repeat, is_unavailable
from sqlspec.resilience.failover import follow_failover
from sqlspec.resilience.retry import RetryOptions, awith_retry, with_retry

__all__ = [
    "CircuitBreaker",
    "CircuitState",
    "ErrorKind",
    "RetryOptions",
    "awith_retry",
    "classify",
    "follow_failover",
    "is_ambiguous",
    "is_safe_to_repeat",
    "is_unavailable",
    "with_retry",
]
