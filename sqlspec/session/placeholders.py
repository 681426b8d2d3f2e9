"""Portable placeholders: `?` and `:name`, rewritten for the driver."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlspec.adapters.driver import Syntax

__all__ = ["PlaceholderError", "Statement", "bind", "prepare"]

Style = Literal["none", "positional", "named"]


class PlaceholderError(Exception):
    """Say that the parameters do not fit the statement; callers raise it as their own ProgrammingError."""


@dataclass(slots=True)
class Statement:
    """Hold a statement as the driver takes it.

    Attributes:
        text: the SQL for the driver.
        count: how many values it takes; None where the driver's own placeholders are used.
        names: the names it takes, where it is named.
        reads: whether it begins like a query.
        opens: whether it belongs in a transaction (SQLite's VACUUM and PRAGMA do not).
        columns: what the last execution returned: names and SQLAlchemy's metadata for them. A cache that any
            thread may replace; who uses it compares the names first.
    """

    text: str
    count: int | None
    names: frozenset[str] | None
    reads: bool
    opens: bool
    columns: Any = field(default=None, compare=False)


# What is no code, by dialect. An opening without its end runs to the end of the text.
_OPAQUE = {
    "postgresql": r"""
        \b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z) | '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z)
        | (?<![\w$])\$(?P<tag>[^\W\d]\w*|)\$.*?(?:\$(?P=tag)\$|\Z) | --[^\n]* | /\* | ::""",
    "mysql": r"""
        '(?:[^'\\]|\\.|'')*(?:'|\Z) | "(?:[^"\\]|\\.|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z)
        | --(?=[\s\x00-\x1f]|\Z)[^\n]* | \#[^\n]* | /\* | :=""",
    "sqlite": r"""
        '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z) | \[[^\]]*(?:\]|\Z)
        | --[^\n]* | /\* | ::""",
}
_TOKENS = {
    syntax: re.compile(
        rf"""(?P<opaque>{opaque})
        | (?P<double>\?\?) | (?P<numbered>\?\d+) | (?P<question>\?)
        | (?<![\w:]):(?P<name>[^\W\d]\w*)
        | (?P<percent>%s(?!\w)|%\(\w+\)s)""",
        re.VERBOSE | re.DOTALL,
    )
    for syntax, opaque in _OPAQUE.items()
}
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*([A-Za-z]+)", re.DOTALL)
_READING = frozenset({"SELECT", "VALUES", "WITH", "SHOW", "EXPLAIN", "DESCRIBE", "DESC", "TABLE", "PRAGMA"})
_ROWS = frozenset({tuple, list, dict})
_OUTSIDE_TRANSACTIONS = frozenset({"PRAGMA", "VACUUM", "ATTACH", "DETACH"})


@functools.lru_cache(maxsize=2048)
def prepare(sql: str, syntax: Syntax, style: Style) -> Statement:
    """Rewrite the portable placeholders of a statement for the driver of a dialect.

    Placeholders count outside literals, quoted names, comments, dollar quotes and casts. ``??`` is a question
    mark. Without a portable placeholder the text stays as it is, for the driver's own ones.

    Raises:
        PlaceholderError: both kinds of placeholders at once, or one that does not go with the parameters.
    """
    word = _FIRST_WORD.match(sql)
    first = word[1].upper() if word else ""
    reads, opens = first in _READING, syntax != "sqlite" or first not in _OUTSIDE_TRANSACTIONS
    if style == "none":
        return Statement(sql, None, None, reads, opens)
    found = _find(sql, syntax)
    kinds = {kind for kind, _, _, _ in found}
    if "numbered" in kinds:
        if syntax == "sqlite":
            return Statement(sql, None, None, reads, opens)
        raise PlaceholderError("?1 is SQLite's own placeholder: write ? with a sequence, or :name with a mapping")
    portable: Literal["question", "name"] = "question" if style == "positional" else "name"
    other = "name" if style == "positional" else "question"
    if portable not in kinds:
        if other in kinds and "percent" not in kinds:
            raise PlaceholderError(
                "the statement has ? placeholders and the parameters are a mapping: pass a sequence, or write :name"
                if style == "named"
                else "the statement has :name placeholders, the parameters are a sequence: pass a mapping, or write ?"
            )
        if "percent" not in kinds:
            # sqlite3 has more ways to name a parameter, @name and $name: it counts by itself
            count = None if syntax == "sqlite" else 0
            return Statement(_undouble(sql, found), count, frozenset(), reads, opens)
        return Statement(sql, None, None, reads, opens)
    if syntax != "sqlite" and "percent" in kinds:
        raise PlaceholderError(
            f"the statement mixes {'?' if style == 'positional' else ':name'} with %s: keep one kind of placeholder"
        )
    return _rewrite(sql, found, syntax, portable, reads, opens)


