"""Transactions that are run as a whole, again where that helps, and whose COMMIT is followed up."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar, Unpack

import tenacity

from sqlspec.exceptions import ConnectionLost
from sqlspec.resilience import RetryOptions, is_ambiguous, is_safe_to_repeat
from sqlspec.resilience.calls import outcome_of
from sqlspec.resilience.retry import policy
from sqlspec.session.session import Session

__all__ = ["Sessions", "run_transaction"]

T = TypeVar("T")
Sleep = Callable[[float], None]

_logger = logging.getLogger("sqlspec.retry")

# Seconds in which a server must say what became of a COMMIT, where the caller has set no deadline.
_PATIENCE = 30.0
# In the info of a connection: the answer to Driver.server_query.
_SERVER = "sqlspec_server"


class Sessions(NamedTuple):
    """Give new sessions that check their connections out within so many seconds.

    Attributes:
        begin: for the transaction itself.
        ask: for a question in between, in a transaction that reads.
    """

    begin: Callable[[float | None], Session]
    ask: Callable[[float | None], Session]


class _InProgress(Exception):
    """Say that the server is still at it."""


def run_transaction(
    sessions: Sessions, fn: Callable[[Session], T], sleep: Sleep = tenacity.nap.sleep, **retry: Unpack[RetryOptions]
) -> T:
    """Return what a function returns whose transaction has been committed; see `SQLSpec.run_transaction`.

    For tasks it is run in a greenlet of SQLAlchemy's, with a function and a sleep that wait there.
    """
    transaction = _Transaction(sessions, fn, sleep, retry)
    options: RetryOptions = {**retry, "retry_on": transaction.is_worth_it}
    return tenacity.Retrying(**policy(**options), sleep=sleep)(transaction.attempt)


class _Transaction(Generic[T]):
    """Be the attempts of one caller, one after the other."""

    def __init__(self, sessions: Sessions, fn: Callable[[Session], T], sleep: Sleep, retry: RetryOptions) -> None:
        self._sessions, self._fn, self._sleep = sessions, fn, sleep
        self._retry_on = retry.get("retry_on", is_safe_to_repeat)
        timeout = retry.get("timeout")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        # whether something of the last attempt stays, although it failed
        self._stays = False

    def is_worth_it(self, error: BaseException) -> bool:
        """Tell whether to begin anew after an error."""
        return not self._stays and not is_ambiguous(error) and self._retry_on(error)

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    def attempt(self) -> T:
        """Run the function and commit."""
        commit = None
        session = self._sessions.begin(self._seconds_left())
        try:
            with session:
                result = outcome_of(functools.partial(self._fn, session), "SQLSpec.arun_transaction")
                commit = _Commit.of(session)
                session.commit()
        except ConnectionLost as error:
            if commit is None or not error.ambiguous:
                raise
            if not self._took_place(commit, error):
                raise ConnectionLost("the connection was lost in COMMIT, and nothing stays", orig=error.orig) from error
        finally:
            self._stays = session._has_committed
        return result

    def _took_place(self, commit: _Commit, error: ConnectionLost) -> bool:
        """Find out what became of a COMMIT, once its session is closed and needs no connection any more.

        Raises:
            ConnectionLost: the error, where nobody can say.
        """
        if commit.number is None:
            # it may have notified somebody, or written elsewhere: on foreign tables
            error.add_note("sqlspec: it has written nothing here to ask for; read_only=True says that nothing can stay")
            raise error from error.__cause__
        asking = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, _InProgress) or is_safe_to_repeat(e)),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
            stop=tenacity.stop_before_delay(self._seconds_left() or _PATIENCE),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            took_place = asking(self._ask, commit)
        except Exception as second:  # noqa: BLE001  # told with the first one
            error.add_note(f"sqlspec: the server did not say what became of it: {type(second).__name__}: {second}")
            raise error from error.__cause__
        if took_place is None:
            error.add_note("sqlspec: the server does not know it: it has crashed since then, or is another one")
            raise error from error.__cause__
        _logger.info("COMMIT had no answer; it has %s", "taken place" if took_place else "not taken place")
        return took_place

    def _ask(self, commit: _Commit) -> bool | None:
        with self._sessions.ask(self._seconds_left() or _PATIENCE) as session:
            status, server = session.execute(session._driver.outcome_query, (commit.number,)).one()
        if status is None or server != commit.server:
            return None
        if status == "in progress":
            raise _InProgress("it is still in progress")
        return bool(status == "committed")


class _Commit(NamedTuple):
    """Be what the outcome of a COMMIT is found out by: a number, where something was written, and the server."""

    number: str | None
    server: str | None = None

    @classmethod
    def of(cls, session: Session) -> _Commit | None:
        """Ask for it before the COMMIT, where it could be ambiguous and can be found out: a round trip."""
        driver = session._driver
        if not driver.number_query or session._reads_only or not session.in_transaction:
            return None
        number = session.execute(driver.number_query).scalar()
        if number is None:
            return cls(None)
        info = session._info()
        if _SERVER not in info:
            info[_SERVER] = session.execute(driver.server_query).scalar()
        return cls(number, info[_SERVER])
