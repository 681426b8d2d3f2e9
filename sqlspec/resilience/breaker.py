"""CircuitBreaker: stop asking for what fails, and find out when it works again."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, TypeVar

from sqlspec.exceptions import CircuitOpenError, ConfigError, without_frames
from sqlspec.resilience.calls import outcome_of
from sqlspec.resilience.classification import is_unavailable

__all__ = ["CircuitBreaker", "CircuitState"]

T = TypeVar("T")
CircuitState = Literal["closed", "open", "half-open"]
Listener = Callable[["CircuitBreaker", CircuitState, CircuitState], object]

_logger = logging.getLogger("sqlspec.breaker")


@dataclass(frozen=True, slots=True)
class _Circuit:
    """Hold what a breaker knows. Every change of state is a new generation; results of earlier ones say nothing."""

    state: CircuitState = "closed"
    generation: int = 0
    failures: int = 0
    failed_at: float | None = None
    # open: when a probe may start; half-open: when the one under way is given up, before that no other may
    wait_until: float = -math.inf

    def admit(self, now: float, probe_timeout: float) -> _Circuit | None:
        """Return the circuit in which a call may begin at this moment; None: it may not."""
        if self.state == "closed":
            return self
        if now < self.wait_until:
            return None
        return replace(self, state="half-open", generation=self.generation + 1, wait_until=now + probe_timeout)

    def succeed(self) -> _Circuit:
        """Return the circuit after a call that worked."""
        if self.state == "closed":
            return replace(self, failures=0) if self.failures else self
        return _Circuit(generation=self.generation + 1, failed_at=self.failed_at)

    def fail(self, now: float, failure_threshold: int, recovery_timeout: float) -> _Circuit:
        """Return the circuit after a call that failed."""
        failures = self.failures + 1
        if self.state == "open" or (self.state == "closed" and failures < failure_threshold):
            return replace(self, failures=failures, failed_at=now)
        return _Circuit("open", self.generation + 1, failures, now, now + recovery_timeout)

    def free(self) -> _Circuit:
        """Return the circuit after a call that said nothing about it: the next one may be the probe."""
        return replace(self, wait_until=-math.inf) if self.state == "half-open" else self


class CircuitBreaker:
    """Let calls through while they work; after too many failures in a row refuse them, and probe from time to time.

    *Closed*: all calls go through; a success sets the count of failures back. *Open*, after ``failure_threshold``
    failures without a success between them: calls are refused at once. *Half-open*, ``recovery_timeout`` seconds later:
    one call goes through, the probe; others are refused until it ends. It closes the breaker or opens it again. A call
    that began in an earlier state says nothing about the present one.

    As ``breaker=`` of a config it guards the opening of connections; several configs may share one. Thread-safe, and
    for tasks as well; nothing is locked while a call is under way. Times are those of the monotonic clock. Each process
    has its own: a forked child goes on from the state of its parent, and pickling one raises `TypeError`.

    Args:
        failure_threshold: how many failures in a row open it; at least 1.
        recovery_timeout: seconds from opening to the next probe.
        probe_timeout: seconds after which a probe that has not ended is given up, and another call may be the probe.
        counts: which exceptions are failures; the usual ones tell that the database is not available. What else a call
            raises, or an interrupt or a cancellation, says nothing: it neither counts nor closes the breaker.
        name: how it is called in the log and in errors.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        *,
        probe_timeout: float = 30.0,
        counts: Callable[[Exception], bool] = is_unavailable,
        name: str = "circuit breaker",
    ) -> None:
        if not failure_threshold >= 1:
            raise ConfigError(f"failure_threshold={failure_threshold}: at least 1", "failure_threshold")
        for field, seconds in {"recovery_timeout": recovery_timeout, "probe_timeout": probe_timeout}.items():
            if not 0 < seconds < math.inf:
                raise ConfigError(f"{field}={seconds}: give seconds above 0", field)
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self.probe_timeout = probe_timeout
        self.name = name
        self._counts = counts
        self._listeners: list[Listener] = []
        # Guards the step from one circuit to the next. Nothing else happens under it.
        self._lock = threading.Lock()
        self._circuit = _Circuit()
        self._cause: BaseException | None = None
        _breakers[weakref.ref(self, _breakers.pop)] = None

    def __repr__(self) -> str:
        circuit = self._circuit
        told = f"{circuit.failures} of {self.failure_threshold} failures"
        if circuit.state != "closed":
            told = f"probes in {max(0.0, circuit.wait_until - time.monotonic()):.3g} s"
        return f"<CircuitBreaker {self.name!r}, {circuit.state}: {told}>"

    def __deepcopy__(self, memo: object) -> CircuitBreaker:
        # configs that are copied still mean the same database
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a CircuitBreaker holds what this process knows of its database, and is neither copied nor pickled: make "
            "one in the other process, and give it to the config there"
        )

    @property
    def state(self) -> CircuitState:
        """Return ``closed``, ``open`` or ``half-open``. It is the next call that makes an open one half-open."""
        return self._circuit.state

    @property
    def failure_count(self) -> int:
        """Return how many failures there were since the last success."""
        return self._circuit.failures

    @property
    def last_failure_time(self) -> float | None:
        """Return when the last failure was, by `time.monotonic`; None: there was none."""
        return self._circuit.failed_at

    def listen(self, listener: Listener) -> None:
        """Call this with the breaker, the state before and the state after, whenever the state changes.

        It is called where the change happened, after it; what it raises is logged.
        """
        self._listeners.append(listener)

    def call(self, func: Callable[[], T]) -> T:
        """Return what a function returns, if it may be called now.

        What it returns must be the outcome: of a generator, a coroutine or a context manager nothing has happened yet.

        Raises:
            CircuitOpenError: the breaker is open, or a probe is under way.
            TypeError: the function is asynchronous.
            Exception: what the function raises.
        """
        generation = self._begin()
        try:
            result = outcome_of(func, "acall")
        except BaseException as error:
            self._end_with(error, generation)
            raise
        self._succeed(generation)
        return result

    async def acall(self, func: Callable[[], Awaitable[T]]) -> T:
        """Return what an asynchronous function returns, as `call`.

        Raises:
            CircuitOpenError: the breaker is open, or a probe is under way.
            Exception: what the function raises.
        """
        generation = self._begin()
        try:
            result = await func()
        except BaseException as error:
            self._end_with(error, generation)
            raise
        self._succeed(generation)
        return result

    def record_failure(self, error: BaseException | None = None) -> None:
        """Count a failure that happened outside of `call`."""
        self._fail(error, self._circuit.generation)

    def start_over(self) -> None:
        """Have a lock of its own, in a forked child; a probe that is under way is the parent's."""
        self._lock = threading.Lock()
        self._circuit = self._circuit.free()

    # -- a call

    def _begin(self) -> int:
        now = time.monotonic()
        with self._lock:
            before = self._circuit
            circuit = before.admit(now, self.probe_timeout)
            if circuit is not None:
                self._circuit = circuit
        if circuit is None:
            raise self._refusal(before, max(0.0, before.wait_until - now))
        self._tell(before, circuit)
        return circuit.generation

    def _refusal(self, circuit: _Circuit, seconds: float) -> CircuitOpenError:
        cause = self._cause
        told = f"{self.name} is {circuit.state} after {circuit.failures} failures in a row"
        if cause is not None:
            told = f"{told}, the last of them {type(cause).__name__}"
        error = CircuitOpenError(f"{told}; the next probe may start in {seconds:.3g} s", seconds)
        error.__cause__ = cause
        return error

    def _succeed(self, generation: int) -> None:
        if self._circuit.state == "closed" and not self._circuit.failures:
            # as usual: nothing would change
            return
        self._step(generation, lambda circuit: circuit.succeed())

    def _fail(self, error: BaseException | None, generation: int) -> None:
        now = time.monotonic()
        if self._step(generation, lambda circuit: circuit.fail(now, self.failure_threshold, self.recovery_timeout)):
            self._cause = None if error is None else without_frames(error)

    def _end_with(self, error: BaseException, generation: int) -> None:
        try:
            is_failure = isinstance(error, Exception) and self._counts(error)
        except BaseException:
            self._step(generation, lambda circuit: circuit.free())
            raise
        if is_failure:
            self._fail(error, generation)
        else:
            self._step(generation, lambda circuit: circuit.free())

    def _step(self, generation: int, change: Callable[[_Circuit], _Circuit]) -> bool:
        """Go on to another circuit, unless this call is of an earlier one; tell whether it counted."""
        with self._lock:
            before = self._circuit
            if before.generation != generation:
                return False
            self._circuit = after = change(before)
        self._tell(before, after)
        return True

    def _tell(self, before: _Circuit, after: _Circuit) -> None:
        if before.state == after.state:
            return
        level = logging.WARNING if after.state == "open" else logging.INFO
        _logger.log(level, "%s is %s now, after %s failures", self.name, after.state, after.failures)
        for listener in list(self._listeners):
            try:
                listener(self, before.state, after.state)
            except Exception:
                _logger.exception("%r could not follow %r", listener, self)


# By weak references, in a dictionary: each step on it is atomic, so that a child never inherits one half-way.
_breakers: dict[weakref.ref[CircuitBreaker], None] = {}


def _start_over() -> None:
    for ref in list(_breakers):
        breaker = ref()
        if breaker is not None:
            breaker.start_over()


os.register_at_fork(after_in_child=_start_over)
