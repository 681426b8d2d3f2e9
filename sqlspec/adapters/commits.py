"""Which statements commit."""

from __future__ import annotations

import re

from sqlspec.adapters.driver import Syntax

__all__ = ["BLANK", "FOR_ONE", "commits"]

# what may come before the first word
BLANK = r"(?>\s|(?:--|\#)[^\n]*+(?:\n|\Z)|/\*(?:[^*]++|\*(?!/))*+\*/|\()*+"
# MariaDB's variables for one statement, which comes behind them
FOR_ONE = re.compile(rf"{BLANK}SET\s++STATEMENT\b(?:'[^']*+'|[^'])*?\bFOR\b", re.IGNORECASE)
_COMMIT = re.compile(rf"{BLANK}(?:COMMIT|END)\b", re.IGNORECASE)
# What commits on MySQL and MariaDB: https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/. Of
# procedures, what EXECUTE runs, XA and code in comments nobody can tell.
_IMPLIED = re.compile(
    rf"""\s*+/\*M?! | {BLANK}(?:COMMIT|ALTER|ANALYZE|BEGIN|CACHE|CALL|CHANGE|CHECK
    |CREATE(?!(?:\s++OR\s++REPLACE)?\s++TEMPORARY)|DROP(?!\s++(?:TEMPORARY|PREPARE))|EXECUTE|FLUSH|GRANT|LOAD\s++INDEX
    |LOCK|OPTIMIZE|RENAME|REPAIR|RESET|REVOKE|SHUTDOWN|START|STOP|TRUNCATE|XA|SET\b.*\b(?:autocommit|PASSWORD))\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def commits(sql: str, syntax: Syntax) -> bool:
    """Tell whether a statement may commit what has run in its transaction."""
    if syntax != "mysql":
        return _COMMIT.match(sql) is not None
    behind = FOR_ONE.match(sql)
    return _IMPLIED.match(sql, 0 if behind is None else behind.end()) is not None
