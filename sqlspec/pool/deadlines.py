"""Deadlines for what waits on a server that may hang: calls of a driver, and connecting."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from threading import get_ident
from typing import Any, TypeVar, cast

from sqlspec.pool.sockets import Socket, socket_of
from sqlspec.pool.threads import start_thread

__all__ = ["call_aside", "checkout_deadline", "is_watching", "seconds_left", "within", "within_each"]

R = TypeVar("R")
T = TypeVar("T")

# Monotonic time at which the checkout under way must be over; None: the pool's own timeout decides.
checkout_deadline: ContextVar[float | None] = ContextVar("checkout_deadline", default=None)

# Seconds between two looks at the calls under way: a tenth of the shortest deadline, within these.
_OFTEN, _RARELY = 0.02, 0.25
# Seconds that the watcher stays when there are no calls.
_GRACE = 1.0
# methods of drivers and dialects
_NAMES = {
    "execute": "a statement",
    "do_execute": "a statement",
    "do_execute_no_params": "a statement",
    "executemany": "a statement",
    "execute_values": "a statement",
    "query": "a statement",
    "close": "the closing of a cursor",
    "copy": "a COPY",
    "do_ping": "a ping",
    "prepare": "the first statements",
    "discard": "the reset of its session",
    "fetchone": "a request for rows",
    "fetchmany": "a request for rows",
    "fetchall": "a request for rows",
}
_CUT = object()
_GAVE_UP = object()


def seconds_left(limit: float) -> float:
    """Return the seconds that are left of the checkout under way, up to a limit; a moment at least."""
    deadline = checkout_deadline.get()
    return limit if deadline is None else min(limit, max(0.001, deadline - time.monotonic()))


class _Call:
    """Be a call that must be over at a moment of the monotonic clock."""

    __slots__ = ("deadline", "is_cut", "socket")

    def __init__(self, socket: Socket, deadline: float) -> None:
        self.socket = socket
        self.deadline = deadline
        # made by who cuts it
        self.is_cut: threading.Event | None = None

    def renewed_by(self, things: Iterable[T], seconds: float) -> Iterator[T]:
        """Return these; with each that is taken its time begins anew, and what they take to come does not count."""
        source = iter(things)
        while True:
            self.deadline = math.inf
            try:
                thing = next(source)
            except StopIteration:
                return
            finally:
                self.deadline = time.monotonic() + seconds
            yield thing


class _Watcher:
    """Be a thread that looks at the calls under way, and does nothing else."""

    __slots__ = ("_gate", "is_looking", "number")

    def __init__(self) -> None:
        self.number = get_ident()
        # whether it looks by itself; otherwise it must be woken
        self.is_looking = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> None:
        """Let it look now. Harmless when repeated; never blocks."""
        with contextlib.suppress(RuntimeError):
            self._gate.release()

    def wait(self, seconds: float) -> bool:
        """Return when woken, or after so many seconds; tell which."""
        return self._gate.acquire(timeout=seconds)


class _Watch:
    """Look at the calls under way from time to time, and cut those that are late.

    A thread of its own does that while there are calls, which runs nothing that waits and takes no lock: what anybody
    else does must not make a deadline late. Where Python runs a finaliser in it that calls a server itself, another one
    takes its place. A call costs two steps on a dictionary, each of them atomic: whoever takes it out, its caller or
    the watch, decides how it ends.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Know of no call; in a child process, those are its parent's."""
        self._calls: dict[_Call, None] = {}
        self._watcher: _Watcher | None = None
        self._pause = _RARELY

    def within(self, connection: Any, seconds: float, work: Callable[..., R], *arguments: Any, **options: Any) -> R:
        socket = socket_of(connection)
        if socket is None:
            return work(*arguments, **options)
        call = _Call(socket, time.monotonic() + seconds)
        return self._watched(call, seconds, work, *arguments, **options)

    def within_each(self, connection: Any, seconds: float, work: Callable[[Iterable[T]], R], things: Iterable[T]) -> R:
        """Call what sends one thing after the other, and waits no longer than so many seconds before it takes the next.

        Nor does it after the last one.
        """
        socket = socket_of(connection)
        if socket is None:
            return work(things)
        call = _Call(socket, time.monotonic() + seconds)
        return self._watched(call, seconds, work, call.renewed_by(things, seconds))

    def _watched(self, call: _Call, seconds: float, work: Callable[..., R], *arguments: Any, **options: Any) -> R:
        failure = None
        try:
            self._calls[call] = None
            # looked at after that: a watcher that stops looking says so first, and looks at the calls then
            watcher = self._watcher
            if (
                watcher is None
                or not watcher.is_looking
                or seconds < 10 * self._pause
                # in a finaliser
                or watcher.number == get_ident()
            ):
                self._wake(watcher, seconds)
            return work(*arguments, **options)
        except BaseException as error:
            failure = error
            raise
        finally:
            # No interrupt comes before the call is taken out. (Python looks for them after calls, and this is one.)
            if self._calls.pop(call, _CUT) is _CUT:
                _follow_cut(call, failure, f"the server gave no answer to {_name(work)} within {seconds:.3g} s")
            failure = None

    def is_here(self) -> bool:
        """Tell whether this is the thread that watches, which must not wait for anything."""
        watcher = self._watcher
        return watcher is not None and watcher.number == get_ident()

    def _wake(self, watcher: _Watcher | None, seconds: float) -> None:
        self._pause = min(self._pause, max(_OFTEN, seconds / 10))
        if watcher is None or watcher.number == get_ident():
            # others may start one at the same time: the last one stays. Where there are no threads left, who calls next
            # tries again.
            start_thread("sqlspec-deadlines", self._run)
        else:
            watcher.wake()

    def _run(self) -> None:
        watcher = self._watcher = _Watcher()
        try:
            while self._watcher is watcher:
                self._look(watcher)
        finally:
            if self._watcher is watcher:
                self._watcher = None

    def _look(self, watcher: _Watcher) -> None:
        watcher.is_looking = False
        if self._calls:
            watcher.is_looking = True
            watcher.wait(self._cut_late(time.monotonic()))
            return
        self._pause = _RARELY
        if not watcher.wait(_GRACE) and self._watcher is watcher:
            self._watcher = None
            if self._calls:
                # begun just before, and it was this one that was woken for it
                self._watcher = watcher

    def _cut_late(self, now: float) -> float:
        """Cut the calls that are late; return the seconds to the next look."""
        pause = self._pause
        for call in list(self._calls):
            if call.deadline > now:
                pause = min(pause, call.deadline - now)
                continue
            call.is_cut = threading.Event()
            if self._calls.pop(call, _CUT) is not _CUT:
                _cut(call)
        return pause


