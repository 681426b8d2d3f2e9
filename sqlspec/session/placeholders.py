"""Portable placeholders: `?` and `:name`, rewritten for the driver."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from sqlspec.adapters.commits import BLANK, FOR_ONE, commits
from sqlspec.adapters.driver import Language, Syntax

__all__ = ["PlaceholderError", "Statement", "bind", "bind_rows", "is_query", "is_single", "prepare", "rows_of"]

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
        order: the names of its numbered placeholders, where the driver takes no names.
        reads: whether a rollback would lose nothing of it.
        opens: whether it belongs in a transaction (SQLite's VACUUM and PRAGMA do not, nor what begins one).
        commits: whether it may commit what has run in its transaction.
        controls: what it does to a transaction itself: ``begin``, ``end``, or ``unseen``, where nobody can tell.
        lingers: whether something of it may stand in the way of others behind its first row, or its first rows: changes
            on SQLite whose rows are not read; on MySQL further results, which are seen in the server's answer only.
        alters: whether it changes what there is of the schema, and with it the plans of statements.
        columns: what the last execution returned: names and SQLAlchemy's metadata for them. A cache that any
            thread may replace; who uses it compares the names first.
    """

    text: str
    count: int | None = None
    names: frozenset[str] | None = None
    order: tuple[str, ...] | None = None
    reads: bool = False
    opens: bool = True
    commits: bool = False
    controls: Literal["begin", "end", "unseen"] | None = None
    lingers: bool = False
    alters: bool = False
    columns: Any = field(default=None, compare=False)


_PLAIN = r"'(?:[^']++|'')*+(?:'|\Z)"
_ESCAPED = r"'(?:[^'\\]++|\\.|'')*+(?:'|\Z)"
# between two parts of one literal of PostgreSQL there is a new line
_NEXT_PART = r"(?:[ \t\f\v]++|--[^\n\r]*+)*+[\n\r](?:\s++|--[^\n\r]*+)*+"
# What is no code, by dialect. An opening without its end runs to the end of the text.
_OPAQUE = {
    "postgresql": rf"""
        \b[eE]{_ESCAPED}(?:{_NEXT_PART}{_ESCAPED})*+ | {_PLAIN} | "(?:[^"]++|"")*+(?:"|\Z)
        | (?<![\w$])\$(?P<tag>[^\W\d]\w*+|)\$.*?(?:\$(?P=tag)\$|\Z) | --[^\n\r]*+ | /\* | ::""",
    "mysql": rf"""
        {_ESCAPED} | "(?:[^"\\]++|\\.|"")*+(?:"|\Z) | `(?:[^`]++|``)*+(?:`|\Z)
        | --(?=[\s\x00-\x1f]|\Z)[^\n]*+ | \#[^\n]*+ | /\* | :=""",
    "sqlite": rf"""
        {_PLAIN} | "(?:[^"]++|"")*+(?:"|\Z) | `(?:[^`]++|``)*+(?:`|\Z) | \[[^\]]*+(?:\]|\Z)
        | --[^\n]*+ | /\* | ::""",
}
_TOKENS = {
    syntax: re.compile(
        rf"""(?P<opaque>{opaque})
        | (?P<double>\?\?) | (?P<numbered>\?\d+) | (?P<question>\?)
        | (?<![\w:]):(?P<name>[^\W\d]\w*+)
        | (?<![\w$])(?P<dollar>\$\d+) | (?P<percent>%s(?!\w)|%\(\w+\)s) | (?P<other>[@$][^\W\d]\w*+)""",
        re.VERBOSE | re.DOTALL,
    )
    for syntax, opaque in _OPAQUE.items()
}
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_SYNTAXES: dict[Language, Syntax] = {
    "postgresql": "postgresql",
    "postgresql $1": "postgresql",
    "mysql": "mysql",
    "sqlite": "sqlite",
}
# what the drivers take themselves, wherever it stands; sqlite3 takes the portable ones
_PERCENT = re.compile(r"%(?:\([^)]*\))?[sbt]")
_DRIVERS_OWN: dict[Language, re.Pattern[str]] = {
    "postgresql": _PERCENT,
    "postgresql $1": re.compile(r"\$\d"),
    "mysql": _PERCENT,
}
_FIRST_WORD = re.compile(rf"{BLANK}([A-Za-z]++)")
_QUERYING = frozenset({"SELECT", "VALUES", "WITH", "TABLE"})
_READING = _QUERYING | {"SHOW", "EXPLAIN", "DESCRIBE", "DESC", "PRAGMA", "SET"}
# a query that begins like one and may change something all the same; found too often, never too rarely
_WRITING = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b", re.IGNORECASE)
# Where a query makes a table, or changes rows in a WITH clause or behind it. UPDATE is also a part of FOR UPDATE.
_CHANGING = re.compile(r"\bINTO\b|[()]\s*+(?:DELETE\s++FROM\b|UPDATE\s++[\w\"])", re.IGNORECASE)
_CONTROLS: dict[str, Literal["begin", "end"]] = {
    "BEGIN": "begin",
    "START": "begin",
    "COMMIT": "end",
    "END": "end",
    "ABORT": "end",
    "ROLLBACK": "end",
}
# What may leave a transaction open under autocommit: MySQL's procedures, what EXECUTE runs, its code in comments, XA,
# autocommit itself.
_UNSEEN = re.compile(rf"\s*+/\*M?!|{BLANK}(?:CALL\b|EXECUTE\b|XA\b|SET\b.*\bautocommit\b)", re.IGNORECASE | re.DOTALL)
_TO = re.compile(r"\bTO\b", re.IGNORECASE)
_TEMPORARY = re.compile(r"\b(?:TEMPORARY|PREPARE)\b", re.IGNORECASE)
# what is new changes no plan that there is
_REPLACING = re.compile(rf"{BLANK}(?:ALTER|DROP|CREATE\s++OR\s++REPLACE)\b", re.IGNORECASE)
# MySQL commits before and after these: nothing of them is lost
_COMMITTING = frozenset({"ALTER", "CREATE", "DROP", "GRANT", "RENAME", "REVOKE", "TRUNCATE"})
_ROWS = frozenset({tuple, list, dict})
_OUTSIDE_TRANSACTIONS = frozenset({"PRAGMA", "VACUUM", "ATTACH", "DETACH"})


