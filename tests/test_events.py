"""Who listens to an engine sees of our sessions what it would see of SQLAlchemy's own connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio  # imported while it is instrumented, it would instrument its engines twice
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import exc

from sqlspec import SQLSpec
from tests.conftest import Database

USERS = sa.table("users", sa.column("id"), sa.column("name"))

# What runs: with portable placeholders, with the driver's own, with none; one row, many rows, an error.
CORPUS: list[tuple[str, Any]] = [
    ("INSERT INTO users (name) VALUES (?)", ("Bob",)),
    ("INSERT INTO users (name) VALUES (?)", [("Eve",), ("Ann",)]),
    ("INSERT INTO users (name) VALUES (:name)", {"name": "Max"}),
    ("INSERT INTO users (name) VALUES (:name)", [{"name": "Kim"}, {"name": "Tom"}]),
    ("SELECT name FROM users WHERE id > ? AND name <> '50%'", (0,)),
    ("SELECT '100%'", None),
    ("SELECT name FROM nowhere WHERE id = ?", (1,)),
    ("SELECT count(*) FROM users", None),
]


@contextmanager
def recorded(engine: sa.Engine) -> Iterator[list[Any]]:
    """Record every statement event of an engine."""
    seen: list[Any] = []

    def before(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        seen.append(("before", statement, parameters, executemany))

    def after(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        seen.append(("after", statement, parameters, executemany))

    def failed(context: Any) -> None:
        error = type(context.sqlalchemy_exception).__name__
        seen.append(("error", context.statement, context.parameters, error, context.is_disconnect))

    listeners = {"before_cursor_execute": before, "after_cursor_execute": after, "handle_error": failed}
    for name, listener in listeners.items():
        sa.event.listen(engine, name, listener)
    for name in ("begin", "commit", "rollback", "savepoint", "rollback_savepoint", "release_savepoint"):
        sa.event.listen(engine, name, lambda *arguments, name=name: seen.append((name, *arguments[1:2])))
    try:
        yield seen
    finally:
        for name, listener in listeners.items():
            sa.event.remove(engine, name, listener)


def for_driver(engine: sa.Engine, statement: str, parameters: Any) -> str:
    """Write a statement as somebody would who knows the driver."""
    if engine.dialect.paramstyle == "qmark" or parameters is None:
        return statement
    return statement.replace("%", "%%").replace("?", "%s").replace(":name", "%(name)s")


def ours(spec: SQLSpec) -> None:
    with pytest.raises(RuntimeError), spec.get_session("primary") as session:
        for statement, parameters in CORPUS:
            with session.begin_nested():
                if isinstance(parameters, list):
                    session.execute_many(statement, parameters)
                elif "nowhere" in statement:
                    with pytest.raises(exc.DBAPIError), session.begin_nested():
                        session.execute(statement, parameters)
                else:
                    session.execute(statement, parameters)
        session.execute(sa.select(USERS.c.name).where(USERS.c.id > 1))
        session.commit()
        session.execute("SELECT 1")
        raise RuntimeError


def theirs(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for statement, parameters in CORPUS:
            text = for_driver(engine, statement, parameters)
            with connection.begin_nested():
                if "nowhere" in statement:
                    with pytest.raises(exc.DBAPIError), connection.begin_nested():
                        connection.exec_driver_sql(text, parameters)
                else:
                    options = {"no_parameters": parameters is None}
                    connection.exec_driver_sql(text, parameters, execution_options=options)
        connection.execute(sa.select(USERS.c.name).where(USERS.c.id > 1))
        connection.commit()
        connection.exec_driver_sql("SELECT 1")
        connection.rollback()


def test_listeners_record_equal_lists(spec: SQLSpec) -> None:
    engine = spec.get_engine("primary")
    with recorded(engine) as seen:
        ours(spec)
        by_us = list(seen)
        seen.clear()
        with engine.begin() as connection:
            connection.execute(sa.delete(USERS))
        seen.clear()
        theirs(engine)
    assert by_us == seen
    assert {item[0] for item in by_us} >= {"before", "after", "error", "begin", "commit", "rollback", "savepoint"}


def test_an_error_reaches_handle_error_without_other_listeners(spec: SQLSpec) -> None:
    engine = spec.get_engine("primary")
    seen: list[Any] = []
    sa.event.listen(engine, "handle_error", lambda context: seen.append((context.statement, context.parameters)))
    with pytest.raises(exc.DBAPIError), spec.get_session("primary") as session:
        session.execute("SELECT name FROM nowhere WHERE id = ?", (1,))
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    assert seen == [(f"SELECT name FROM nowhere WHERE id = {mark}", (1,))]


def test_a_listener_may_change_the_statement(spec: SQLSpec) -> None:
    engine = spec.get_engine("primary")

    def comment(*arguments: Any) -> tuple[str, Any]:
        return arguments[2].replace("1", "2"), arguments[3]

    sa.event.listen(engine, "before_cursor_execute", comment, retval=True)
    with spec.get_session("primary") as session:
        assert session.execute("SELECT 1").scalar() == 2


@pytest.fixture
def spans() -> Iterator[Callable[[sa.Engine], InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = SQLAlchemyInstrumentor()

    def instrument(engine: sa.Engine | None = None) -> InMemorySpanExporter:
        # its release of today refuses SQLAlchemy 2.1 by version number, and works with it
        instrumentor.instrument(engine=engine, tracer_provider=provider, skip_dep_check=True)
        return exporter

    yield instrument
    instrumentor.uninstrument()


def test_opentelemetry_has_a_span_for_every_statement(
    spec: SQLSpec, spans: Callable[..., InMemorySpanExporter]
) -> None:
    exporter = spans(spec.get_engine("primary"))
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        session.execute_many("INSERT INTO users (name) VALUES (?)", [("Eve",), ("Ann",)])
        session.execute(sa.select(USERS.c.name)).all()
    names = [span.name.split(" ")[0] for span in exporter.get_finished_spans()]
    assert [name for name in names if name != "connect"] == ["INSERT", "INSERT", "SELECT"]


def test_opentelemetry_has_one_span_for_a_statement_of_engines_that_are_built_later(
    database: Database, spans: Callable[..., InMemorySpanExporter]
) -> None:
    exporter = spans()
    with SQLSpec() as spec:
        spec.register_config(database.config())

        async def in_tasks() -> None:
            async with spec.get_async_session() as session:
                assert await session.execute("SELECT 'task'").scalar() == "task"
            await spec.aclose()

        with spec.get_session() as session:
            assert session.execute("SELECT 'thread'").scalar() == "thread"
        asyncio.run(in_tasks())
    told = [span.attributes.get("db.statement") for span in exporter.get_finished_spans() if span.attributes]
    assert [statement for statement in told if statement] == ["SELECT 'thread'", "SELECT 'task'"]


def test_echo_shows_statements_and_no_values(spec: SQLSpec, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    with caplog.at_level("INFO", logger="sqlalchemy.engine"):
        spec.get_engine("primary")
        with spec.get_session("primary") as session:
            session.execute("INSERT INTO users (name) VALUES (?)", ("hidden value",))
    assert "INSERT INTO users" in caplog.text
    assert "hidden value" not in caplog.text