def _find(sql: str, syntax: Syntax) -> list[tuple[str, int, int, str]]:
    """Return kind, start, end and name of each placeholder."""
    token, found, position = _TOKENS[syntax], [], 0
    while match := token.search(sql, position):
        position = match.end()
        kind = match.lastgroup or "opaque"
        if match["opaque"] is not None:
            if match[0] == "/*":
                position = _end_of_comment(sql, position, nested=syntax == "postgresql")
            continue
        found.append((kind, match.start(), match.end(), match["name"] or ""))
    return found


def _end_of_comment(sql: str, position: int, *, nested: bool) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        if edge[0] == "*/":
            depth -= 1
        elif nested:
            depth += 1
        if depth == 0:
            return edge.end()
    return len(sql)


def _undouble(sql: str, found: list[tuple[str, int, int, str]]) -> str:
    for _, start, end, _ in reversed([item for item in found if item[0] == "double"]):
        sql = sql[:start] + "?" + sql[end:]
    return sql


def _rewrite(
    sql: str, found: list[tuple[str, int, int, str]], syntax: Syntax, portable: str, reads: bool, opens: bool
) -> Statement:
    percent = syntax != "sqlite"
    pieces, names, count, position = [], set(), 0, 0
    for kind, start, end, name in found:
        between = sql[position:start]
        pieces.append(between.replace("%", "%%") if percent else between)
        position = end
        if kind == "double":
            pieces.append("?")
        elif kind == portable:
            count += 1
            names.add(name)
            if percent:
                pieces.append("%s" if portable == "question" else f"%({name})s")
            else:
                pieces.append(sql[start:end])
        else:
            pieces.append(sql[start:end])
    rest = sql[position:]
    pieces.append(rest.replace("%", "%%") if percent else rest)
    return Statement("".join(pieces), count, frozenset(names) if portable == "name" else None, reads, opens)


def bind(sql: str, parameters: Any, syntax: Syntax) -> tuple[Statement, Any]:
    """Return the statement for the driver and its parameters, checked against each other.

    Raises:
        PlaceholderError: the wrong number of values, missing names, or rows where one set belongs.
    """
    if parameters is None:
        return prepare(sql, syntax, "none"), None
    if type(parameters) is not tuple:
        if isinstance(parameters, Mapping):
            statement = prepare(sql, syntax, "named")
            _check_names(statement, parameters)
            return statement, parameters if statement.count != 0 else None
        if isinstance(parameters, (str, bytes, bytearray)) or not isinstance(parameters, Sequence):
            raise PlaceholderError(
                f"the parameters are of type {type(parameters).__name__}: pass a tuple, a list or a mapping; "
                "one value is ('…',)"
            )
    statement = prepare(sql, syntax, "positional")
    count = statement.count
    if count is not None and len(parameters) != count:
        raise PlaceholderError(
            _rows_instead(parameters)
            or f"the statement has {count} placeholders and {len(parameters)} values were given"
        )
    # elsewhere a list may be one value, such as an array
    if syntax == "sqlite" and parameters and type(parameters[0]) in _ROWS and (hint := _rows_instead(parameters)):
        raise PlaceholderError(hint)
    return statement, (parameters if count != 0 else None)


def _check_names(statement: Statement, parameters: Mapping[str, Any]) -> None:
    if statement.names and not statement.names <= parameters.keys():
        missing = ", ".join(sorted(statement.names - parameters.keys()))
        raise PlaceholderError(f"the statement has {len(statement.names)} names and no value was given for: {missing}")


def _rows_instead(parameters: Any) -> str | None:
    if parameters and all(type(row) in _ROWS for row in parameters):
        return f"the parameters are {len(parameters)} rows: execute_many() takes rows, execute() one set of values"
    return None
