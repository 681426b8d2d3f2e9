"""Who holds a connection, and where in the application's code it was checked out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, NamedTuple

import sqlalchemy

__all__ = [
    "Mark",
    "Owner",
    "Place",
    "find_place",
    "held_here",
    "owner_of_task",
    "owner_of_thread",
    "quote_of",
    "shape",
    "still_held",
]

# How far up the stack to look for the application's own code.
_DEPTH = 40
_OURS, _LIBRARY, _APPLICATION, _UNSURE = range(4)
_OWN_FOLDERS = (
    os.path.dirname(sqlalchemy.__file__) + os.sep,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
# file name to kind; notebooks make ever new names
_kinds: dict[str, int] = {}
_FILES = 10_000
# Ways from the application to find_place(): how far up the stack is what it calls, and its known places there.
_ways: tuple[tuple[int, dict[int, tuple[CodeType, CodeType]]], ...] = ()
_WAYS, _PLACES = 8, 10_000


class Owner:
    """Be the thread or the task that has connections checked out."""

    __slots__ = ("_thread_or_task",)

    def __init__(self, thread_or_task: threading.Thread | weakref.ref[asyncio.Task[Any]]) -> None:
        self._thread_or_task = thread_or_task

    @property
    def has_ended(self) -> bool:
        """Tell whether the thread or task is over."""
        who = self._thread_or_task
        # not by the class of threads: those of gevent have another
        if not isinstance(who, weakref.ref):
            return not who.is_alive()
        task = who()
        return task is None or task.done()

    def __str__(self) -> str:
        who = self._thread_or_task
        if not isinstance(who, weakref.ref):
            name = f"thread {who.name}"
        else:
            task = who()
            name = "a task" if task is None else f"task {task.get_name()}"
        return f"{name} (ended)" if self.has_ended else name


_local = threading.local()
_owners: weakref.WeakKeyDictionary[asyncio.Task[Any], Owner] = weakref.WeakKeyDictionary()


def owner_of_thread() -> Owner:
    """Return the owner that this thread is, the same for all pools."""
    try:
        return _local.owner  # type: ignore[no-any-return]  # a thread's local variables have no types
    except AttributeError:
        owner = _local.owner = Owner(threading.current_thread())
        return owner


def owner_of_task(task: asyncio.Task[Any]) -> Owner:
    """Return the owner that a task is, the same for all pools."""
    return _owners.get(task) or _owners.setdefault(task, Owner(weakref.ref(task)))


class Place(NamedTuple):
    """Be a position in running code; its line is looked up when somebody wants to know."""

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        lines = self.code.co_lines()
        line = next((line for start, end, line in lines if start <= self.instruction < end), self.code.co_firstlineno)
        return f"{self.code.co_filename}:{line} in {self.code.co_name}"


# A checkout: since when by the monotonic clock, by whom, code and instruction of where, its slot by weak reference. A
# plain tuple, since every checkout makes one.
Mark = tuple[float, Owner, CodeType, int, "weakref.ref[Any]"]


# What was checked out in this context, the last one first, as of the last checkout, for pools that mind nested ones.
# A thread that serves one request after the other, each in a context of its own, does not nest where the request
# before goes on elsewhere with its connection; a task does not nest what its parent holds, from whose context its own
# was copied. So both, the owner and the context, must be the same; and since a copied context has what it was copied
# from, this is replaced and never changed.
held_here: ContextVar[tuple[Mark, ...]] = ContextVar("held_here", default=())


def still_held(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    """Return those of the marks whose connections are still checked out."""
    return tuple([mark for mark in marks if (slot := mark[4]()) is not None and slot.mark is mark])


def find_place(further: Callable[[], FrameType | None] | None = None) -> tuple[CodeType, int]:
    """Return the code and the instruction of the application's own code on the stack.

    Where there is none, it is the code nearest to SQLAlchemy and sqlspec. ``further`` gives the frame with which a
    stack goes on that ends.
    """
    global _ways
    # Each frame that is looked at costs about a thirtieth of a checkout: known places are looked for first, and of
    # those the ones as far up as the last, since most applications have one way of asking for connections.
    ways = _ways
    for way in ways:
        depth, places = way
        try:
            beneath = sys._getframe(depth)
        except ValueError:
            continue
        frame = beneath.f_back
        if frame is None:
            continue
        code, instruction = frame.f_code, frame.f_lasti
        # an instruction is in its code, and so is the number; what it calls belongs to the place, since a wrapper calls
        # now the pool, now a function that does
        found = places.get(id(code) + instruction)
        if found is not None and found[1] is beneath.f_code:
            if way is not ways[0]:
                _ways = (way, *(other for other in ways if other is not way))
            return code, instruction
    return _search(sys._getframe(1), further)


def _search(frame: FrameType | None, further: Callable[[], FrameType | None] | None) -> tuple[CodeType, int]:
    nearest = last = None
    # of the frames beneath find_place(), whose own has the depth 0
    depth = 0
    for _ in range(_DEPTH):
        if frame is None and further is not None:
            frame, further, depth = further(), None, -_DEPTH
        if frame is None:
            break
        code = frame.f_code
        kind = _kinds.get(code.co_filename)
        if kind is None:
            if len(_kinds) > _FILES:
                _kinds.clear()
            kind = _kinds[code.co_filename] = _kind(code.co_filename)
        if kind == _UNSURE:
            kind = _OURS if _is_generated(frame) else _APPLICATION
        if kind == _APPLICATION:
            if nearest is None and last is not None and depth > 0:
                _learn(depth, code, frame.f_lasti, last[0])
            return code, frame.f_lasti
        last = code, frame.f_lasti
        if kind == _LIBRARY and nearest is None:
            nearest = last
        frame, depth = frame.f_back, depth + 1
    return nearest or last or (find_place.__code__, 0)


def _learn(depth: int, code: CodeType, instruction: int, beneath: CodeType) -> None:
    """Remember a place of the application between which and the pool there is only SQLAlchemy and sqlspec."""
    global _ways  # replaced, not changed, for those who go through it
    places = dict(_ways).get(depth)
    if places is None:
        places = {}
        _ways = ((depth, places), *_ways)[:_WAYS]
    if len(places) < _PLACES or id(code) + instruction in places:
        # by identity, since the hash of code takes long; the code is kept so that its identity stays its own
        places[id(code) + instruction] = code, beneath


def _is_generated(frame: FrameType) -> bool:
    """Tell whether SQLAlchemy has made this code; its releases before 2.1 give it the name of ``python -c``."""
    return str(frame.f_globals.get("__name__")).startswith("sqlalchemy.")


def _kind(filename: str) -> int:
    if filename == "<string>":
        return _UNSURE
    if filename.startswith((*_OWN_FOLDERS, "<sqlalchemy generated")) or filename == contextlib.__file__:
        return _OURS
    installed = f"{os.sep}site-packages{os.sep}" in filename or f"{os.sep}dist-packages{os.sep}" in filename
    if installed or filename.startswith((_STANDARD_LIBRARY, "<frozen ")):
        return _LIBRARY
    return _APPLICATION


# Read from left to right: names in quotes, comments, literals with all that is behind them. PostgreSQL has comments
# within comments, of which an outer one is cut off as a literal is; and # is an operator there.
_BLOCK = r"/\*(?:(?!/\*|\*/).)*(?:\*/|\Z)"
_MARKS = {
    quote: re.compile(rf"(?P<name>{name})|{_BLOCK}|{line}[^\n]*|(?P<literal>[{literals}]|\$\D|/\*).*", re.DOTALL)
    for quote, name, line, literals in (
        ('"', '"[^"]*"', "--", "'"),
        ("`", "`[^`]*`", r"(?:--(?=\s|\Z)|\#)", "'\""),
        ("", "(?!)", "--", "'\""),
    )
}
_NUMBER = re.compile(r"(?<![\w$:])\d[\w.]*")


def quote_of(dialect: Any) -> str:
    """Return what a database puts around names, and around nothing else; "" where there is no such thing."""
    # SQLite takes names in its quotes for literals where there is no such column
    if getattr(dialect, "name", "") == "sqlite":
        return ""
    return getattr(getattr(dialect, "identifier_preparer", None), "initial_quote", '"')


def shape(statement: str, quote: str = '"') -> str:
    """Return a statement as far as its first literal, on one line, without comments and numbers.

    ``quote`` is what the database puts around names, and around nothing else; other quotes are literals.
    """
    marks = _MARKS.get(quote, _MARKS[""])
    marked = marks.sub(lambda mark: mark["name"] or ("\0" if mark["literal"] else " "), statement)
    text, is_cut, _ = marked.partition("\0")
    text = " ".join(_NUMBER.sub("?", text).split())
    return f"{text[:119].rstrip()} …" if is_cut or len(text) > 120 else text
