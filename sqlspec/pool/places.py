"""Who holds a connection, and where in the application's code it was checked out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sysconfig
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple

import sqlalchemy

__all__ = ["Mark", "Owner", "Place", "describe_owner", "find_place", "shape"]

# How far up the stack to look for the application's own code.
_DEPTH = 40
_OURS, _LIBRARY, _APPLICATION = range(3)
_OWN_FOLDERS = tuple(
    os.path.dirname(os.path.dirname(path) if path == __file__ else path) + os.sep
    for path in (sqlalchemy.__file__, os.path.abspath(__file__))
)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
# file name to kind; an application has a bounded number of files
_kinds: dict[str, int] = {}

Owner = threading.Thread | weakref.ref[Any]


class Place(NamedTuple):
    """Be a position in running code; its line is looked up when somebody wants to know."""

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        lines = self.code.co_lines()
        line = next((line for start, end, line in lines if start <= self.instruction < end), self.code.co_firstlineno)
        return f"{self.code.co_filename}:{line} in {self.code.co_name}"


# A checkout: since when by the monotonic clock, by whom, code and instruction of where, and the dictionary of what
# its owner holds, where that is kept. A plain tuple, since every checkout makes one.
Mark = tuple[float, Owner, CodeType, int, dict[Any, None] | None]


def find_place(frame: FrameType | None, further: Callable[[], FrameType | None] | None = None) -> tuple[CodeType, int]:
    """Return the code and the instruction of the application's own code on the stack.

    Where there is none, it is the code nearest to SQLAlchemy and sqlspec. ``further`` gives the frame with which a
    stack goes on that ends.
    """
    nearest = last = None
    for _ in range(_DEPTH):
        if frame is None and further is not None:
            frame, further = further(), None
        if frame is None:
            break
        code = frame.f_code
        kind = _kinds.get(code.co_filename)
        if kind is None:
            kind = _kinds[code.co_filename] = _kind(code.co_filename)
        if kind == _APPLICATION and not (code.co_filename == "<string>" and _is_generated(frame)):
            return code, frame.f_lasti
        last = code, frame.f_lasti
        if kind == _LIBRARY and nearest is None:
            nearest = last
        frame = frame.f_back
    return nearest or last or (find_place.__code__, 0)


def _is_generated(frame: FrameType) -> bool:
    """Tell whether SQLAlchemy has made this code; its releases before 2.1 give it the name of ``python -c``."""
    return str(frame.f_globals.get("__name__")).startswith("sqlalchemy.")


def _kind(filename: str) -> int:
    if filename.startswith((*_OWN_FOLDERS, "<sqlalchemy generated")) or filename == contextlib.__file__:
        return _OURS
    installed = f"{os.sep}site-packages{os.sep}" in filename or f"{os.sep}dist-packages{os.sep}" in filename
    if installed or filename.startswith((_STANDARD_LIBRARY, "<frozen ")):
        return _LIBRARY
    return _APPLICATION


def describe_owner(owner: Owner) -> str:
    """Return the name of a thread or task, and whether it has ended."""
    if isinstance(owner, threading.Thread):
        return f"thread {owner.name}" if owner.is_alive() else f"thread {owner.name} (ended)"
    task: asyncio.Task[Any] | None = owner()
    if task is None:
        return "a task (ended)"
    return f"task {task.get_name()} (ended)" if task.done() else f"task {task.get_name()}"


def shape(statement: str, quote: str = '"') -> str:
    """Return a statement as far as its first literal, on one line, without numbers.

    ``quote`` is what the database puts around names; the other one is a literal.
    """
    text, *rest = re.split(r"'|\$\D" if quote == '"' else r"['\"]|\$\D", statement, maxsplit=1)
    text = " ".join(re.sub(r"(?<![\w$:%])\d[\w.]*", "?", text).split())
    return f"{text[:119].rstrip()} …" if rest or len(text) > 120 else text
