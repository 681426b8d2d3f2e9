"""The tokenizer, on SQL of each dialect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlspec.adapters.driver import Syntax
from sqlspec.session.placeholders import PlaceholderError, bind

CODE = ["SELECT ", "a", " FROM t ", "(", ")", ", ", " = ", "1", "\n", " % ", "x "]
OPAQUE: dict[Syntax, list[str]] = {
    "postgresql": [
        "'a?b:c%s'", "'it''s ?'", "E'a\\'?'", '"q?:n"', "$$ ? :n %s $$", "$tag$ ? $$ ? $tag$", "-- ? :n\n",
        "/* ? /* :n */ %s */", "::int", "'\\'",
    ],
    "mysql": [
        "'a?b:c%s'", "'it''s ?'", "'a\\'?'", '"q?:n"', '"a\\"?"', "`c?:n`", "-- ? :n\n", "# ? :n\n", "/* ? :n %s */",
    ],
    "sqlite": ["'a?b:c%s'", "'it''s ?'", '"q?:n"', "`c?:n`", "[c?:n]", "-- ? :n\n", "/* ? :n %s */", "'\\'"],
}  # fmt: skip


@st.composite
def statements(draw: st.DrawFn) -> tuple[Syntax, list[str]]:
    syntax: Syntax = draw(st.sampled_from(sorted(OPAQUE)))
    piece = st.sampled_from([*CODE, *OPAQUE[syntax], "<mark>"])
    return syntax, draw(st.lists(piece, min_size=1, max_size=20))


@settings(max_examples=3000, deadline=None)
@given(statements())
def test_placeholders_count_outside_of_literals_names_and_comments_only(made: tuple[Syntax, list[str]]) -> None:
    syntax, pieces = made
    sql = " ".join("?" if piece == "<mark>" else piece for piece in pieces)
    count = pieces.count("<mark>")
    statement, values = bind(sql, tuple(range(count)), syntax)
    if syntax == "sqlite":
        assert statement.text == sql
    elif count:
        assert values == tuple(range(count))
        assert statement.text % tuple(["<value>"] * count) == " ".join(
            "<value>" if piece == "<mark>" else piece for piece in pieces
        )
    else:
        assert (statement.text, values) == (sql, None)


@settings(max_examples=2000, deadline=None)
@given(statements())
def test_names_count_outside_of_literals_names_and_comments_only(made: tuple[Syntax, list[str]]) -> None:
    syntax, pieces = made
    sql = " ".join(":n" if piece == "<mark>" else piece for piece in pieces)
    statement, _ = bind(sql, {"n": 1}, syntax)
    if syntax != "sqlite" and "<mark>" in pieces:
        assert statement.text % {"n": "<value>"} == " ".join(
            "<value>" if piece == "<mark>" else piece for piece in pieces
        )


@pytest.mark.parametrize(
    ("sql", "parameters", "text"),
    [
        ("SELECT a ?? 'k', ?", (1,), "SELECT a ? 'k', %s"),
        ("SELECT a ??| b", (), "SELECT a ?| b"),
        ("SELECT '50%', ?", (1,), "SELECT '50%%', %s"),
        ("SELECT 5 % 2, :n", {"n": 1}, "SELECT 5 %% 2, %(n)s"),
        ("SELECT %s, '?'", (1,), "SELECT %s, '?'"),
        ("SELECT %(n)s", {"n": 1}, "SELECT %(n)s"),
        ("SELECT a[1:2], ?::int", (1,), "SELECT a[1:2], %s::int"),
        ("SELECT '50%'", None, "SELECT '50%'"),
    ],
)
def test_portable_placeholders_become_the_drivers(sql: str, parameters: Any, text: str) -> None:
    assert bind(sql, parameters, "postgresql")[0].text == text


@pytest.mark.parametrize(
    ("sql", "parameters", "message"),
    [
        ("SELECT ?, %s", (1, 2), "mixes \\? with %s"),
        ("SELECT :n, %(m)s", {"n": 1, "m": 2}, "mixes :name with %s"),
        ("SELECT ?", {"n": 1}, "parameters are a mapping"),
        ("SELECT :n", (1,), "parameters are a sequence"),
        ("SELECT ?", (), "1 placeholders and 0 values"),
        ("SELECT 1", (1,), "0 placeholders and 1 values"),
        ("SELECT :n, :m", {"n": 1}, "no value was given for: m"),
        ("SELECT ?", "text", "of type str"),
        ("SELECT ?", 5, "of type int"),
        ("SELECT ?1", (1,), "SQLite's own placeholder"),
    ],
)
def test_what_does_not_fit_is_refused(sql: str, parameters: Any, message: str) -> None:
    with pytest.raises(PlaceholderError, match=message):
        bind(sql, parameters, "postgresql")
