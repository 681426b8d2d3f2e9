"""Flask applications: sessions of requests, pages for operators, isolated tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    copy_current_request_context,
    redirect,
    request,
    stream_with_context,
)
from sqlalchemy import exc
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from sqlspec import ConfigError, PoolTimeout, SQLSpec, build_secure_url
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig
from sqlspec.extensions.flask import FlaskSQLSpec
from tests.conftest import Database
from tests.preloaded import PRELOADED, checkouts, served
from tests.servers import free_port, wait_until
from tests.test_config import PASSWORDS

INSERT = "INSERT INTO users (name) VALUES (?)"
WHO = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()", "sqlite": "SELECT 1"}


def names(spec: SQLSpec) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


def new_app(tmp_path: Path, **config: Any) -> Flask:
    app = Flask("shop", root_path=str(tmp_path), instance_path=str(tmp_path / "instance"))
    app.config.update(config)
    return app


@pytest.fixture
def db(spec: SQLSpec, database: Database) -> FlaskSQLSpec:
    """The database of `spec`, which shows what is committed."""
    return FlaskSQLSpec(configs={"primary": database.config(pool_size=2, max_overflow=1)})


@pytest.fixture
def app(db: FlaskSQLSpec, tmp_path: Path) -> Iterator[Flask]:
    """An application, of whose pool nothing may be checked out at the end."""
    app = new_app(tmp_path)
    db.init_app(app)
    yield app
    registry: SQLSpec = app.extensions["sqlspec"]
    assert registry.get_pool_stats("primary").checked_out == 0
    registry.close()


# -- sessions of requests


def test_a_request_has_one_session_which_commits_when_it_succeeds(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    @app.post("/users")
    def create() -> str:
        db.session.execute(INSERT, ("Alice",))
        assert db.session is db.get_session("primary")
        assert names(spec) == []
        return "created"

    assert app.test_client().post("/users").status_code == 200
    assert names(spec) == ["Alice"]


@pytest.mark.parametrize("status", [200, 201, 204, 302, 304, 400, 404, 409, 500, 503])
@pytest.mark.parametrize("how", ["returned", "aborted"])
def test_the_status_of_the_answer_decides_whether_a_request_commits(status: int, how: str, tmp_path: Path) -> None:
    app, db = new_app(tmp_path, SQLSPEC_DATABASES="sqlite:///app.db"), FlaskSQLSpec()
    db.init_app(app)

    @app.post("/")
    def create() -> Response:
        db.session.execute("INSERT INTO users VALUES ('Alice')")
        answer = redirect("/", status) if status == 302 else Response(status=status)
        if how == "aborted":
            abort(answer)
        assert isinstance(answer, Response)
        return answer

    with app.app_context():
        db.session.execute("CREATE TABLE users (name TEXT)")
    assert app.test_client().post("/").status_code == status
    with app.app_context():
        stored = db.session.execute("SELECT name FROM users").scalars().all()
    assert stored == (["Alice"] if status < 400 else [])


def test_an_exception_rolls_back_and_so_does_one_that_an_error_handler_answers(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    @app.post("/users/<error>")
    def create(error: str) -> str:
        db.session.execute(INSERT, ("Alice",))
        raise {"unhandled": ZeroDivisionError, "handled": KeyError}[error]

    @app.errorhandler(KeyError)
    def answer(_: KeyError) -> str:
        # the connection is back, and what fails now has a transaction of its own
        assert db.get_pool_stats("primary").checked_out == 0
        db.session.execute(INSERT, ("a note",))
        return "never mind"

    assert app.test_client().post("/users/unhandled").status_code == 500
    assert names(spec) == []
    assert app.test_client().post("/users/handled").status_code == 200
    assert names(spec) == ["a note"]


def test_what_is_aborted_rolls_back_also_where_an_error_handler_makes_a_good_answer_of_it(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    @app.post("/users")
    def create() -> str:
        db.session.execute(INSERT, ("Alice",))
        abort(401)

    @app.errorhandler(401)
    def log_in(_: HTTPException) -> Any:
        db.session.execute(INSERT, ("a note",))
        return redirect("/login")

    assert app.test_client().post("/users").status_code == 302
    assert names(spec) == ["a note"]


def test_an_exception_in_tests_that_propagates_rolls_back(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    app.testing = True

    @app.post("/users")
    def create() -> str:
        db.session.execute(INSERT, ("Alice",))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.test_client().post("/users")
    assert names(spec) == []


def test_functions_that_run_after_the_request_are_within_its_transaction(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    @app.before_request
    def before() -> None:
        db.session.execute(INSERT, ("before",))

    @app.after_request
    def after(response: Response) -> Response:
        if request.path == "/fails":
            raise ZeroDivisionError
        db.session.execute(INSERT, ("after",))
        return response

    app.add_url_rule("/works", "works", lambda: "")
    app.add_url_rule("/fails", "fails", lambda: "")
    assert app.test_client().get("/fails").status_code == 500
    assert names(spec) == []
    assert app.test_client().get("/works").status_code == 200
    assert names(spec) == ["before", "after"]


def test_a_request_that_needs_no_database_has_no_connection(app: Flask, db: FlaskSQLSpec) -> None:
    app.add_url_rule("/", "index", lambda: f"{db.session!r}")
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        assert db.get_pool_stats("primary").created == 0


@pytest.mark.fault(36)
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "psycopg"], indirect=True)
def test_a_commit_that_fails_is_an_answer_500_and_nothing_is_stored(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec, database: Database
) -> None:
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS children")
        session.execute("CREATE TABLE children (parent INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)")

    @app.post("/")
    def create() -> str:
        if database.name == "sqlite":
            db.session.execute("PRAGMA foreign_keys = ON")
            db.session.commit()
        db.session.execute(INSERT, ("Alice",))
        db.session.execute("INSERT INTO children VALUES (99)")
        return "stored"

    answer = app.test_client().post("/")
    assert (answer.status_code, b"stored" in answer.data) == (500, False)
    assert names(spec) == []
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE children")


@pytest.mark.fault(5)
@pytest.mark.parametrize("database", ["postgresql", "psycopg", "mariadb"], indirect=True)
@pytest.mark.parametrize("status", [200, 404])
def test_a_connection_that_ends_before_the_transaction_fails_a_request_only_if_it_was_to_commit(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec, database: Database, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    @app.post("/")
    def create() -> tuple[str, int]:
        db.session.execute(INSERT, ("Alice",))
        database.server.end_connection(db.session.execute(WHO[database.name]).scalar_one())
        return "", status

    assert app.test_client().post("/").status_code == (500 if status == 200 else 404)
    assert names(spec) == []
    told = [record.getMessage() for record in caplog.records if record.name == "sqlspec.flask"]
    assert len(told) == (status == 404)


def test_where_one_of_two_databases_cannot_commit_the_next_does_not(tmp_path: Path) -> None:
    databases = {"first": "sqlite:///first.db", "second": "sqlite:///second.db"}
    app, db = new_app(tmp_path, SQLSPEC_DATABASES=databases), FlaskSQLSpec()
    db.init_app(app)
    with app.app_context():
        for name in databases:
            db.get_session(name).execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        db.get_session("second").execute(
            "CREATE TABLE children (parent INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)"
        )

    @app.post("/<int:parent>")
    def create(parent: int) -> str:
        second, first = db.get_session("second"), db.get_session("first")
        first.execute("INSERT INTO users (name) VALUES ('Alice')")
        second.execute("PRAGMA foreign_keys = ON")
        second.commit()
        second.execute("INSERT INTO users (id, name) VALUES (1, 'Alice')")
        second.execute("INSERT INTO children VALUES (?)", (parent,))
        return ""

    def stored(name: str) -> Any:
        with app.app_context():
            return db.get_session(name).execute("SELECT count(*) FROM users").scalar_one()

    # they commit in the order in which they were asked for
    assert app.test_client().post("/99").status_code == 500
    assert (stored("first"), stored("second")) == (0, 0)
    assert app.test_client().post("/1").status_code == 200
    assert (stored("first"), stored("second")) == (1, 1)


def test_requests_at_the_same_time_have_sessions_of_their_own(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    @app.post("/<name>")
    def create(name: str) -> tuple[str, int]:
        db.session.execute(INSERT, (name,))
        return name, 200 if name.endswith("kept") else 409

    def many(thread: int) -> list[int]:
        client = app.test_client()
        return [client.post(f"/{thread}-{n}-{'kept' if n % 2 else 'undone'}").status_code for n in range(10)]

    # more than the pool has connections
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(many, range(8))) == [[409, 200] * 5] * 8
    assert sorted(names(spec)) == sorted(f"{thread}-{n}-kept" for thread in range(8) for n in range(1, 10, 2))


@pytest.mark.parametrize(
    ("fails_in", "stored"),
    [
        ("before_request", []),
        ("teardown_request", ["view"]),
        ("teardown_appcontext", ["view"]),
        ("generator", ["view"]),
    ],
)
def test_a_function_of_the_application_that_fails_leaves_no_connection_behind(
    fails_in: str, stored: list[str], app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    def fail(*_: Any) -> None:
        db.session.execute(INSERT, (fails_in,))
        raise ZeroDivisionError

    @app.get("/")
    def view() -> Any:
        db.session.execute(INSERT, ("view",))
        return "" if fails_in != "generator" else stream_with_context(fail() or "" for _ in range(2))

    if fails_in != "generator":
        getattr(app, fails_in)(fail)
    registry: SQLSpec = app.extensions["sqlspec"]
    is_answered = fails_in == "before_request"
    # whose traceback keeps what the functions know, to the end of the test
    with contextlib.nullcontext() if is_answered else pytest.raises(ZeroDivisionError) as _caught:
        assert app.test_client().get("/").status_code == 500
    assert registry.get_pool_stats("primary").checked_out == 0
    assert registry.get_pool_stats("primary").dropped == 0
    assert names(spec) == stored


def test_an_application_answers_for_a_pool_that_has_no_connection(tmp_path: Path) -> None:
    databases = {"url": "sqlite:///app.db", "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    app, db = new_app(tmp_path, SQLSPEC_DATABASES=databases), FlaskSQLSpec()
    db.init_app(app)
    app.add_url_rule("/", "index", lambda: str(db.session.execute("SELECT 1").scalar_one()))
    app.register_error_handler(PoolTimeout, lambda _: ("busy", 503))
    with app.app_context(), db.spec.get_connection():
        assert app.test_client().get("/").status_code == 503
    assert app.test_client().get("/").text == "1"


# -- streams


def test_a_stream_holds_no_connection(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    held = []

    @app.get("/")
    def stream() -> Response:
        session = db.session
        session.execute(INSERT, ("Alice",))

        @stream_with_context
        def lines() -> Iterator[str]:
            held.append(db.get_pool_stats("primary").checked_out)
            yield "one"
            with pytest.raises(exc.ResourceClosedError, match="closed"):
                session.execute("SELECT 1")
            yield "two"

        return Response(lines())

    assert app.test_client().get("/").data == b"onetwo"
    assert held == [0]
    assert names(spec) == ["Alice"]


@pytest.mark.parametrize("end", ["normal", "disconnect", "exception"])
def test_a_session_that_a_stream_asks_for_ends_with_the_stream(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec, end: str
) -> None:
    @app.get("/")
    def stream() -> Response:
        before = db.session

        @stream_with_context
        def lines() -> Iterator[str]:
            assert db.session is not before
            db.session.execute(INSERT, ("Alice",))
            yield "one"
            if end == "exception":
                raise ZeroDivisionError
            yield "two"

        return Response(lines())

    answer = app.test_client().get("/")
    assert next(answer.response) == b"one"
    with app.app_context():
        assert db.get_pool_stats("primary").checked_out == 1
    with pytest.raises(ZeroDivisionError) if end == "exception" else contextlib.nullcontext():
        if end != "disconnect":
            assert list(answer.response) == [b"two"]
    answer.close()
    assert names(spec) == (["Alice"] if end == "normal" else [])


def test_a_stream_without_the_context_is_told_so(app: Flask, db: FlaskSQLSpec) -> None:
    def lines() -> Iterator[str]:
        yield f"{db.session!r}"

    app.add_url_rule("/", "stream", lambda: Response(lines()))
    with pytest.raises(RuntimeError, match="outside of application context"):
        app.test_client().get("/").get_data()


# -- contexts without requests


def test_a_context_without_a_request_commits_at_its_end_unless_there_is_an_exception(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    with app.app_context():
        db.session.execute(INSERT, ("Alice",))
        assert names(spec) == []
    with pytest.raises(ZeroDivisionError), app.app_context():
        db.session.execute(INSERT, ("Bob",))
        raise ZeroDivisionError
    with app.test_request_context():
        db.session.execute(INSERT, ("Carol",))
    assert names(spec) == ["Alice", "Carol"]


def test_a_command_commits_unless_it_fails(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    @app.cli.command()
    def works() -> None:
        db.session.execute(INSERT, ("Alice",))

    @app.cli.command()
    def fails() -> None:
        db.session.execute(INSERT, ("Bob",))
        raise ZeroDivisionError

    @app.cli.command()
    def leaves() -> None:
        # as a handler of signals does in the middle of something
        db.session.execute(INSERT, ("Carol",))
        sys.exit()

    assert app.test_cli_runner().invoke(args=["works"]).exit_code == 0
    assert app.test_cli_runner().invoke(args=["fails"]).exit_code == 1
    assert app.test_cli_runner().invoke(args=["leaves"]).exit_code == 0
    assert names(spec) == ["Alice"]


def test_a_copied_request_has_a_session_of_its_own_and_ends_no_other(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    @app.post("/<end>")
    def create(end: str) -> str:
        db.session.execute("SELECT 1")
        own = db.session

        @copy_current_request_context
        def aside() -> bool:
            db.session.execute(INSERT, (f"aside, {end}",))
            return db.session is own

        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(aside).result() is False
        assert db.session is own
        own.execute(INSERT, (end,))
        if end == "fails":
            raise ZeroDivisionError
        return ""

    client = app.test_client()
    assert [client.post(f"/{end}").status_code for end in ("works", "fails")] == [200, 500]
    assert sorted(names(spec)) == ["aside, fails", "aside, works", "works"]


def test_a_context_of_another_application_within_a_request_commits_at_its_end(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec, database: Database, tmp_path: Path
) -> None:
    other = new_app(tmp_path)
    FlaskSQLSpec(other, {"primary": database.config()})

    @app.post("/")
    def create() -> list[str]:
        with other.app_context():
            db.session.execute(INSERT, ("Alice",))
        return names(spec)

    assert app.test_client().post("/").json == ["Alice"]
    registry: SQLSpec = other.extensions["sqlspec"]
    assert (registry.get_pool_stats("primary").checked_out, registry.get_pool_stats("primary").dropped) == (0, 0)
    registry.close()


def test_a_request_within_a_context_has_a_session_of_its_own(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    @app.post("/")
    def create() -> str:
        with app.app_context():
            assert db.session.execute("SELECT count(*) FROM users").scalar_one() == 0
        return f"{id(db.session)}"

    with app.app_context():
        outer = db.session
        outer.execute("SELECT 1")
        assert app.test_client().post("/").text != f"{id(outer)}"
        outer.execute(INSERT, ("Alice",))
        assert names(spec) == []
    assert names(spec) == ["Alice"]


# -- several applications


def test_one_object_serves_several_applications_with_a_pool_for_each(tmp_path: Path) -> None:
    db = FlaskSQLSpec()
    one = new_app(tmp_path, SQLSPEC_DATABASES="sqlite:///one.db")
    two = new_app(tmp_path, SQLSPEC_DATABASES="sqlite:///two.db")
    db.init_app(one)
    db.init_app(two)

    @two.get("/")
    def inner() -> str:
        return str(db.session.execute("SELECT file FROM pragma_database_list").scalar_one())

    @one.get("/")
    def outer() -> dict[str, str]:
        own = db.session
        # as a middleware does that sends some paths to another application
        answer: Any = two.wsgi_app(request.environ, lambda *_: None)
        assert db.session is own
        own_file = own.execute("SELECT file FROM pragma_database_list").scalar_one()
        return {"one": own_file, "two": b"".join(answer).decode()}

    files = one.test_client().get("/").json
    assert {name: Path(file).name for name, file in files.items()} == {"one": "one.db", "two": "two.db"}
    assert one.extensions["sqlspec"] is not two.extensions["sqlspec"]


def test_an_application_is_initialised_once(tmp_path: Path) -> None:
    app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
    db = FlaskSQLSpec(app)
    for again in (db, FlaskSQLSpec()):
        with pytest.raises(RuntimeError, match=r"call init_app\(\) once"):
            again.init_app(app)


def test_an_application_that_is_not_initialised_is_told_so(tmp_path: Path) -> None:
    db = FlaskSQLSpec()
    with new_app(tmp_path).app_context(), pytest.raises(RuntimeError, match=r"'shop' .* call init_app\(app\) first"):
        db.get_pool_stats("primary")
    with pytest.raises(RuntimeError, match="outside of application context"):
        FlaskSQLSpec().session.execute("SELECT 1")


# -- configuration


def places(tmp_path: Path, **config: Any) -> dict[str, str]:
    app = new_app(tmp_path, **config)
    FlaskSQLSpec(app)
    spec: SQLSpec = app.extensions["sqlspec"]
    # SQLAlchemy 2.1 escapes the colon
    return {name: str(spec.get_config(name).parsed_url).replace("%3A", ":") for name in spec.list_configs()}


def test_databases_are_urls_or_options_or_configs(tmp_path: Path) -> None:
    instance = f"sqlite:///{tmp_path}/instance"
    assert places(tmp_path, SQLSPEC_DATABASES="sqlite:///app.db") == {"default": f"{instance}/app.db"}
    assert places(tmp_path, SQLSPEC_DATABASES={"url": "sqlite:///app.db", "pool_size": 3}).keys() == {"default"}
    parts = {"scheme": "sqlite", "database": "app.db"}
    assert places(tmp_path, SQLSPEC_DATABASES=parts) == {"default": f"{instance}/app.db"}
    databases = {
        "options": {"scheme": "sqlite", "database": "two.db", "pool_size": 3},
        "object": sa.make_url("postgresql://u:secret@localhost/d"),
        "config": SQLiteConfig(database="as it is.db"),
        "memory": "sqlite://",
        "uri": "sqlite:///file:app.db?mode=ro&uri=true",
    }
    assert places(tmp_path, SQLSPEC_DATABASES=databases) == {
        "options": f"{instance}/two.db",
        "object": "postgresql://u@localhost/d",
        "config": "sqlite:///as it is.db",
        "memory": "sqlite://",
        "uri": "sqlite:///file:app.db?mode=ro&uri=true",
    }
    assert (tmp_path / "instance").is_dir()


def test_variables_of_the_environment_name_databases_and_their_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_SQLSPEC_DATABASES__primary__pool_size", "3")
    monkeypatch.setenv("FLASK_SQLSPEC_DATABASES__reports", "sqlite://")
    app = new_app(tmp_path, SQLSPEC_DATABASES={"primary": {"url": "sqlite:///app.db"}})
    app.config.from_prefixed_env()
    FlaskSQLSpec(app)
    spec: SQLSpec = app.extensions["sqlspec"]
    assert (spec.list_configs(), spec.get_pool_stats("primary").size) == (["primary", "reports"], 3)


def test_the_keys_of_flask_sqlalchemy_are_understood(tmp_path: Path) -> None:
    instance = f"sqlite:///{tmp_path}/instance"
    options = {"pool_size": 3, "pool_pre_ping": True, "pool_reset_on_return": None}
    app = new_app(
        tmp_path,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SQLALCHEMY_BINDS={"reports": "sqlite:///reports.db", "big": {"url": "sqlite:///big.db", "pool_size": 7}},
    )
    FlaskSQLSpec(app)
    spec: SQLSpec = app.extensions["sqlspec"]
    assert {name: spec.get_pool_stats(name).size for name in spec.list_configs()} == {
        "default": 3,
        "reports": SQLiteConfig(database=":memory:").pool_size,
        "big": 7,
    }
    engines = {"default": "sqlite:///app.db", "reports": {"url": "sqlite:////reports.db"}}
    assert places(tmp_path, SQLALCHEMY_ENGINES=engines) == {
        "default": f"{instance}/app.db",
        "reports": "sqlite:////reports.db",
    }
    # they are another extension's where there are our own
    assert places(tmp_path, SQLALCHEMY_DATABASE_URI="oracle://", SQLSPEC_DATABASES="sqlite://") == {
        "default": "sqlite://"
    }
    app = new_app(tmp_path, SQLALCHEMY_DATABASE_URI="oracle://")
    FlaskSQLSpec(app, SQLiteConfig(database=":memory:"))
    assert app.extensions["sqlspec"].list_configs() == ["default"]


def test_configs_are_registered_in_code_and_by_key_together(tmp_path: Path) -> None:
    app, db = new_app(tmp_path, SQLSPEC_DATABASES={"reports": "sqlite://"}), FlaskSQLSpec()
    assert db.register_config(SQLiteConfig(database=":memory:"), "primary") == "primary"
    with pytest.raises(ConfigError, match="'primary' is registered already"):
        db.register_config(SQLiteConfig(database=":memory:"), "primary")
    db.init_app(app)
    assert app.extensions["sqlspec"].list_configs() == ["primary", "reports"]


@pytest.mark.parametrize("given", ["sqlite://", {"default": "sqlite://"}, SQLiteConfig])
def test_what_is_no_config_in_code_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes a config such as PostgreSQLConfig\(…\), not (str|the class)"):
        FlaskSQLSpec(new_app(tmp_path), given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"names no database: set SQLSPEC_DATABASES = "),
        ({"SQLSPEC_DATABASE": "sqlite://"}, "SQLSPEC_DATABASE is no key .* did you mean SQLSPEC_DATABASES\\?"),
        ({"SQLSPEC_POOL_SIZE": 3}, "SQLSPEC_POOL_SIZE is no key of sqlspec"),
        ({"SQLSPEC_DATABASES": 3}, "SQLSPEC_DATABASES must map names to databases"),
        ({"SQLSPEC_DATABASES": ["sqlite://"]}, "SQLSPEC_DATABASES must map names to databases"),
        ({"SQLSPEC_DATABASES": {}}, "names no database"),
        ({"SQLSPEC_DATABASES": {"a": 3}}, r"SQLSPEC_DATABASES\['a'\]: url must be a string"),
        ({"SQLSPEC_DATABASES": {"a": None}}, r"SQLSPEC_DATABASES\['a'\]: url must be a string"),
        ({"SQLSPEC_DATABASES": {"a": "oracle://x:secret@y"}}, r"SQLSPEC_DATABASES\['a'\]: there is no adapter"),
        (
            {"SQLSPEC_DATABASES": {"a": {"url": "postgresql://x:secret@y/d", "pool_sise": 3}}},
            r"SQLSPEC_DATABASES\['a'\]: .*pool_sise.*pool_size",
        ),
        ({"SQLSPEC_DATABASES": {"a": {"url": "postgresql://x:secret@y/d", "pool_size": -1}}}, r"\['a'\]: .*pool_size"),
        ({"SQLSPEC_DATABASES": {3: "sqlite://"}}, "name must be a string"),
        ({"SQLALCHEMY_DATABASE_URI": "postgresql+pg8000://x:secret@y/d"}, "SQLALCHEMY_DATABASE_URI: .*pg8000"),
        (
            {"SQLALCHEMY_DATABASE_URI": "sqlite://", "SQLALCHEMY_ENGINE_OPTIONS": {"poolclass": "x"}},
            "SQLALCHEMY_DATABASE_URI: .*poolclass",
        ),
        (
            {"SQLALCHEMY_DATABASE_URI": "sqlite://", "SQLALCHEMY_ENGINES": {"default": "sqlite://"}},
            r"SQLALCHEMY_ENGINES\['default'\]: the database 'default' is there already: keep one",
        ),
    ],
)
def test_a_wrong_key_is_named_with_the_fix_and_without_secrets(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    app = new_app(tmp_path, **config)
    with pytest.raises(ConfigError, match=message) as caught:
        FlaskSQLSpec(app)
    assert "secret" not in str(caught.value)
    assert "sqlspec" not in app.extensions


# -- pages


def get(app: Flask, page: str, **headers: str) -> Any:
    return app.test_client().get(f"/db/{page}", headers=headers)


PAGES = ["health", "ready", "metrics", "holders"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_not_there_unless_somebody_wants_them(page: str, app: Flask) -> None:
    assert (get(app, page).status_code, app.test_client().get(f"/{page}").status_code) == (404, 404)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_shown_to_whom_the_application_admits(page: str, tmp_path: Path) -> None:
    def admits() -> bool:
        if "Authorization" not in request.headers:
            abort(401)
        return request.headers["Authorization"] == "Bearer operator"

    app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
    db = FlaskSQLSpec(app)
    app.register_blueprint(db.blueprint(auth=admits), url_prefix="/db")
    assert get(app, page).status_code == 401
    refused = get(app, page, Authorization="Bearer visitor")
    assert (refused.status_code, b"default" in refused.data) == (403, False)
    admitted = get(app, page, Authorization="Bearer operator")
    assert (admitted.status_code, admitted.headers["Cache-Control"]) == (200, "no-store")


@pytest.mark.parametrize("answer", [False, None, 0, "", "yes", 1, ("no", 401), Response("no", 401)])
def test_whoever_is_not_admitted_by_true_is_refused(answer: Any, tmp_path: Path) -> None:
    app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
    app.register_blueprint(FlaskSQLSpec(app).blueprint(auth=lambda: answer), url_prefix="/db")
    assert {get(app, page).status_code for page in PAGES} == {403}


def test_a_function_that_fails_or_cannot_be_waited_for_admits_nobody(tmp_path: Path) -> None:
    async def in_a_task() -> bool:
        return False

    def fails() -> bool:
        raise ZeroDivisionError

    for auth in (in_a_task, fails):
        app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
        app.register_blueprint(FlaskSQLSpec(app).blueprint(auth=auth), url_prefix="/db")  # type: ignore[arg-type]  # on purpose
        assert {get(app, page).status_code for page in PAGES} <= {403, 500}


def test_no_way_to_a_page_goes_around_the_function(tmp_path: Path) -> None:
    app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
    app.url_map.strict_slashes = False
    db = FlaskSQLSpec(app)
    closed, outer = db.blueprint(auth=lambda: False), Blueprint("outer", __name__)
    outer.register_blueprint(db.blueprint(auth=lambda: False, name="inner"), url_prefix="/inner")
    app.register_blueprint(closed, url_prefix="/db")
    app.register_blueprint(closed, url_prefix="/again", name="again")
    app.register_blueprint(outer, url_prefix="/outer")
    app.register_blueprint(db.blueprint(auth=lambda: True, name="open"), url_prefix="/open")
    client = Client(DispatcherMiddleware(new_app(tmp_path), {"/sub": app}))
    for prefix in ("/sub/db", "/sub/again", "/sub/outer/inner"):
        for path in (f"{prefix}/{page}{end}" for page in PAGES for end in ("", "/", "?allowed=True")):
            assert {client.open(path, method=method).status_code for method in ("GET", "HEAD", "OPTIONS")} == {403}, (
                path
            )
    assert {client.get(f"/sub/open/{page}").status_code for page in PAGES} == {200}


def test_an_application_chooses_its_pages_and_may_open_some_to_everybody(tmp_path: Path) -> None:
    app = new_app(tmp_path, SQLSPEC_DATABASES="sqlite://")
    db = FlaskSQLSpec(app)
    app.register_blueprint(db.blueprint("ready", auth=None, name="probe"), url_prefix="/db")
    app.register_blueprint(db.blueprint(auth=lambda: True), url_prefix="/operators")
    assert {page: get(app, page).status_code for page in PAGES} == {
        "ready": 200,
        "health": 404,
        "metrics": 404,
        "holders": 404,
    }
    assert app.test_client().get("/operators/holders").status_code == 200


def test_pages_that_cannot_be_are_refused(tmp_path: Path) -> None:
    db: Any = FlaskSQLSpec()
    with pytest.raises(ConfigError, match="no page 'healthz': there are health, ready, metrics, holders"):
        db.blueprint("healthz", auth=None)
    with pytest.raises(ConfigError, match="auth must be a function"):
        db.blueprint(auth=True)
    with pytest.raises(TypeError, match="auth"):
        db.blueprint()
    with pytest.raises(RuntimeError, match=r"call init_app\(app\) first"):
        new_app(tmp_path).register_blueprint(db.blueprint(auth=None))


def test_the_pages_tell_of_databases_pools_and_holders(app: Flask, db: FlaskSQLSpec, database: Database) -> None:
    app.register_blueprint(db.blueprint(auth=lambda: True), url_prefix="/db")

    @app.get("/")
    def index() -> dict[str, Any]:
        db.session.execute("SELECT name FROM users WHERE name = 'hush'")
        return {page: get(app, page).text for page in PAGES}

    told = app.test_client().get("/").json
    health = json.loads(told["health"])
    assert health["status"] == health["databases"]["primary"]["state"] == "up"
    assert health["databases"]["primary"]["pool"]["checked_out"] == 1
    assert json.loads(told["ready"]) == {"ready": True}
    (holder,) = json.loads(told["holders"])["primary"]
    assert holder["place"].startswith(("tests/test_flask.py:", "test_flask.py:"))
    assert holder["place"].endswith(" in index")
    count = 'db_client_connection_count{db_client_connection_pool_name="primary",db_client_connection_state="used"} 1.0'
    assert count in told["metrics"]
    everything = "".join(told.values())
    hidden = ["SELECT", "users", "hush", "127.0.0.1", "app.db", "password", str(Path(__file__).parent.parent)]
    assert [text for text in hidden if text in everything] == []


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_pages_answer_503_while_a_database_is_down(app: Flask, db: FlaskSQLSpec, tmp_path: Path, spec: SQLSpec) -> None:
    other = new_app(tmp_path)
    down = FlaskSQLSpec(
        other, {"primary": spec.get_config("primary"), "gone": PostgreSQLConfig(host="127.0.0.1", port=free_port())}
    )
    other.register_blueprint(down.blueprint(auth=None), url_prefix="/db")
    health = get(other, "health")
    states = {name: told["state"] for name, told in health.json["databases"].items()}
    assert (health.status_code, health.json["status"], states) == (503, "down", {"primary": "up", "gone": "down"})
    assert (get(other, "ready").status_code, get(other, "ready").json) == (503, {"ready": False})
    assert {get(other, page).status_code for page in ("metrics", "holders")} == {200}
    other.extensions["sqlspec"].close()


def test_what_is_not_needed_may_be_down_in_an_application_that_is_ready(tmp_path: Path) -> None:
    gone = PostgreSQLConfig(host="127.0.0.1", port=free_port(), database="d")
    app = new_app(tmp_path, SQLSPEC_DATABASES={"primary": "sqlite://", "reports": gone})
    db = FlaskSQLSpec(app)
    app.register_blueprint(db.blueprint("ready", "health", auth=None, needed=["primary"]), url_prefix="/db")
    app.register_blueprint(db.blueprint("ready", auth=None, name="all"), url_prefix="/all")
    with pytest.raises(ConfigError, match="did you mean 'primary'"):
        app.register_blueprint(db.blueprint("ready", auth=None, needed=["primery"], name="wrong"), url_prefix="/wrong")
    with pytest.raises(ConfigError, match="needed='primary': give a list of names"):
        db.blueprint("ready", auth=None, needed="primary")
    assert (get(app, "ready").status_code, get(app, "ready").json) == (200, {"ready": True})
    assert (app.test_client().get("/all/ready").status_code, get(app, "health").status_code) == (503, 503)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_no_password_appears_in_the_message_of_a_wrong_key(scheme: str, tmp_path: Path) -> None:
    for password in PASSWORDS:
        url = build_secure_url(scheme, "127.0.0.1", 1, "d", "u", password)
        forms = {password, url, repr(password)[1:-1]}
        for wrong in ({"url": url, "pool_sise": 1}, {"url": url, "password": password}):
            with pytest.raises(ConfigError) as caught:
                FlaskSQLSpec(new_app(tmp_path, SQLSPEC_DATABASES={"primary": wrong}))
            assert [form for form in forms if form in str(caught.value)] == []


# -- the command and the shell


def test_the_command_asks_every_database(app: Flask, tmp_path: Path) -> None:
    done = app.test_cli_runner().invoke(args=["sqlspec", "check", "--timeout", "20"])
    assert (done.exit_code, done.output.startswith("primary: up, ")) == (0, True)
    gone = new_app(tmp_path)
    FlaskSQLSpec(gone, MySQLConfig(host="127.0.0.1", port=free_port(), username="u", database="d"))
    done = gone.test_cli_runner().invoke(args=["sqlspec", "check"])
    assert (done.exit_code, done.output) == (1, "default: down, the server cannot be reached\n")


def test_the_shell_has_the_object(app: Flask, db: FlaskSQLSpec) -> None:
    with app.app_context():
        assert app.make_shell_context()["db"] is db


# -- isolated tests


def test_what_a_test_does_is_undone_with_the_commits_of_the_application(
    app: Flask, db: FlaskSQLSpec, spec: SQLSpec
) -> None:
    @app.post("/<name>")
    def create(name: str) -> tuple[str, int]:
        db.session.execute(INSERT, (name,))
        db.session.commit()
        db.session.execute(INSERT, (f"{name} again",))
        return "", 404 if name == "Bob" else 200

    @app.get("/")
    def index() -> list[str]:
        return list(db.session.execute("SELECT name FROM users ORDER BY id").scalars())

    client = app.test_client()
    client.post("/Zoe")
    with app.app_context(), db.test_isolation():
        db.session.execute("SELECT count(*) FROM users")
        client.post("/Alice")
        client.post("/Bob")
        assert client.get("/").json == ["Zoe", "Zoe again", "Alice", "Alice again", "Bob"]
    assert client.get("/").json == names(spec) == ["Zoe", "Zoe again"]
    client.post("/Carol")
    assert names(spec) == ["Zoe", "Zoe again", "Carol", "Carol again"]


def test_isolation_within_a_request_undoes_what_its_session_does(app: Flask, db: FlaskSQLSpec, spec: SQLSpec) -> None:
    with app.test_request_context():
        db.session.execute(INSERT, ("before",))
        with db.test_isolation():
            db.session.execute(INSERT, ("within",))
            db.session.commit()
            db.session.execute(INSERT, ("within as well",))
        db.session.execute(INSERT, ("after",))
    assert names(spec) == ["before", "after"]


# -- under gunicorn


def test_preloaded_workers_share_no_connection_and_their_metrics_add_up(
    spec: SQLSpec, database: Database, tmp_path: Path
) -> None:
    with served(tmp_path, PRELOADED.format(config=database.as_code(), who=WHO[database.name])) as ask:
        answers = []

        def workers() -> set[int]:
            answers.append(json.loads(ask("")))
            return {answer["worker"] for answer in answers}

        wait_until(lambda: len(workers()) == 4, seconds=30)
        for _ in range(50):
            workers()
        # the checkout of the process that was forked counts as well
        wait_until(lambda: checkouts(ask("db/metrics")) == len(answers) + 1, seconds=20)
    if database.name != "sqlite":
        owners = {(answer["backend"], answer["worker"]) for answer in answers}
        assert len({backend for backend, _ in owners}) == len(owners)


# -- the example


def test_the_example_starts_with_one_command(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    folder = tmp_path / "example"
    shutil.copytree(root / "docs" / "examples" / "flask", folder, ignore=shutil.ignore_patterns("instance"))
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "flask", "--app", str(folder / "app.py"), "run", "--port", place.split(":")[1]]
    environment = {**os.environ, "PYTHONPATH": str(root), "OPERATOR_TOKEN": "of a test"}

    def ask(page: str, method: str = "GET", token: str = "") -> tuple[int, str]:
        asked = urllib.request.Request(f"http://{place}{page}", method=method, headers={"Authorization": token})
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310  # of our own server
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return ask("/")[0] == 200
        return False

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(answers, seconds=30)
            assert ask("/Alice", "POST") == (201, "welcome, Alice\n")
            assert ask("/Alice", "POST") == (200, "welcome back, Alice\n")
            assert ask(f"/{'A' * 51}", "POST")[0] == 400
            assert json.loads(ask("/")[1]) == ["Alice"]
            assert (ask("/ready")[0], ask("/db/health")[0], ask("/db/holders", token="Bearer x")[0]) == (200, 403, 403)
            assert {ask(f"/db/{page}", token="Bearer of a test")[0] for page in PAGES} == {200}
        finally:
            server.terminate()
    assert (folder / "instance" / "guests.db").exists()