@functools.lru_cache(maxsize=2048)
def prepare(sql: str, language: Language, style: Style) -> Statement:
    """Rewrite the portable placeholders of a statement into those that a driver takes.

    Placeholders count outside literals, quoted names, comments, dollar quotes and casts. ``??`` is a question
    mark. Without a portable placeholder the text stays as it is, for the driver's own ones.

    Raises:
        PlaceholderError: both kinds of placeholders at once, or one that does not go with the parameters.
    """
    syntax = _SYNTAXES[language]
    statement = Statement(sql) if style == "none" else _translate(sql, language, style)
    statement.commits = commits(sql, syntax)
    if syntax == "mysql" and (behind := FOR_ONE.match(sql)):
        sql = sql[behind.end() :]
    word = _FIRST_WORD.match(sql)
    first = word[1].upper() if word else ""
    # ROLLBACK … TO SAVEPOINT ends nothing
    statement.controls = _CONTROLS.get(first) if first != "ROLLBACK" or not _TO.search(sql) else None
    statement.opens = first not in _CONTROLS and not (syntax == "sqlite" and first in _OUTSIDE_TRANSACTIONS)
    if syntax == "mysql" and _UNSEEN.match(sql):
        statement.controls = "unseen"
    statement.alters = _REPLACING.match(sql) is not None
    implied = syntax == "mysql" and first in _COMMITTING and not _TEMPORARY.search(sql)
    statement.reads = implied or (first in _READING and not _WRITING.search(sql))
    statement.lingers = syntax == "mysql" or (syntax == "sqlite" and not statement.reads)
    return statement


def _translate(sql: str, language: Language, style: Style) -> Statement:
    syntax, has_percent = _SYNTAXES[language], _DRIVERS_OWN.get(language) is _PERCENT
    found = _find(sql, syntax)
    kinds = {kind for kind, _, _, _ in found if kind != "percent" or has_percent}
    if syntax == "sqlite" and kinds & {"numbered", "other"}:
        # sqlite3 has more ways to name a parameter, ?1, @name and $name: it counts by itself
        return Statement(_undouble(sql, found))
    if "dollar" in kinds:
        if kinds & {"question", "name"} and syntax == "postgresql":
            raise PlaceholderError("the statement mixes $1 with ? or :name: keep one kind of placeholder")
        if language == "postgresql $1" and style == "named":
            raise PlaceholderError("$1 goes with a sequence: pass one, or write :name")
    if "numbered" in kinds:
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
            return Statement(_undouble(sql, found), 0, frozenset())
        return Statement(sql)
    if "percent" in kinds:
        raise PlaceholderError(
            f"the statement mixes {'?' if style == 'positional' else ':name'} with %s: keep one kind of placeholder"
        )
    return _rewrite(sql, found, language, portable)


