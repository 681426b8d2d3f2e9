"""The tokenizer, on SQL of each dialect."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlspec import SQLSpec
from sqlspec.adapters.driver import Language, Syntax
from sqlspec.session.placeholders import PlaceholderError, Statement, bind, bind_rows

CODE = ["SELECT ", "a", " FROM t ", "(", ")", ", ", " = ", "1", "\n", " % ", "x "]
OPAQUE: dict[Syntax, list[str]] = {
    "postgresql": [
        "'a?b:c%s'", "'it''s ?'", "E'a\\'?' ||", '"q?:n"', "$$ ? :n %s $$", "$tag$ ? $$ ? $tag$", "-- ? :n\n",
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
    if "<mark>" not in pieces:
        assert statement.text == sql
    elif syntax == "sqlite":
        assert (statement.text, statement.names, statement.count) == (sql, {"n"}, pieces.count("<mark>"))
    else:
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
        ("SELECT E'a'\n'\\'?', ?", (1,), "SELECT E'a'\n'\\'?', %s"),
        ("SELECT E'a' -- ' ?\r\n '\\'?', ?", (1,), "SELECT E'a' -- ' ?\r\n '\\'?', %s"),
        ("SELECT 'a'\n'\\', ?", (1,), "SELECT 'a'\n'\\', %s"),
        ("SELECT 1 -- ?\r, ?", (1,), "SELECT 1 -- ?\r, %s"),
        ("SELECT interval '%s days'", (3,), "SELECT interval '%s days'"),
        ("SELECT %b, %(a b)s", (b"x",), "SELECT %b, %(a b)s"),
        ("SELECT %(a-b)s", {"a-b": 1}, "SELECT %(a-b)s"),
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
        ("SELECT $1", (1,), "1 values were given: write \\? instead of \\$1"),
        ("SELECT :n, :m", {"n": 1}, "no value was given for: m"),
        ("SELECT ?", "text", "of type str"),
        ("SELECT ?", 5, "of type int"),
        ("SELECT ?1", (1,), "SQLite's own placeholder"),
    ],
)
def test_what_does_not_fit_is_refused(sql: str, parameters: Any, message: str) -> None:
    with pytest.raises(PlaceholderError, match=message):
        bind(sql, parameters, "postgresql")


@pytest.mark.parametrize("language", ["sqlite", "postgresql $1"])
@pytest.mark.parametrize(
    ("sql", "parameters", "message"),
    [
        ("SELECT %s", (1,), "1 values were given: write \\? instead of %s"),
        ("SELECT %(n)s", {"m": 1, "n": 2}, "no placeholder for n: write :n instead of %\\(n\\)s"),
    ],
)
def test_placeholders_that_are_another_drivers_are_named_with_ours(
    sql: str, parameters: Any, message: str, language: Language
) -> None:
    with pytest.raises(PlaceholderError, match=message):
        bind(sql, parameters, language)


@pytest.mark.parametrize(
    ("sql", "parameters", "text"),
    [
        ("SELECT 1 /* a/*/ , ?", (1,), "SELECT 1 /* a/*/ , %s"),
        ("SELECT /*! ?, */ ? /*M! + ? */", (1, 2, 3), "SELECT /*! %s, */ %s /*M! + %s */"),
        ("SELECT @a := ?", (1,), "SELECT @a := %s"),
    ],
)
def test_comments_of_mysql_end_at_once_and_some_are_code(sql: str, parameters: Any, text: str) -> None:
    assert bind(sql, parameters, "mysql")[0].text == text


@pytest.mark.parametrize("sql", ["SELECT ?, @b", "SELECT ?1, ?2", "SELECT $a, ?"])
def test_sqlite_counts_its_own_placeholders_itself(sql: str) -> None:
    assert bind(sql, (1, 2), "sqlite") == (Statement(sql, reads=True), (1, 2))


@pytest.mark.parametrize(
    ("sql", "syntax", "reads", "opens", "controls"),
    [
        ("SELECT 1", "postgresql", True, True, None),
        ("-- INSERT\n/* UPDATE */ (SELECT 1)", "sqlite", False, True, None),
        ("# comment\nVALUES (1)", "mysql", True, True, None),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "sqlite", False, True, None),
        ("EXPLAIN ANALYZE DELETE FROM t", "postgresql", False, True, None),
        ("PRAGMA user_version", "sqlite", True, False, None),
        ("VACUUM", "sqlite", False, False, None),
        ("VACUUM", "postgresql", False, True, None),
        ("begin immediate", "sqlite", False, False, "begin"),
        ("START TRANSACTION", "mysql", False, False, "begin"),
        ("COMMIT", "postgresql", False, False, "end"),
        ("ROLLBACK", "postgresql", False, False, "end"),
        ("ROLLBACK /* all */ TO a", "postgresql", False, False, None),
        ("ROLLBACK WORK TO SAVEPOINT a", "mysql", False, False, None),
        ("CREATE TABLE t (x INTEGER)", "mysql", True, True, None),
        ("CREATE OR REPLACE TEMPORARY TABLE t (x INTEGER)", "mysql", False, True, None),
        ("DROP PREPARE p", "mysql", False, True, None),
        ("CREATE TABLE t (x INTEGER)", "postgresql", False, True, None),
        ("", "sqlite", False, True, None),
    ],
)
def test_what_a_statement_does_to_transactions_is_known_by_its_first_words(
    sql: str, syntax: Syntax, reads: bool, opens: bool, controls: str | None
) -> None:
    statement, _ = bind(sql, None, syntax)
    assert (statement.reads, statement.opens, statement.controls) == (reads, opens, controls)


def test_a_statement_is_read_once() -> None:
    sql = "SELECT 'read once', ?"
    assert bind(sql, (1,), "mysql")[0] is bind(sql, (2,), "mysql")[0]


def test_the_drivers_placeholder_on_sqlite_is_told() -> None:
    with pytest.raises(PlaceholderError, match="write \\? instead of %s"):
        bind("SELECT %s", (1,), "sqlite")
    assert bind("SELECT 5 %s", (), "sqlite")[0].text == "SELECT 5 %s"


@pytest.mark.parametrize("piece", ["/* license */ ", "/**/", "-- a\n", "((", "/*", "'", "E'\\", "$$", "%(", ":a", "\n"])
@pytest.mark.parametrize("syntax", ["postgresql", "mysql", "sqlite"])
def test_no_statement_takes_long_to_read(piece: str, syntax: Syntax) -> None:
    # exponential reading would not end within the lifetime of the test
    for end in ("", "1", ";", "'", "?"):
        with contextlib.suppress(PlaceholderError):
            bind(piece * 20_000 + end, (1,), syntax)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1,), None], "row 1: None is no row"),
        ([(1,), (1, 2)], "row 1: the statement has 1 placeholders and 2 values"),
        ([(1,), {"a": 1}], "row 1: "),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_position(rows: list[Any], message: str) -> None:
    with pytest.raises(PlaceholderError, match=message):
        bind_rows("INSERT INTO t VALUES (?)", rows, "sqlite")


# One statement a line; ~ stands for a new line.
TRICKY = {
    "postgresql": r"""
        SELECT E'a'~'\'?', ?
        SELECT $a$ ? $$ ? $a$, ?
        SELECT U&'\0041?', ?
        SELECT 1 /* /* ? */ ? */, ?
        SELECT '{"a": 1}'::jsonb ?? 'a', ?
        SELECT '12:30:00'::time, ?
        SELECT (ARRAY[1, 2, 3])[1:2], ?
        SELECT 7 % 4, ?
        SELECT 'a' LIKE '%a%', ?
    """,
    "mysql": r"""
        SELECT 'a\'?', ?
        SELECT 1 /*! , 2 */, ?
        SELECT 1 /* a/*/ , ?
        SELECT 1 -- ?~, ?
        SELECT 1--1, ?
        SELECT @a := 5, ?
        SELECT 1 # ?~, ?
        SELECT "a\"?", ?
        SELECT 7 % 4, ?
        SELECT 'a' LIKE '%a%', ?
    """,
    "sqlite": r"""
        SELECT '\', ?
        SELECT "a?", b FROM (SELECT 1 AS "a?", ? AS b)
        SELECT [a?], b FROM (SELECT 1 AS [a?], ? AS b)
        SELECT 1 /* /* ? */, ?
        SELECT '12:30', ?
        SELECT json_extract('{"a": 1}', '$.a'), ?
        SELECT 7 % 4, ?
    """,
}


def test_the_database_reads_a_statement_as_we_do(spec: SQLSpec) -> None:
    with spec.get_session("primary") as session:
        connection = session.connection()
        for line in TRICKY[connection.dialect.name].strip().splitlines():
            statement = line.strip().replace("~", "\n")
            row = session.execute(statement, (42,)).one()
            head, _, tail = statement.replace("??", "\0").rpartition("?")
            written = f"{head}42{tail}".replace("\0", "?")
            assert row == connection.exec_driver_sql(written, execution_options={"no_parameters": True}).one()
            assert row[-1] == 42


def test_statements_without_placeholders_may_run_many_times(spec: SQLSpec) -> None:
    with spec.get_session("primary") as session:
        session.execute("DELETE FROM users")
        session.execute_many("INSERT INTO users (name) SELECT NULL WHERE 5 % 3 = 2", [(), ()])
        session.execute_many("INSERT INTO users (name) SELECT NULL WHERE 5 % 3 = 2", [{}])
        assert session.execute("SELECT count(*) FROM users").scalar() == 3


def test_the_numbers_of_asyncpg_are_its_own_and_stand_alone() -> None:
    assert bind("SELECT $2, $1", (1, 2), "postgresql $1")[0].text == "SELECT $2, $1"
    assert bind("SELECT ?, '$1', 50 % 3", (1,), "postgresql $1")[0].text == "SELECT $1, '$1', 50 % 3"
    assert bind("SELECT :a, :b, :a", {"a": 1, "b": 2}, "postgresql $1")[1] == (1, 2, 1)
    for sql, parameters in (("SELECT $1", {"a": 1}), ("SELECT $1, ?", (1,)), ("SELECT $1, :a", {"a": 1})):
        with pytest.raises(PlaceholderError, match=r"\$1"):
            bind(sql, parameters, "postgresql $1")
