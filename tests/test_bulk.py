"""Many rows at once, on every database."""

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import enum
import itertools
import json
import math
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg2.extras import DateTimeRange
from sqlalchemy import exc

from sqlspec import LoadError, Session, SQLSpec, copy_rows
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from tests.conftest import Database
from tests.servers import PASSWORD
from tests.test_cancellation import CancelledAt

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


@pytest.fixture
def any_items(items: SQLSpec, any_spec: Any) -> Any:
    """The registry with the items, or one whose sessions are asynchronous."""
    return any_spec


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


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_loaded(any_spec: Any, database: Database, kind: Callable[[bytes], Any]) -> None:
    value = b"\x00\xff\\\n'"
    with any_spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS bytes_alone")
        session.execute(f"CREATE TABLE bytes_alone (a {'BYTEA' if database.name == 'postgresql' else 'BLOB'})")
        session.load_rows("bytes_alone", [(kind(value),), (None,)])
        found = session.execute("SELECT a FROM bytes_alone WHERE a IS NOT NULL").scalar()
        session.execute("DROP TABLE bytes_alone")
    assert bytes(found) == value


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


NOBODY: list[tuple[str, list[tuple[Any, ...]], list[str]]] = [
    ("nowhere", [(1, "a"), (2, "b")], []),
    ("nowhere", [(1, "a"), (2, "b")], ["id", "name"]),
    ("items", [(1, "a"), (2, "b")], ["id", "title"]),
    ("items", [(1, "a"), (2, "b")], ["id", "order by"]),
]
SOMEBODY: list[tuple[str, list[tuple[Any, ...]], list[str]]] = [
    ("items", [(1, "a"), (1, "b")], ["id", "name"]),
    ("items", [(1, "a"), (2, "b", 3)], ["id", "name"]),
    ("items", [(1, "a", 1), (2, "b", 1, 5)], []),
    ("loaded", [(1, 5), (2, None)], ["id", "value"]),
    ("loaded", [(1, 5), (2, 7, 8)], ["id", "value"]),
]


@pytest.mark.parametrize(("table", "rows", "columns"), [*NOBODY, *SOMEBODY])
def test_a_row_is_named_where_one_is_at_fault_and_only_there(
    any_items: Any, table: str, rows: list[tuple[Any, ...]], columns: list[str]
) -> None:
    with any_items.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS loaded")
        twice = "twice INTEGER GENERATED ALWAYS AS (value * 2) STORED"
        session.execute(f"CREATE TABLE loaded (id INTEGER, value INTEGER NOT NULL, {twice})")
        session.commit()
        for more in ([], [(number, "x") for number in range(10, 1500)]):
            with pytest.raises(LoadError) as failed:
                session.load_rows(table, [*rows, *more], columns=columns)
            assert failed.value.position == (2 if (table, rows, columns) in SOMEBODY else None)
            session.rollback()
        session.execute("DROP TABLE loaded")


def test_no_row_is_at_fault_where_none_may_be_written(any_items: Any) -> None:
    with pytest.raises(LoadError) as failed, any_items.get_session("primary", read_only=True) as session:
        session.load_rows("items", [(1, "a"), (2, "b")], columns=["id", "name"])
    assert failed.value.position is None


@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
def test_no_row_is_at_fault_where_somebody_else_has_locked_it(
    items: SQLSpec, any_items: Any, database: Database
) -> None:
    patience = {"postgresql": "SET lock_timeout = 200", "mariadb": "SET innodb_lock_wait_timeout = 1"}[database.name]
    items.register_config(database.config(), "other")
    with items.get_session("other") as other, any_items.get_session("primary") as session:
        other.execute("INSERT INTO items (id) VALUES (3)")
        session.execute(patience)
        with pytest.raises(LoadError, match="rows for items cannot") as failed:
            session.load_rows("items", [(number,) for number in range(1, 6)], columns=["id"])
        session.rollback()
        other.rollback()
    assert failed.value.position is None
    assert found(items) == []