def is_single(sql: str, syntax: Syntax) -> bool:
    """Tell whether nothing comes after the first semicolon that is code, but for blanks, comments and semicolons."""
    return not _plain(sql, syntax).partition(";")[2].strip("; \t\r\n\f\v")


def is_query(sql: str, syntax: Syntax) -> bool:
    """Tell whether it is a query that changes nothing: what PostgreSQL has cursors for."""
    word = _FIRST_WORD.match(sql)
    return word is not None and word[1].upper() in _QUERYING and not _CHANGING.search(_plain(sql, syntax))


def _plain(sql: str, syntax: Syntax) -> str:
    """Return the code of a statement, with blanks for comments and as many letters for what is quoted."""
    plain = list(sql)
    for match, end in _scan(sql, syntax):
        if match["opaque"] is not None:
            filler = " " if match[0].startswith(("--", "#", "/*")) else "x"
            plain[match.start() : end] = filler * (end - match.start())
    return "".join(plain)


def _find(sql: str, syntax: Syntax) -> list[tuple[str, int, int, str]]:
    """Return kind, start, end and name of each placeholder."""
    return [
        (match.lastgroup or "", match.start(), end, match["name"] or "")
        for match, end in _scan(sql, syntax)
        if match["opaque"] is None
    ]


def _scan(sql: str, syntax: Syntax) -> Iterator[tuple[re.Match[str], int]]:
    """Return each placeholder and each part that is no code, and where it ends."""
    token, position = _TOKENS[syntax], 0
    while match := token.search(sql, position):
        position = match.end()
        # MySQL runs what stands in /*! … */ and /*M! … */
        if match[0] == "/*" and not (syntax == "mysql" and sql.startswith(("!", "M!"), position)):
            position = _end_of_comment(sql, position, nested=syntax == "postgresql")
        yield match, position


def _end_of_comment(sql: str, position: int, *, nested: bool) -> int:
    if not nested:
        end = sql.find("*/", position)
        return len(sql) if end < 0 else end + 2
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def _undouble(sql: str, found: list[tuple[str, int, int, str]]) -> str:
    pieces: list[str] = []
    position = 0
    for kind, start, end, _ in found:
        if kind == "double":
            pieces += sql[position:start], "?"
            position = end
    return "".join([*pieces, sql[position:]])


def _rewrite(sql: str, found: list[tuple[str, int, int, str]], language: Language, portable: str) -> Statement:
    # in the text around the placeholders, a percent sign would be one for these drivers
    doubles = _DRIVERS_OWN.get(language) is _PERCENT
    pieces: list[str] = []
    names: list[str] = []
    position = 0
    for kind, start, end, name in found:
        between, own = sql[position:start], sql[start:end]
        position = end
        if kind == portable:
            names.append(name)
            own = _mark(own, name, len(names), language)
        pieces += between.replace("%", "%%") if doubles else between, "?" if kind == "double" else own
    rest = sql[position:]
    pieces.append(rest.replace("%", "%%") if doubles else rest)
    statement = Statement("".join(pieces), len(names))
    if portable == "name":
        statement.names = frozenset(names)
        statement.order = tuple(names) if language == "postgresql $1" else None
    return statement


def _mark(own: str, name: str, number: int, language: Language) -> str:
    """Return a placeholder as a driver takes it."""
    if language == "sqlite":
        return own
    if language == "postgresql $1":
        # a number for each occurrence: the same one could not have two types
        return f"${number}"
    return f"%({name})s" if name else "%s"


