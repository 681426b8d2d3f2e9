"""Many rows at once, on every database."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import math
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import LoadError, SQLSpec, copy_rows
from sqlspec.adapters import SQLiteConfig
from tests.conftest import Database

HARD = [
    "plain",
    "",
    "back\\slash \\N \\. \\\\",
    "tab\tnew\nline\rreturn",
    "quote ' double \" percent % %s ? :x",
    "naïve 日本 🎉",
    " spaces ",
    "NULL",
    None,
]


@pytest.fixture
def items(spec: SQLSpec, database: Database) -> SQLSpec:
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS items")
        columns = "id INTEGER PRIMARY KEY, name VARCHAR(200), price NUMERIC(12, 2)"
        session.execute(f"CREATE TABLE items ({columns}){' CHARSET utf8mb4' if database.name == 'mariadb' else ''}")
    return spec


def found(spec: SQLSpec, sql: str = "SELECT id, name FROM items ORDER BY id") -> list[Any]:
    with spec.get_session("primary") as session:
        return [tuple(row) for row in session.execute(sql)]


def test_rows_are_loaded_in_the_transaction(items: SQLSpec) -> None:
    with items.get_session("primary") as session:
        rows = ((number, f"item {number}", decimal.Decimal("1.50")) for number in range(2500))
        assert session.load_rows("items", rows) == 2500
        assert session.execute("SELECT count(*) FROM items").scalar() == 2500
        session.rollback()
        assert session.load_rows("items", [{"name": "x", "id": 1}, {"id": 2, "name": "y"}]) == 2
        assert session.load_rows("items", [{"name": "z", "id": 3, "more": 0}], columns=["id", "name"]) == 1
        assert session.load_rows("items", [(4,)], columns=["id"]) == 1
        assert session.load_rows("items", []) == 0
    assert found(items) == [(1, "x"), (2, "y"), (3, "z"), (4, None)]


def test_text_is_loaded_as_it_is(items: SQLSpec) -> None:
    with items.get_session("primary") as session:
        session.load_rows("items", enumerate(HARD), columns=("id", "name"))
    assert [name for _, name in found(items)] == HARD


def test_values_of_every_type_arrive(spec: SQLSpec, database: Database) -> None:
    types = {
        "postgresql": {"BLOB": "BYTEA", "DATETIME": "TIMESTAMP", "TIME": "INTERVAL"},
        "mariadb": {"TEXT": "LONGTEXT", "DATETIME": "DATETIME(6)", "TIME": "TIME(6)"},
        "sqlite": {},
    }[database.name]
    columns = ["INTEGER", "DOUBLE PRECISION", "NUMERIC(20, 5)", "BOOLEAN", "BLOB", "DATE", "DATETIME", "TIME", "TEXT"]
    values = (
        2**31 - 1,
        0.1 + 0.2,
        decimal.Decimal("12345678901234.56789"),
        True,
        b"\x00\xff\\\n",
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 23, 59, 59, 123456),
        datetime.timedelta(hours=-3, microseconds=5),
        uuid.UUID(int=5),
    )
    definitions = ", ".join(f"c{number} {types.get(kind, kind)}" for number, kind in enumerate(columns))
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS kinds")
        session.execute(f"CREATE TABLE kinds ({definitions})")
        session.load_rows("kinds", [values, (None,) * len(values)])
        first, second = session.execute("SELECT * FROM kinds ORDER BY c0 IS NULL").all()
    assert set(second) == {None}
    if database.name == "sqlite":
        assert tuple(first) == (
            2**31 - 1,
            0.1 + 0.2,
            pytest.approx(12345678901234.56789),
            1,
            b"\x00\xff\\\n",
            "2024-02-29",
            "2024-02-29 23:59:59.123456",
            "-1 day, 21:00:00.000005",
            str(uuid.UUID(int=5)),
        )
    else:
        assert bytes(first[4]) == values[4]
        assert (*first[:4], *first[5:8], str(first[8])) == (*values[:4], *values[5:8], str(values[8]))


def test_json_and_arrays_of_postgresql_are_told_apart(spec: SQLSpec, database: Database) -> None:
    if database.name != "postgresql":
        return
    arrays, document = [["a", None], ['q"uote', "back\\slash {,}"]], {"a": [1, "x\ny\\"]}
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS documents")
        session.execute("CREATE TABLE documents (words TEXT[], numbers FLOAT[], one JSONB, many JSON)")
        session.load_rows("documents", [(arrays, [1.5, math.inf], document, [1, "two"])])
        assert session.execute("SELECT * FROM documents").one() == (arrays, [1.5, math.inf], document, [1, "two"])


def test_a_bad_row_names_its_position(items: SQLSpec) -> None:
    rows = [(number, f"item {number}") for number in range(1, 3000)]
    rows[1776] = (5, "there is a 5 already")
    with items.get_session("primary") as session:
        session.load_rows("items", [(5000, "before")], columns=("id", "name"))
        session.commit()
        with pytest.raises(LoadError, match=r"row \d+ for items cannot be loaded \(\w+\); 0 rows") as caught:
            session.load_rows("items", rows, columns=("id", "name"))
        assert caught.value.position == 1777
        assert isinstance(caught.value.__cause__, exc.IntegrityError)
        session.rollback()
        with pytest.raises(LoadError):
            session.load_rows("items", [(1, "x"), (2, "x", 5, 5, 5)], columns=("id", "name"))
        session.rollback()
        with pytest.raises(LoadError, match="for nowhere cannot be loaded"):
            session.load_rows("nowhere", [(1,)])
        session.rollback()
    assert found(items) == [(5000, "before")]


def test_a_value_too_many_in_one_row_does_not_become_one_of_the_next(items: SQLSpec) -> None:
    with pytest.raises(LoadError), items.get_session("primary") as session:
        session.load_rows("items", [(1, "a"), (2,), ("b", 3, "c"), (4, "d")], columns=("id", "name"))
    assert found(items) == []


def test_a_table_with_many_columns_is_loaded(spec: SQLSpec) -> None:
    names, rows = [f"c{number}" for number in range(150)], [[row] * 150 for row in range(40)]
    with spec.get_session("primary") as session:
        session.execute(f"CREATE TABLE wide ({', '.join(f'{name} INTEGER' for name in names)})")
        assert session.load_rows("wide", rows) == 40
        assert [list(row) for row in session.execute("SELECT * FROM wide ORDER BY c0")] == rows
        session.execute("DROP TABLE wide")


def test_what_the_rows_raise_goes_through(items: SQLSpec) -> None:
    def rows() -> Iterator[tuple[int, str]]:
        yield 1, "x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), items.get_session("primary") as session:
        session.load_rows("items", rows(), columns=("id", "name"))
    assert found(items) == []


def test_names_are_quoted_for_the_database(spec: SQLSpec, database: Database) -> None:
    awkward = "select Weird-Name"
    with spec.get_session("primary") as session:
        connection = session.connection()
        table = sa.Table(awkward, sa.MetaData(), sa.Column("order by", sa.Integer), sa.Column("Ünï", sa.String(9)))
        table.drop(connection, checkfirst=True)
        table.create(connection)
        session.load_rows(awkward, [{"order by": 1, "Ünï": "a"}])
        assert session.execute(sa.select(table)).all() == [(1, "a")]
        schema = {"postgresql": "public", "mariadb": "app", "sqlite": "main"}[database.name]
        session.load_rows(f"{schema}.{awkward}", [(2, "b")])
        assert session.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 2
        table.drop(connection)
        with pytest.raises(LoadError):
            session.load_rows("items; DROP TABLE users", [(1,)])
        session.rollback()
    with spec.get_session("primary", autocommit=True) as session, pytest.raises(exc.InvalidRequestError):
        session.load_rows("items", [(1,)])


def test_many_rows_of_a_statement_count_what_they_changed(items: SQLSpec, database: Database) -> None:
    insert = "INSERT INTO items (id, name) VALUES (?, ?)"
    with items.get_session("primary") as session:
        result = session.execute_many(insert, [(number, f"{number}%") for number in range(2500)])
        assert result.rowcount == (2500 if database.name != "sqlite" or result.rowcount >= 0 else -1)
        named = session.execute_many(
            "INSERT INTO items (id, name) VALUES (:id, upper(:name))",
            [{"id": 3000, "name": "a)"}, {"id": 3001, "name": "(b"}],
        )
        assert named.rowcount == 2
        session.execute_many("UPDATE items SET name = ? WHERE id = ?", [("x", 1), ("y", 2)])
    assert [name for _, name in found(items)][:4] == ["0%", "x", "y", "3%"]
    assert found(items)[-2:] == [(3000, "A)"), (3001, "(B")]


def test_rows_are_copied_from_one_database_to_another(items: SQLSpec, database: Database, tmp_path: Path) -> None:
    with items.get_session("primary") as session:
        session.load_rows("items", ((n, f"n{n}", decimal.Decimal(n) / 4) for n in range(2500)))
    reported: list[int] = []
    with SQLSpec() as registry:
        registry.register_config(SQLiteConfig(database=str(tmp_path / "other.db")))
        with registry.get_session() as target, items.get_session("primary") as source:
            target.execute("CREATE TABLE items (id INTEGER, name TEXT, price NUMERIC)")
            query = "SELECT * FROM items WHERE id >= ? ORDER BY id"
            count = copy_rows(
                source, query, target, "items", parameters=(500,), batch_size=1000, progress=reported.append
            )
        assert (count, reported) == (2000, [1000, 2000])
        # and back
        with registry.get_session() as source, items.get_session("primary") as target:
            target.execute("DELETE FROM items")
            assert copy_rows(source, "SELECT id, name, price FROM items", target, "items") == 2000
    rows = found(items, "SELECT count(*), sum(id), sum(price) FROM items")
    assert rows == [(2000, sum(range(500, 2500)), pytest.approx(decimal.Decimal(sum(range(500, 2500))) / 4))]


def test_an_interrupted_copy_says_what_is_committed(items: SQLSpec, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        if count == 2000:
            raise KeyboardInterrupt

    with items.get_session("primary") as session:
        session.load_rows("items", [(2_700, "in the way")], columns=("id", "name"))
    with SQLSpec() as registry:
        registry.register_config(SQLiteConfig(database=str(tmp_path / "other.db")))
        with registry.get_session() as source:
            source.execute("CREATE TABLE numbers (id INTEGER, name TEXT)")
            source.load_rows("numbers", [(n, str(n)) for n in range(1, 3001)])
            source.commit()
            query = "SELECT id, name FROM numbers ORDER BY id"
            with items.get_session("primary") as target:
                with pytest.raises(LoadError, match="2000 rows are committed") as failed:
                    copy_rows(source, query, target, "items", batch_size=1000)
                assert (failed.value.position, failed.value.committed) == (2700, 2000)
                assert target.execute("SELECT count(*) FROM items").scalar() == 2001
                target.execute("DELETE FROM items")
            with pytest.raises(KeyboardInterrupt) as interrupted, items.get_session("primary") as target:
                copy_rows(source, query, target, "items", batch_size=1000, progress=interrupt)
            assert interrupted.value.__notes__ == ["sqlspec: 2000 rows are committed in items"]
            with pytest.raises(ValueError, match="two sessions"):
                copy_rows(source, query, source, "items")
    assert len(found(items)) == 2000


def test_tasks_load_and_copy_as_well(items: SQLSpec, database: Database, tmp_path: Path) -> None:
    async def rows() -> AsyncIterator[tuple[int, str]]:
        for number in range(1500):
            await asyncio.sleep(0)
            yield number, f"n{number}"

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            registry.register_config(SQLiteConfig(database=str(tmp_path / "other.db")), "other")
            async with registry.get_async_session() as session:
                assert await session.load_rows("items", rows(), columns=("id", "name")) == 1500
                assert await session.load_rows("items", [{"id": 2000, "name": "x"}]) == 1
                await session.commit()
                with pytest.raises(LoadError) as caught:
                    await session.load_rows("items", [(3000, "x"), (2000, "y")], columns=("id", "name"))
                assert caught.value.position == 2
                assert isinstance(caught.value.__cause__, exc.IntegrityError)
                await session.rollback()
            async with registry.get_async_session() as source, registry.get_async_session("other") as target:
                await target.execute("CREATE TABLE items (id INTEGER, name TEXT, price NUMERIC)")
                assert await copy_rows(source, "SELECT * FROM items", target, "items", batch_size=100) == 1501
                with registry.get_session("other") as other, pytest.raises(TypeError, match="of one kind"):
                    copy_rows(source, "SELECT 1", other, "items")  # type: ignore[call-overload]  # the mistake

    asyncio.run(main())
    assert len(found(items)) == 1501