def _cut(call: _Call) -> None:
    try:
        # an error: the other side has ended it at the same moment (nothing is logged, since handlers may wait)
        with contextlib.suppress(OSError):
            call.socket.shut_down()
    finally:
        cast("threading.Event", call.is_cut).set()


def _follow_cut(call: _Call, failure: BaseException | None, problem: str) -> None:
    # until then the number of the socket must not become another one's
    cast("threading.Event", call.is_cut).wait()
    if isinstance(failure, Exception):
        _tell(failure, f"{problem}, and the connection was shut down")


def _name(work: Callable[..., Any]) -> str:
    name = getattr(work, "__name__", "")
    return name.upper() if name in {"commit", "rollback"} else _NAMES.get(name, "a call")


def _tell(error: Exception, told: str) -> None:
    """Say in the driver's error why the connection is lost."""
    if error.args and isinstance(error.args[-1], str):
        error.args = (*error.args[:-1], f"{error.args[-1].rstrip()}\n{told}")
    else:
        error.add_note(f"sqlspec: {told}")


_watch = _Watch()
within, within_each, is_watching = _watch.within, _watch.within_each, _watch.is_here
os.register_at_fork(after_in_child=_watch.begin)


def call_aside(seconds: float, work: Callable[[], R], undo: Callable[[R], object]) -> R:
    """Call something in a thread of its own, for which nobody waits longer than so many seconds.

    What it returns too late is undone there.

    Raises:
        TimeoutError: it is late.
    """
    decision: dict[str, Any] = {}
    is_over = threading.Event()

    def run() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = work(), None
        except BaseException as error:  # noqa: BLE001  # it is raised by the caller
            outcome = None, error
        if decision.setdefault("outcome", outcome) is not outcome and outcome[1] is None:
            undo(outcome[0])
        is_over.set()

    try:
        if not start_thread("sqlspec-connecting", contextvars.copy_context().run, run):
            run()
        is_over.wait(seconds)
    except BaseException:
        late = decision.setdefault("outcome", _GAVE_UP)
        if late is not _GAVE_UP and late[1] is None:
            undo(late[0])
        raise
    outcome = decision.setdefault("outcome", _GAVE_UP)
    if outcome is _GAVE_UP:
        raise TimeoutError
    result, failure = cast("tuple[R, BaseException | None]", outcome)
    if failure is not None:
        try:
            raise failure
        finally:
            # the error holds this frame; it must not hold the error
            del failure, outcome
            decision.clear()
    return result
