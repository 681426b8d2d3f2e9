"""with_retry: call again what failed for a reason that passes."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar

import tenacity

from sqlspec.exceptions import CircuitOpenError, ConfigError
from sqlspec.resilience.calls import outcome_of
from sqlspec.resilience.classification import is_safe_to_repeat

__all__ = ["RetryOptions", "awith_retry", "policy", "with_retry"]

T = TypeVar("T")

_logger = logging.getLogger("sqlspec.retry")


class RetryOptions(TypedDict, total=False):
    """Say how often and when something is tried again: the options of `with_retry`, with its defaults."""

    max_attempts: int
    backoff_factor: float
    max_delay: float
    initial_delay: float
    timeout: float | None
    retry_on: Callable[[BaseException], bool]


def with_retry(
    func: Callable[[], T],
    max_attempts: int = 3,
    backoff_factor: float = 2.0,
    max_delay: float = 30.0,
    *,
    initial_delay: float = 0.1,
    timeout: float | None = None,
    retry_on: Callable[[BaseException], bool] = is_safe_to_repeat,
) -> T:
    """Return what a function returns, calling it again where it failed for a reason that passes.

    The function must be one whole: all of a transaction, or something that may happen twice. It is not called again
    where nobody knows whether a COMMIT took place, where a statement is at fault, or while a circuit breaker is open
    for longer than the next pause would be. Pauses are drawn between 0 and a bound that grows (full jitter:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that callers do not come back all
    at once.

    Args:
        func: what to call.
        max_attempts: how often it is called at most, the first time included; at least 1.
        backoff_factor: by what the bound of the pauses grows from one to the next.
        max_delay: seconds that the bound grows to.
        initial_delay: seconds of the first bound.
        timeout: seconds within which the last attempt must begin. What an attempt itself may take, the timeouts of
            sessions and configs say.
        retry_on: which exceptions are worth another attempt.

    Raises:
        ConfigError: an argument is out of range.
        TypeError: the function is asynchronous.
        Exception: what the function raised at the last attempt.
    """

    def attempt() -> T:
        return outcome_of(func, "awith_retry")

    rules = policy(max_attempts, backoff_factor, max_delay, initial_delay, timeout, retry_on)
    return tenacity.Retrying(**rules)(attempt)


async def awith_retry(
    func: Callable[[], Awaitable[T]],
    max_attempts: int = 3,
    backoff_factor: float = 2.0,
    max_delay: float = 30.0,
    *,
    initial_delay: float = 0.1,
    timeout: float | None = None,
    retry_on: Callable[[BaseException], bool] = is_safe_to_repeat,
) -> T:
    """Return what an asynchronous function returns, as `with_retry`. It does not block the event loop."""

    async def attempt() -> T:
        return await func()

    rules = policy(max_attempts, backoff_factor, max_delay, initial_delay, timeout, retry_on)
    return await tenacity.AsyncRetrying(**rules)(attempt)


def policy(
    max_attempts: int = 3,
    backoff_factor: float = 2.0,
    max_delay: float = 30.0,
    initial_delay: float = 0.1,
    timeout: float | None = None,
    retry_on: Callable[[BaseException], bool] = is_safe_to_repeat,
) -> dict[str, Any]:
    """Return what tenacity is told.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not max_attempts >= 1:
        raise ConfigError(f"max_attempts={max_attempts}: at least 1, the first one counts", "max_attempts")
    if not 1 <= backoff_factor < math.inf:
        raise ConfigError(f"backoff_factor={backoff_factor}: at least 1", "backoff_factor")
    given = {"max_delay": max_delay, "initial_delay": initial_delay, "timeout": timeout}
    for field, seconds in given.items():
        if seconds is not None and not 0 < seconds < math.inf:
            raise ConfigError(f"{field}={seconds}: give seconds above 0", field)
    bound = tenacity.wait_exponential(multiplier=initial_delay, max=max_delay, exp_base=backoff_factor)
    jittered = tenacity.wait_random_exponential(multiplier=initial_delay, max=max_delay, exp_base=backoff_factor)

    def is_worth_it(state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        if error is None or not retry_on(error):
            return False
        return not isinstance(error, CircuitOpenError) or error.retry_after <= bound(state)

    def pause(state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        return jittered(state) + (error.retry_after if isinstance(error, CircuitOpenError) else 0.0)

    def tell(state: tenacity.RetryCallState) -> None:
        name, seconds = type(_error_of(state)).__name__, state.upcoming_sleep
        _logger.info("attempt %s of %s: %s; again in %.3g s", state.attempt_number, max_attempts, name, seconds)

    stop: Any = tenacity.stop_after_attempt(max_attempts)
    if timeout is not None:
        stop |= tenacity.stop_before_delay(timeout)
    return {"retry": is_worth_it, "wait": pause, "stop": stop, "before_sleep": tell, "reraise": True}


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
