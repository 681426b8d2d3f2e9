"""with_retry: what is called again, when, and how often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from sqlalchemy import exc

from sqlspec import (
    CircuitOpenError,
    ConfigError,
    ConnectionLost,
    ConnectionTimeout,
    PoolTimeout,
    SQLSpec,
    awith_retry,
    with_retry,
)
from sqlspec.resilience import is_ambiguous
from sqlspec.testing import FaultProxy
from tests.conftest import Database


class Pauses:
    """Note how long tenacity would sleep, and do not."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(tenacity.nap.time, "sleep", pauses.sleep)
    return pauses


def failing(*errors: BaseException) -> tuple[Callable[[], str], list[int]]:
    """Return a function that raises these and then returns, and the list of its calls."""
    left, calls = list(errors), list[int]()

    def call() -> str:
        calls.append(1)
        if left:
            raise left.pop(0)
        return "done"

    return call, calls


def lost(text: str = "server closed the connection unexpectedly") -> exc.OperationalError:
    return exc.OperationalError("SELECT 1", None, _Operational(text), connection_invalidated=True)


class _Database(Exception):
    pass


class _Operational(_Database):
    pass


_Database.__name__, _Operational.__name__ = "DatabaseError", "OperationalError"


def test_what_passes_is_tried_again_and_the_first_attempt_counts(pauses: Pauses) -> None:
    call, calls = failing(lost(), PoolTimeout("full"))
    assert with_retry(call) == "done"
    assert (len(calls), len(pauses.seconds)) == (3, 2)
    call, calls = failing(lost("first"), lost("second"), lost("third"))
    with pytest.raises(exc.OperationalError, match="third"):
        with_retry(call)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the application's own"),
        exc.IntegrityError("INSERT", None, Exception()),
        ConnectionLost("in COMMIT", ambiguous=True),
        KeyboardInterrupt(),
        ConfigError("wrong"),
    ],
)
def test_what_a_repetition_would_not_mend_or_might_double_is_raised_at_once(
    pauses: Pauses, error: BaseException
) -> None:
    call, calls = failing(error)
    with pytest.raises(type(error)):
        with_retry(call)
    assert (len(calls), pauses.seconds) == (1, [])


def test_pauses_are_drawn_below_a_bound_that_grows(pauses: Pauses) -> None:
    for _ in range(50):
        with pytest.raises(ConnectionTimeout):
            with_retry(failing(*[ConnectionTimeout("late", "connect")] * 9)[0], 9, 3.0, 2.0, initial_delay=0.1)
    by_attempt = [pauses.seconds[number::8] for number in range(8)]
    bounds = [0.1, 0.3, 0.9, 2.0, 2.0, 2.0, 2.0, 2.0]
    for drawn, bound in zip(by_attempt, bounds, strict=True):
        assert 0 <= min(drawn) < 0.5 * bound < max(drawn) <= bound


def test_no_attempt_begins_after_the_deadline(pauses: Pauses) -> None:
    call, calls = failing(*[lost()] * 99)
    with pytest.raises(exc.OperationalError):
        with_retry(call, 99, initial_delay=10, max_delay=10, timeout=0.001)
    assert (len(calls), pauses.seconds) == (1, [])


def test_an_open_breaker_is_waited_for_only_where_its_probe_is_near(pauses: Pauses) -> None:
    call, calls = failing(CircuitOpenError("open", 60.0))
    with pytest.raises(CircuitOpenError):
        with_retry(call)
    assert len(calls) == 1
    call, calls = failing(CircuitOpenError("open", 0.08))
    assert with_retry(call, initial_delay=0.1) == "done"
    assert 0.08 <= pauses.seconds[0] <= 0.18


def test_what_is_worth_another_attempt_can_be_said(pauses: Pauses) -> None:
    call, calls = failing(KeyError("x"))
    assert with_retry(call, retry_on=lambda error: isinstance(error, KeyError)) == "done"
    assert len(calls) == 2


def test_each_new_attempt_is_told_without_what_the_error_says(pauses: Pauses, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sqlspec.retry"):
        with_retry(failing(lost("password=secret"))[0])
    assert [record.message.split(";")[0] for record in caplog.records] == ["attempt 1 of 3: OperationalError"]


def test_tasks_try_again_without_blocking_their_loop() -> None:
    async def main() -> None:
        call, calls = failing(lost(), lost())
        others = list[int]()

        async def attempt() -> str:
            return call()

        async def other() -> None:
            while len(calls) < 3:
                others.append(1)
                await asyncio.sleep(0)

        result, _ = await asyncio.gather(awith_retry(attempt, initial_delay=0.02), other())
        assert (result, len(calls)) == ("done", 3)
        assert len(others) > 3

    asyncio.run(main())


def test_a_task_that_is_cancelled_does_not_try_again() -> None:
    async def main() -> None:
        calls = list[int]()

        async def attempt() -> None:
            calls.append(1)
            await asyncio.sleep(20)

        task = asyncio.create_task(awith_retry(attempt))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(calls) == 1

    asyncio.run(main())


def test_an_asynchronous_function_is_refused_by_the_synchronous_form() -> None:
    with pytest.raises(TypeError, match="awith_retry"):
        with_retry(lambda: asyncio.sleep(0))


@pytest.mark.fault(75)
@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
@pytest.mark.parametrize("way", ["session", "connection", "engine"])
def test_a_commit_whose_answer_is_lost_is_not_repeated(any_spec: Any, database: Database, way: str) -> None:
    attempts = list[int]()
    insert = "INSERT INTO users (name) VALUES ('once')"

    def work() -> None:
        attempts.append(1)
        if way == "session":
            with any_spec.get_session("far") as session:
                session.execute(insert)
        elif way == "connection":
            with any_spec.get_connection("far") as connection:
                connection.cursor().execute(insert)
                connection.commit()
        else:
            with spec_of_threads.get_engine("far").begin() as own:
                own.exec_driver_sql(insert)

    with FaultProxy(database.server.port) as proxy, SQLSpec() as spec_of_threads:
        any_spec.register_config(database.config(port=proxy.port), "far")
        spec_of_threads.register_config(database.config(port=proxy.port), "far")
        proxy.swallow_answer("COMMIT")
        with pytest.raises(Exception) as caught:  # noqa: PT011  # of the driver, or SQLAlchemy's
            with_retry(work)
        assert proxy.fired == {"swallow_answer": 1}
        assert is_ambiguous(caught.value)
        assert len(attempts) == 1
    with any_spec.get_session("primary") as session:
        assert session.execute("SELECT name FROM users").all() == [("once",)]


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"backoff_factor": 0.5},
        {"max_delay": 0},
        {"initial_delay": -1},
        {"timeout": float("nan")},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        with_retry(int, **options)