def test_no_row_is_at_fault_where_the_database_computes_the_column(any_items: Any, database: Database) -> None:
    with any_items.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS computed")
        session.execute("CREATE TABLE computed (id INTEGER, twice INTEGER GENERATED ALWAYS AS (id * 2) STORED)")
        session.commit()
        with pytest.raises(LoadError) as failed:
            session.load_rows("computed", [(1, 2), (2, 4)], columns=["id", "twice"])
        # MariaDB takes rows with NULL there
        assert failed.value.position == (1 if database.name == "mariadb" else None)
        session.rollback()
        session.execute("DROP TABLE computed")


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


def test_a_copy_whose_commit_was_interrupted_says_so(
    items: SQLSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    items.register_config(SQLiteConfig(database=str(tmp_path / "other.db")), "other")
    with items.get_session("primary") as source, items.get_session("other") as target:
        source.load_rows("items", [(1, "a"), (2, "b")], columns=("id", "name"))
        target.execute("CREATE TABLE items (id INTEGER, name TEXT)")
        target.commit()
        monkeypatch.setattr(target, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            copy_rows(source, "SELECT id, name FROM items", target, "items")
        monkeypatch.undo()
        target.commit()
        assert target.execute("SELECT count(*) FROM items").scalar() == 0
    told = "sqlspec: 0 rows are committed in items, and perhaps 2 more, whose COMMIT was under way"
    assert interrupted.value.__notes__ == [told]


@pytest.fixture
def numbers(items: SQLSpec, tmp_path: Path) -> SQLSpec:
    """The registry with another database, whose table of numbers has rows that fit the items."""
    items.register_config(SQLiteConfig(database=str(tmp_path / "other.db")), "other")
    with items.get_session("other") as session:
        session.execute("CREATE TABLE numbers (id INTEGER, name TEXT)")
        session.load_rows("numbers", [(number, str(number)) for number in range(1, 2501)])
    return items


NUMBERS = "SELECT id, name FROM numbers ORDER BY id"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_of_a_batch_that_was_not_committed_is_left_to_be_committed_later(
    numbers: SQLSpec, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with numbers.get_session("other") as source, numbers.get_session("primary") as target:
        load = target.load_rows

        def load_and_fail(table: str, rows: list[Any], columns: list[str]) -> int:
            count = load(table, rows, columns)
            if rows[0][0] > 2000:
                raise error
            return count

        monkeypatch.setattr(target, "load_rows", load_and_fail)
        with pytest.raises(error) as failed:
            copy_rows(source, NUMBERS, target, "items", batch_size=1000)
        assert not target.in_transaction
    assert failed.value.__notes__ == ["sqlspec: 2000 rows are committed in items"]
    assert len(found(numbers)) == 2000


def test_what_progress_did_before_it_failed_is_rolled_back(numbers: SQLSpec) -> None:
    with numbers.get_session("other") as source, numbers.get_session("primary") as target:

        def fail(count: int) -> None:
            target.execute("DELETE FROM items")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            copy_rows(source, NUMBERS, target, "items", batch_size=1000, progress=fail)
    assert len(found(numbers)) == 1000


def test_an_error_among_the_rows_of_the_source_rolls_the_target_back(numbers: SQLSpec) -> None:
    with numbers.get_session("other") as source, numbers.get_session("primary") as target:
        target.execute("INSERT INTO items (id, name) VALUES (5000, 'before')")
        with pytest.raises(exc.DBAPIError) as failed:
            copy_rows(source, "SELECT json_extract(name, '$.x') FROM numbers UNION SELECT json('{')", target, "items")
    assert failed.value.__notes__ == ["sqlspec: 0 rows are committed in items"]
    assert found(numbers) == []


@pytest.mark.parametrize("bad", ["row", "progress"])
def test_a_rollback_that_fails_hides_no_error(numbers: SQLSpec, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the second")

    query = f"{NUMBERS.removesuffix(' ORDER BY id')} UNION ALL SELECT 5, 'there is a 5'" if bad == "row" else NUMBERS
    wanted = LoadError if bad == "row" else ZeroDivisionError
    with numbers.get_session("other") as source, numbers.get_session("primary") as target:
        monkeypatch.setattr(target, "rollback", fail)
        with pytest.raises(wanted) as failed:
            copy_rows(source, query, target, "items", progress=fail)
        monkeypatch.undo()
        target.rollback()
    assert failed.value.__notes__[-1] == "sqlspec: the rollback failed as well: ZeroDivisionError: the second"


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "psycopg", "mariadb"], indirect=True)
def test_a_copy_that_is_cancelled_at_any_await_leaves_whole_batches_and_a_session_to_go_on_with(
    numbers: SQLSpec, database: Database
) -> None:
    async def copied(registry: SQLSpec, step: int) -> bool:
        """Copy, cancelled at this step; tell whether it came to its end before."""
        async with registry.get_async_session("other") as source, registry.get_async_session("primary") as target:
            await target.execute("DELETE FROM items")
            await target.commit()
            try:
                await CancelledAt(copy_rows(source, f"{NUMBERS} LIMIT 50", target, "items", batch_size=20), step)
            except asyncio.CancelledError as error:
                (note,) = error.__notes__
                await source.rollback()
            else:
                return True
            assert not target.in_transaction
            await target.commit()
            count = await target.execute("SELECT count(*) FROM items").scalar()
            told = [int(number) for number in re.findall(r"\d+", note)]
            assert count in {told[0], sum(told)}, note
            assert count % 20 in {0, 10}
        return False

    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config(), "primary")
            registry.register_config(numbers.get_config("other"), "other")
            async with asyncio.timeout(30):
                for step in itertools.count():
                    if await copied(registry, step):
                        break
            stats = registry.get_pool_stats("primary")
            assert (stats.checked_out, stats.dropped) == (0, 0)
            assert step > 10

    asyncio.run(main())


@pytest.mark.parametrize("batch_size", [0, -5])
def test_a_batch_without_rows_is_refused_by_its_name_before_anything_runs(tmp_path: Path, batch_size: int) -> None:
    async def main() -> None:
        async with registry.get_async_session("a") as source, registry.get_async_session("b") as target:
            with pytest.raises(ValueError, match=f"batch_size={batch_size}: at least one row"):
                await copy_rows(source, "SELECT 1", target, "items", batch_size=batch_size)
            assert not source._session.in_transaction

    with SQLSpec() as registry:
        for name in ("a", "b"):
            registry.register_config(SQLiteConfig(database=str(tmp_path / name)), name)
        with registry.get_session("a") as source, registry.get_session("b") as target:
            with pytest.raises(ValueError, match=f"batch_size={batch_size}: at least one row"):
                copy_rows(source, "SELECT 1", target, "items", batch_size=batch_size)
            assert not source.in_transaction
        asyncio.run(main())


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


class Fruit(str, enum.Enum):  # noqa: UP042  # the older kind, whose str() is not its value
    APPLE = "apple"


class Size(int, enum.Enum):
    LARGE = 3


def test_members_of_enumerations_and_subclasses_are_loaded_by_value(spec: SQLSpec, database: Database) -> None:
    class Text(str):
        __slots__ = ()

    with spec.get_session("primary") as session:
        session.execute("CREATE TABLE members (a VARCHAR(50), b INTEGER, c VARCHAR(50), d VARCHAR(100))")
        rows = [(Fruit.APPLE, Size.LARGE, Text("t\tx"), collections.OrderedDict(k=[1]))]
        session.load_rows("members", rows)
        found = session.execute("SELECT a, b, c, d FROM members").one()
        session.execute("DROP TABLE members")
    assert (*found[:3], json.loads(found[3])) == ("apple", 3, "t\tx", {"k": [1]})


def test_rows_need_no_truth_as_arrays_of_numpy_have_none(items: SQLSpec) -> None:
    class Row(list[Any]):
        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

    with items.get_session("primary") as session:
        assert session.load_rows("items", [Row([1, "a"]), Row([2, "b"])], columns=("id", "name")) == 2
    assert found(items) == [(1, "a"), (2, "b")]


def test_what_has_no_value_in_the_database_is_refused_with_its_position(items: SQLSpec) -> None:
    good = [(number, "x") for number in range(1, 1500)]
    bad: list[Any] = [(5000, object()), (5000, "\ud800"), (), None]
    for row in bad:
        with pytest.raises(LoadError) as caught, items.get_session("primary") as session:
            session.load_rows("items", [*good, row, (6000, "x")], columns=("id", "name"))
        assert caught.value.position == 1500, row
    assert found(items) == []


def test_mappings_must_have_the_same_keys(items: SQLSpec) -> None:
    with items.get_session("primary") as session:
        for bad in ({"id": 2}, {"id": 2, "name": "b", "price": 5}):
            with pytest.raises(LoadError) as caught:
                session.load_rows("items", [{"id": 1, "name": "a"}, bad])
            assert caught.value.position == 2
            assert any(name in str(caught.value.__cause__) for name in ("name", "price"))
            session.rollback()
        wide = [{"id": 1, "name": "a", "more": 1}, {"name": "b", "id": 2}]
        assert session.load_rows("items", wide, columns=("id", "name")) == 2
    assert found(items) == [(1, "a"), (2, "b")]


NO_ROWS: list[tuple[list[Any], int]] = [
    ([(1, "a"), {"id": 2, "name": "b"}], 2),
    ([{"id": 1, "name": "a"}, (2, "b")], 2),
    ([{"id": 1}, (2, "b")], 2),
    ([{"id": 1}, {}], 2),
    ([{}], 1),
    ([(1, "a"), "2b"], 2),
    ([b"12"], 1),
    ([(1, "a")] * 1500 + [{2, "b"}], 1501),
    ([(value for value in (1, "a"))], 1),
    ([5], 1),
    ([{"id": number, "name": "a"} for number in range(1500)] + [None], 1501),
]


@pytest.mark.parametrize(("rows", "position"), NO_ROWS)
@pytest.mark.parametrize("kind", [list, iter])
def test_what_is_no_row_is_refused_with_its_position(
    spec: SQLSpec, kind: Callable[[list[Any]], Any], rows: list[Any], position: int
) -> None:
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS loose")
        session.execute("CREATE TABLE loose (id INTEGER, name VARCHAR(50))")
        session.commit()
        with pytest.raises(LoadError) as caught:
            session.load_rows("loose", kind(rows))
        assert caught.value.position == position
        session.rollback()
        assert session.execute("SELECT count(*) FROM loose").scalar() == 0
        session.execute("DROP TABLE loose")


def test_tasks_are_told_as_well_which_row_is_none(items: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                for rows in ([(1, "a"), {"id": 2, "name": "b"}], [{"id": 1, "name": "a"}, (2, "b")]):
                    with pytest.raises(LoadError) as caught:
                        await session.load_rows("items", rows, columns=("id", "name"))
                    assert caught.value.position == 2
                    await session.rollback()

    asyncio.run(main())


def test_columns_are_names_and_not_the_letters_of_one(items: SQLSpec) -> None:
    with items.get_session("primary") as session, pytest.raises(TypeError, match="list of names"):
        session.load_rows("items", [(1, 2)], columns="id")


def test_names_with_percent_signs_are_loaded_into(spec: SQLSpec) -> None:
    with spec.get_session("primary") as session:
        table = sa.Table("100%", sa.MetaData(), sa.Column("50%%s", sa.Integer), sa.Column("b", sa.Integer))
        table.create(session.connection())
        session.load_rows("100%", [(1, 2)], columns=["50%%s", "b"])
        with pytest.raises(LoadError) as caught, session.begin_nested():
            session.load_rows("100%", [(1, 2), (3, 4, 5)], columns=["50%%s", "b"])
        assert caught.value.position == 2
        found = session.execute(sa.select(table)).all()
        table.drop(session.connection())
    assert [tuple(row) for row in found] == [(1, 2)]


def test_rows_that_are_long_go_in_several_statements(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        session.execute(f"CREATE TABLE long_ones (a {'LONGTEXT' if database.name == 'mariadb' else 'TEXT'})")
        assert session.load_rows("long_ones", ((str(number % 10) * 40_000,) for number in range(600))) == 600
        assert session.execute("SELECT count(*), sum(length(a)) FROM long_ones").one() == (600, 24_000_000)
        session.execute("DROP TABLE long_ones")


@pytest.mark.parametrize(
    "other",
    [
        lambda session: session.execute("SELECT 'b'"),
        lambda session: session.execute(sa.text("SELECT 'b'")),
        lambda session: session.load_rows("items", [(5, "x")]),
        lambda session: session.begin_nested(),
        lambda session: session.commit(),
        lambda session: session.rollback(),
    ],
)
def test_nothing_else_runs_while_rows_are_loaded(items: SQLSpec, other: Callable[[Session], object]) -> None:
    with items.get_session("primary") as session:

        def rows() -> Iterator[tuple[int, str]]:
            yield 1, "a"
            other(session)
            yield 2, "b"

        with pytest.raises(exc.InvalidRequestError, match="from another session"):
            session.load_rows("items", rows(), columns=("id", "name"))
        session.rollback()
        assert session.execute("SELECT 3").scalar() == 3
    assert found(items) == []


def test_nothing_runs_on_the_connection_of_the_session_while_rows_are_loaded(items: SQLSpec) -> None:
    with items.get_session("primary") as session:
        connection = session.connection()

        def rows() -> Iterator[tuple[int, str]]:
            yield 1, "a"
            yield 2, connection.execute(sa.text("SELECT 'b'")).scalar_one()

        with pytest.raises(exc.InvalidRequestError, match="from another session"):
            session.load_rows("items", rows(), columns=("id", "name"))
        session.rollback()
        assert connection.execute(sa.text("SELECT 3")).scalar() == 3
    assert found(items) == []


def test_rows_of_a_stream_of_the_sessions_connection_are_loaded_or_refused(items: SQLSpec, database: Database) -> None:
    query = sa.text("SELECT id + 1000, name FROM items WHERE id < 1000").execution_options(yield_per=10)
    with items.get_session("primary") as session:
        session.load_rows("items", ((number, "x") for number in range(300)), columns=("id", "name"))
        stream = session.connection().execute(query)
        names = ("id", "name")
        if database.name == "sqlite":
            assert session.load_rows("items", stream, names) == 300
        else:
            with pytest.raises(exc.InvalidRequestError, match="stream"):
                session.load_rows("items", stream, names)
            if database.name == "mariadb":
                with pytest.raises(exc.InvalidRequestError, match="read or close it first"):
                    session.connection().execute(query)
            # one may have been taken
            rest = stream.all()
            assert session.load_rows("items", rest, names) == len(rest) >= 299
    assert len(found(items)) >= 599


def test_rows_of_a_stream_of_a_tasks_connection_are_refused_while_they_cannot_be_waited_for(
    items: SQLSpec, database: Database
) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                connection = await session.connection()

                async def rows() -> AsyncIterator[tuple[int, str]]:
                    yield 1, "a"
                    yield 2, (await connection.execute(sa.text("SELECT 'b'"))).scalar_one()

                with pytest.raises(exc.InvalidRequestError, match="from another session"):
                    await session.load_rows("items", rows(), columns=("id", "name"))
                await session.rollback()
                if database.name == "mariadb":
                    async with connection.stream(sa.text("SELECT seq FROM seq_1_to_500")) as stream:
                        await stream.fetchone()
                        with pytest.raises(exc.InvalidRequestError, match="read or close it first"):
                            await connection.execute(sa.text("SELECT 7"))
                        assert len(await stream.all()) == 499

    asyncio.run(main())
    assert found(items) == []


def test_rows_of_an_own_stream_are_loaded_or_refused_and_never_waited_for(items: SQLSpec, database: Database) -> None:
    query = "SELECT id + 1000, name FROM items WHERE id < 1000"
    with items.get_session("primary") as session:
        session.load_rows("items", ((number, "x") for number in range(300)), columns=("id", "name"))
        session.commit()
        if database.name == "sqlite":
            assert session.load_rows("items", session.stream(query, chunk_size=100), columns=("id", "name")) == 300
            return
        told = "cannot take rows one by one while a stream of its session is open on PostgreSQL"
        for rows in (
            lambda: session.stream(query, chunk_size=100),
            lambda: iter(session.stream(query, chunk_size=100)),
            lambda: iter(session.execute(sa.text(query).execution_options(yield_per=100))),
        ):
            with pytest.raises(exc.InvalidRequestError, match=f"{told}|a stream is open"):
                session.load_rows("items", rows(), columns=("id", "name"))
            session.rollback()
        rows_in_memory = session.stream(query).all()
        assert session.load_rows("items", rows_in_memory, columns=("id", "name")) == 300
        assert session.execute("SELECT count(*) FROM items").scalar() == 600


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "psycopg"], indirect=True)
def test_lists_are_loaded_while_a_stream_is_open(items: SQLSpec) -> None:
    with items.get_session("primary") as session:
        session.load_rows("items", ((number, "x") for number in range(300)), columns=("id", "name"))
        with session.stream("SELECT id + 1000, name FROM items WHERE id < 1000", chunk_size=100) as stream:
            for batch in stream.partitions():
                session.load_rows("items", batch, columns=("id", "name"))
    assert len(found(items)) == 600


def test_tasks_do_not_wait_for_a_stream_that_they_load(items: SQLSpec, database: Database) -> None:
    async def main() -> None:
        async with SQLSpec() as registry:
            registry.register_config(database.config())
            async with registry.get_async_session() as session:
                await session.load_rows("items", [(1, "a"), (2, "b")], columns=("id", "name"))
                rows = session.stream("SELECT id + 10, name FROM items WHERE id < 10", chunk_size=1)
                if database.name == "sqlite":
                    assert await session.load_rows("items", rows, columns=("id", "name")) == 2
                    return
                with pytest.raises(exc.InvalidRequestError, match=r"stream .*is open"):
                    await session.load_rows("items", rows, columns=("id", "name"))
                await session.rollback()
                assert await session.execute("SELECT count(*) FROM items").scalar() == 0

    asyncio.run(main())


def test_an_interrupt_among_the_rows_stays_one(items: SQLSpec) -> None:
    def rows() -> Iterator[tuple[int, str]]:
        yield from ((number, "x") for number in range(1500))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), items.get_session("primary") as session:
        session.load_rows("items", rows(), columns=("id", "name"))
    assert found(items) == []


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_an_encoding_of_the_connection_changes_no_text(database: Database) -> None:
    with SQLSpec() as spec:
        spec.register_config(database.config(client_encoding="latin1"))
        with spec.get_session() as session:
            session.execute("CREATE TEMPORARY TABLE encoded (a TEXT)")
            session.load_rows("encoded", [("é",)])
            assert session.execute("SELECT a, octet_length(a) FROM encoded").one() == ("é", 2)


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_json_is_copied_as_it_is(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    texts = ['"123"', '"null"', "null", "1", '"abc"', '{"a": [1]}', '["x"]', None]
    spec.register_config(SQLiteConfig(database=str(tmp_path / "other.db")), "other")
    with spec.get_session("primary") as session:
        session.execute("CREATE TABLE json_source (id INTEGER, a JSON, b JSONB)")
        session.execute("CREATE TABLE json_target (id INTEGER, a JSON, b JSONB)")
        session.load_rows("json_source", [(number, text, text) for number, text in enumerate(texts)])
    query = "SELECT id, a, b FROM json_source ORDER BY id"
    with spec.get_session("other") as other:
        other.execute("CREATE TABLE json_target (id INTEGER, a TEXT, b TEXT)")
        with spec.get_session("primary") as source, spec.get_session("primary") as target:
            assert (
                copy_rows(source, query, target, "json_target") == copy_rows(source, query, other, "json_target") == 8
            )
            # parsed again from now on
            assert source.execute("SELECT a FROM json_source WHERE id = 5").scalar() == {"a": [1]}
        assert [row.a for row in other.execute("SELECT a FROM json_target ORDER BY id")] == texts
    assert found(spec, "SELECT CAST(a AS TEXT) FROM json_target ORDER BY id") == [(text,) for text in texts]
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE json_source")
        session.execute("DROP TABLE json_target")


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
def test_times_of_mysql_fit_times_and_intervals(spec: SQLSpec) -> None:
    delta = datetime.timedelta
    with spec.get_session("primary") as session:
        session.execute("CREATE TEMPORARY TABLE times (a TIME, b INTERVAL)")
        session.load_rows("times", [(delta(hours=1, seconds=2), -delta(days=3, seconds=4, microseconds=5))])
        found = session.execute("SELECT a, b FROM times").one()
    assert tuple(found) == (datetime.time(1, 0, 2), -delta(days=3, seconds=4, microseconds=5))


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
@pytest.mark.parametrize("style", ["postgres", "sql_standard"])
def test_loaded_intervals_and_truths_are_those_of_other_statements(spec: SQLSpec, style: str) -> None:
    delta = datetime.timedelta
    deltas = [
        delta(days=1),
        delta(days=-1, seconds=5),
        delta(microseconds=-1),
        delta(days=400, hours=5),
        delta(hours=5),
    ]
    rows = [(True, [value], False, value) for value in deltas]
    names = "a::text, b::text, c, d::text"
    with spec.get_session("primary") as session:
        for table in ("loaded", "inserted"):
            session.execute(f"CREATE TEMPORARY TABLE {table} (a VARCHAR(9), b INTERVAL[], c BOOLEAN, d INTERVAL)")
        session.load_rows("loaded", rows)
        session.execute_many("INSERT INTO inserted VALUES (?, ?, ?, ?)", rows)
        loaded = session.execute(f"SELECT {names} FROM loaded").all()
        assert loaded == session.execute(f"SELECT {names} FROM inserted").all()
        assert [row.a for row in loaded] == ["true"] * len(deltas)
        session.execute(f"SET LOCAL IntervalStyle = {style}")
        session.execute("DELETE FROM loaded")
        session.load_rows("loaded", rows)
        assert [row.d for row in session.execute("SELECT d = ANY(b) AS d FROM loaded")] == [True] * len(deltas)
        session.execute("SET LOCAL IntervalStyle = postgres")
        assert session.execute(f"SELECT {names} FROM loaded").all() == loaded


@pytest.mark.parametrize("database", ["postgresql", "psycopg"], indirect=True)
@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMP[]", "TSRANGE", "DATE"])
def test_a_time_with_a_zone_is_refused_where_its_column_has_none(spec: SQLSpec, kind: str) -> None:
    class Moment(datetime.datetime):
        pass

    def value(moment: datetime.datetime) -> Any:
        if kind == "TSRANGE":
            return DateTimeRange(moment, None)
        return [moment] if kind.endswith("]") else moment

    aware = Moment(2024, 2, 29, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5)))
    with spec.get_session("primary") as session:
        session.execute(f"CREATE TEMPORARY TABLE moments (a {kind}, b TIMESTAMPTZ)")
        session.load_rows("moments", [(value(datetime.datetime(2024, 2, 29)), aware)])
        assert session.execute("SELECT b FROM moments").scalar() == aware
        with pytest.raises(LoadError, match="cannot be loaded") as caught:
            session.load_rows("moments", [(None, aware), (value(aware), aware)])
        session.rollback()
        assert caught.value.position == 2


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "asyncmy", "aiosqlite"])
def test_tasks_copy_between_all_databases(
    driver: str, postgresql_server: Any, mariadb_server: Any, tmp_path: Path
) -> None:
    def config(kind: str) -> Any:
        if kind == "aiosqlite":
            return SQLiteConfig(database=str(tmp_path / "tasks.db"))
        server = mariadb_server if kind == "asyncmy" else postgresql_server
        place = {"host": "127.0.0.1", "port": server.port, "username": "app", "password": PASSWORD}
        if kind == "asyncmy":
            return MySQLConfig(**place, database="app")
        return PostgreSQLConfig(**place, database="postgres", url=f"postgresql+{kind}://")

    async def main() -> None:
        async with SQLSpec() as spec:
            spec.register_config(config(driver), "source")
            for name in ("asyncpg", "psycopg", "asyncmy", "aiosqlite"):
                spec.register_config(config(name), name)
            async with spec.get_async_session("source") as session:
                await session.execute("DROP TABLE IF EXISTS one_source")
                await session.execute("CREATE TABLE one_source (c VARCHAR(20), n INTEGER)")
                await session.load_rows("one_source", [("abc", 1), (None, 2), ("ü%s", 3)])
            for name in ("asyncpg", "psycopg", "asyncmy", "aiosqlite"):
                for columns in (["c"], ["c", "n"]):
                    names = ", ".join(columns)
                    async with spec.get_async_session("source") as source, spec.get_async_session(name) as target:
                        await target.execute("DROP TABLE IF EXISTS one_target")
                        await target.execute("CREATE TABLE one_target (c VARCHAR(20), n INTEGER)")
                        query = f"SELECT {names} FROM one_source ORDER BY n"
                        assert await copy_rows(source, query, target, "one_target") == 3
                    async with spec.get_async_session(name) as target:
                        found = await target.execute("SELECT c, n FROM one_target").all()
                        wanted = [("abc", 1), (None, 2), ("ü%s", 3)]
                        assert sorted(found, key=str) == sorted(
                            [(c, n if "n" in columns else None) for c, n in wanted], key=str
                        )

    asyncio.run(main())
