"""The results of strings do what those of SQLAlchemy's own `exec_driver_sql` do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sqlspec import SQLSpec

STATEMENTS = [
    "SELECT id, name FROM users ORDER BY id",
    "SELECT id, id, name FROM users ORDER BY id",
    "SELECT count(*), count(*) FROM users",
    "SELECT a.id, b.id FROM users a, users b ORDER BY 1, 2",
    "SELECT id FROM users WHERE id > 100",
    "SELECT id, name FROM users WHERE id = 1",
    "UPDATE users SET name = name",
]

USES: dict[str, Callable[[Any], Any]] = {
    "all": lambda r: r.all(),
    "one": lambda r: r.one(),
    "one_or_none": lambda r: r.one_or_none(),
    "first": lambda r: r.first(),
    "first twice": lambda r: (r.first(), r.first()),
    "scalar": lambda r: r.scalar(),
    "scalar_one": lambda r: r.scalar_one(),
    "scalars": lambda r: r.scalars().all(),
    "scalars by index": lambda r: r.scalars(1).all(),
    "scalars by name": lambda r: r.scalars("name").all(),
    "mappings": lambda r: [dict(m) for m in r.mappings()],
    "columns by name": lambda r: r.columns("name", "id").all(),
    "columns by index": lambda r: r.columns(1).all(),
    "no such column": lambda r: r.columns("nowhere").all(),
    "keys": lambda r: list(r.keys()),
    "iteration that stops, and the rest": lambda r: (next(iter(r)), r.all()),
    "next": lambda r: (next(r), next(r)),
    "unique": lambda r: r.unique().all(),
    "partitions": lambda r: [list(part) for part in r.partitions(2)],
    "fetchmany": lambda r: (r.fetchmany(2), r.fetchmany(2), r.fetchmany(2)),
    "fetchone": lambda r: (r.fetchone(), r.fetchone()),
    "fetchone, and the rest": lambda r: (r.fetchone(), r.closed, r.fetchone(), r.fetchall(), r.fetchmany(2)),
    "one, and again": lambda r: (outcome(lambda r: r.one(), r), outcome(lambda r: r.fetchone(), r), r.closed),
    "one or none, and the rest": lambda r: (outcome(lambda r: r.one_or_none(), r), outcome(lambda r: r.all(), r)),
    "yield_per": lambda r: list(r.yield_per(2)),
    "freeze": lambda r: r.freeze()().all(),
    "attribute of a row": lambda r: [row.id for row in r],
    "no such attribute": lambda r: [row.nowhere for row in r],
    "no such key": lambda r: [row._mapping["nowhere"] for row in r],
    "index of a row": lambda r: [row[-1] for row in r],
    "dictionary of a row": lambda r: [row._asdict() for row in r],
    "returns_rows": lambda r: r.returns_rows,
    "all twice": lambda r: (r.all(), r.closed, r.all()),
    "rowcount of changes": lambda r: None if r.returns_rows else r.rowcount,
}


def outcome(use: Callable[[Any], Any], result: Any) -> str:
    try:
        return repr(use(result))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_use_of_a_result_is_sqlalchemys(spec: SQLSpec, statement: str) -> None:
    with spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (name) VALUES (?)", [("a",), ("b",), ("c",)])
    with spec.get_session("primary") as session:
        ours = {name: outcome(use, session.execute(statement)) for name, use in USES.items()}
    with spec.get_engine("primary").connect() as connection:
        theirs = {name: outcome(use, connection.exec_driver_sql(statement)) for name, use in USES.items()}
    assert ours == theirs


def test_a_column_that_changes_its_name_is_seen(spec: SQLSpec) -> None:
    query = "SELECT * FROM users"
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('a')")
        assert session.execute(query).one()._asdict() == {"id": 1, "name": "a"}
        session.execute("ALTER TABLE users RENAME COLUMN name TO label")
        assert session.execute(query).one()._asdict() == {"id": 1, "label": "a"}


def test_rows_that_were_changed_are_counted_after_they_were_read(spec: SQLSpec) -> None:
    with spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (name) VALUES (?)", [("a",), ("b",), ("c",)])
        if spec.get_engine("primary").dialect.name != "mysql":
            result = session.execute("UPDATE users SET name = name || '!' RETURNING name")
            assert result.scalars().all() == ["a!", "b!", "c!"]
            assert result.rowcount == 3
        inserted = session.execute("INSERT INTO users (name) VALUES ('d')")
        assert inserted.rowcount == 1
        if spec.get_engine("primary").dialect.name == "sqlite":
            assert inserted.lastrowid == 4