def bind(sql: str, parameters: Any, language: Language) -> tuple[Statement, Any]:
    """Return the statement for the driver and its parameters, checked against each other.

    Raises:
        PlaceholderError: the wrong number of values, missing names, or rows where one set belongs.
    """
    if parameters is None:
        return prepare(sql, language, "none"), None
    if type(parameters) is not tuple:
        if isinstance(parameters, Mapping):
            return _bind_names(sql, parameters if isinstance(parameters, dict) else dict(parameters), language)
        if isinstance(parameters, (str, bytes, bytearray)) or not isinstance(parameters, Sequence):
            raise PlaceholderError(
                f"the parameters are of type {type(parameters).__name__}: pass a tuple, a list or a mapping; "
                "one value is ('…',)"
            )
        parameters = tuple(parameters)
    statement = prepare(sql, language, "positional")
    count = statement.count
    if count is not None and len(parameters) != count:
        if count == 0 and _is_drivers_own(sql, language):
            return prepare(sql, language, "none"), parameters
        raise PlaceholderError(
            _rows_instead(parameters)
            or f"the statement has {count} placeholders and {len(parameters)} values were given"
            + _portable_instead(sql, language)
        )
    # elsewhere a list may be one value, such as an array
    if language == "sqlite" and len(parameters) > 1 and type(parameters[0]) in _ROWS:
        hint = _rows_instead(parameters)
        if hint:
            raise PlaceholderError(hint)
    return statement, (parameters if count != 0 else None)


def rows_of(rows: Iterable[Any]) -> list[Any]:
    """Return rows of parameters as a list.

    Raises:
        PlaceholderError: it is one row, or none at all.
    """
    if isinstance(rows, (Mapping, str, bytes)) or not isinstance(rows, Iterable):
        raise PlaceholderError(
            f"execute_many() takes rows, a list of tuples or of mappings, not a {type(rows).__name__}"
        )
    return list(rows)


def bind_rows(sql: str, rows: list[Any], language: Language) -> tuple[Statement, list[Any]]:
    """Return the statement for the driver and all its rows of parameters; there is at least one.

    Raises:
        PlaceholderError: as `bind`, with the position of the row.
    """
    statement, bound, position = None, [], 0
    try:
        for position, row in enumerate(rows):  # noqa: B007  # for the message
            if row is None:
                raise PlaceholderError("None is no row of parameters")
            statement, values = bind(sql, row, language)
            bound.append(() if values is None else values)
            if type(bound[0]) is not type(bound[-1]) and isinstance(row, dict) != isinstance(rows[0], dict):
                raise PlaceholderError("some rows are mappings and some are sequences: keep one kind")
    except PlaceholderError as error:
        problem = f"row {position}: {error}"
    else:
        return cast("Statement", statement), bound
    raise PlaceholderError(problem)


def _bind_names(sql: str, parameters: dict[Any, Any], language: Language) -> tuple[Statement, Any]:
    statement = prepare(sql, language, "named")
    if statement.count == 0:
        if parameters and _is_drivers_own(sql, language):
            return prepare(sql, language, "none"), parameters
        if foreign := next((name for name in parameters if f"%({name})s" in sql), None):
            raise PlaceholderError(
                f"the statement has no placeholder for {foreign}: write :{foreign} instead of %({foreign})s"
            )
        return statement, None
    _check_names(statement, parameters)
    if statement.order is not None:
        return statement, tuple([parameters[name] for name in statement.order])
    return statement, parameters


def _is_drivers_own(sql: str, language: Language) -> bool:
    own = _DRIVERS_OWN.get(language)
    return own is not None and own.search(sql) is not None


def _portable_instead(sql: str, language: Language) -> str:
    """Return what to write in place of another driver's placeholders."""
    foreign = [] if _DRIVERS_OWN.get(language) is _PERCENT else ["%s"]
    foreign += [] if language == "postgresql $1" else ["$1"]
    return next((f": write ? instead of {mark}" for mark in foreign if mark in sql), "")


def _check_names(statement: Statement, parameters: dict[Any, Any]) -> None:
    if statement.names and not statement.names <= parameters.keys() and not hasattr(parameters, "__missing__"):
        missing = ", ".join(sorted(statement.names - parameters.keys()))
        raise PlaceholderError(f"the statement has {len(statement.names)} names and no value was given for: {missing}")


def _rows_instead(parameters: Any) -> str | None:
    if parameters and all(type(row) in _ROWS for row in parameters):
        return f"the parameters are {len(parameters)} rows: execute_many() takes rows, execute() one set of values"
    return None
