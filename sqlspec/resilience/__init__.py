"""Riding through outages: what an error means, a circuit breaker, and trying again."""

from sqlspec.resilience.breaker import CircuitBreaker, CircuitState
from sqlspec.resilience.classification import ErrorKind, classify, is_unavailable

__all__ = ["CircuitBreaker", "CircuitState", "ErrorKind", "classify", "is_unavailable"]
