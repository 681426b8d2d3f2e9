"""Passwords appear nowhere: on no page, in no log, figure, span or traceback, whatever becomes of connecting."""

# no `from __future__ import annotations`: FastAPI reads those of the endpoints, which name what is local to a test

import html
import json
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from flask import Flask, got_request_exception
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from werkzeug.debug import DebuggedApplication
from werkzeug.test import Client

from sqlspec import AsyncSession, Session, SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.extensions.fastapi import FastAPISQLSpec
from sqlspec.extensions.flask import FlaskSQLSpec
from sqlspec.telemetry import OpenTelemetryMetrics
from sqlspec.testing import FaultProxy
from tests.servers import PASSWORD, free_port
from tests.spans import recorded_spans
from tests.test_config import PASSWORDS

WATCHED = ("sqlspec", "sqlalchemy", "psycopg2", "MySQLdb", "asyncpg", "asyncmy")
PAGES = ("health", "ready", "metrics", "holders")
Databases = dict[str, SyncDatabaseConfig]


def shown(sinks: dict[str, str]) -> list[tuple[str, str]]:
    """Return where a password is, in any of the ways in which it may be written."""
    ways: list[Callable[[str], str]] = [
        str,
        lambda text: repr(text)[1:-1],
        lambda text: ascii(text)[1:-1],
        lambda text: json.dumps(text)[1:-1],
        lambda text: repr(text.encode())[2:-1],
        html.escape,
        lambda text: quote(text, safe=""),
    ]
    forms = {(form, password) for password in PASSWORDS for form in {way(password) for way in ways}}
    return sorted({(where, password) for where, text in sinks.items() for form, password in forms if form in text})


def with_locals(error: BaseException | None) -> str:
    """Return what the frames know that an error has come through, but for those of frameworks and tests."""
    told: list[str] = []
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        told += [repr(frame.f_locals) for frame in frames if frame.f_globals["__name__"].startswith(WATCHED)]
        told.append(f"{error!r} {vars(error)}")
        error = error.__cause__ or error.__context__
    return "".join(told)


def all_at_once(ask: Callable[[str], tuple[int, str]], databases: Databases) -> tuple[set[int], str]:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, databases))
    return {status for status, _ in answers}, "".join(text for _, text in answers)


def in_flask(databases: Databases, folder: Path, sinks: dict[str, str]) -> set[int]:
    app = Flask("shop", root_path=str(folder))
    db = FlaskSQLSpec(app, databases)
    app.register_blueprint(db.blueprint(auth=None), url_prefix="/db")
    app.add_url_rule("/<name>", "index", lambda name: str(db.get_session(name).execute("SELECT 1").scalar_one()))
    errors: list[str] = []

    def keep(_app: Flask, exception: BaseException) -> None:
        errors.append(with_locals(exception))

    with got_request_exception.connected_to(keep, app):
        statuses, sinks["answers"] = all_at_once(lambda name: told(app.test_client().get(f"/{name}")), databases)
    sinks["tracebacks"] = "".join(errors)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    debugger = Client(DebuggedApplication(app, evalex=True))
    sinks["debugger"] = all_at_once(lambda name: told(debugger.get(f"/{name}")), databases)[1]
    for page in PAGES:
        sinks[page] = told(app.test_client().get(f"/db/{page}"))[1]
    sinks["command"] = app.test_cli_runner().invoke(args=["sqlspec", "check", "--timeout", "0.5"]).output
    with app.app_context():
        engines = [db.spec.get_engine(name) for name in databases]
        sessions = [db.get_session(name) for name in databases]
        shell = {**app.make_shell_context(), "spec": db.spec, "sessions": sessions, "engines": engines}
        sinks["shell"] = repr([shell, *map(vars, (db, app)), *((engine.pool, engine.url) for engine in engines)])
    app.extensions["sqlspec"].close()
    return statuses


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.text + str(answer.headers)


def in_fastapi(databases: Databases, sinks: dict[str, str]) -> set[int]:
    spec = SQLSpec()
    for name, config in databases.items():
        spec.register_config(config, name)
    db = FastAPISQLSpec(spec, warm=dict.fromkeys(list(databases)[:3], 1))
    # its pages of errors show tracebacks
    app = FastAPI(lifespan=db.lifespan, debug=True)
    app.include_router(db.router(auth=None, timeout=0.5))
    errors: list[str] = []

    @app.middleware("http")
    async def keep(request: Request, call: Any) -> Any:
        try:
            return await call(request)
        except Exception as error:
            errors.append(with_locals(error))
            raise

    for name in databases:

        @app.get(f"/threads/{name}")
        def in_a_thread(session: Annotated[Session, db.session(name)]) -> None:
            session.execute("SELECT 1")

        @app.get(f"/tasks/{name}")
        async def in_a_task(session: Annotated[AsyncSession, db.async_session(name)]) -> None:
            await session.execute("SELECT 1")

    reader = InMemoryMetricReader()
    OpenTelemetryMetrics(spec, provider := MeterProvider([reader]))
    statuses: set[int] = set()
    with TestClient(app, raise_server_exceptions=False, headers={"accept": "text/html"}) as client:
        for where in ("threads", "tasks"):

            def ask(name: str, where: str = where) -> tuple[int, str]:
                return told(client.get(f"/{where}/{name}"))

            seen, sinks[where] = all_at_once(ask, databases)
            statuses |= seen
        sinks |= {f"{page} of the router": told(client.get(f"/{page}"))[1] for page in PAGES}
        figures: Any = reader.get_metrics_data()
        sinks["figures"] = figures.to_json()
        sinks["tracebacks of FastAPI"] = "".join(errors)
        sinks["reprs"] = repr([spec, db, vars(db), db.session("db0")])
    provider.shutdown()
    return statuses


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> tuple[Any, type[SyncDatabaseConfig], str]:
    kind, database = (PostgreSQLConfig, "postgres") if request.param == "postgresql" else (MySQLConfig, "app")
    return request.getfixturevalue(f"{request.param}_server"), kind, database


def know(kind: Any, place: dict[str, Any]) -> None:
    """Create users with the passwords."""
    with SQLSpec() as spec:
        spec.register_config(kind(**place, username="app", password=PASSWORD))
        with spec.get_session(autocommit=True) as session:
            for number, password in enumerate(PASSWORDS):
                text = password.replace("'", "''")
                if kind is MySQLConfig:
                    text = text.replace("\\", "\\\\")
                    session.execute(f"CREATE OR REPLACE USER hush{number}@'127.0.0.1' IDENTIFIED BY '{text}'")
                    session.execute(f"GRANT SELECT ON app.* TO hush{number}@'127.0.0.1'")
                else:
                    session.execute(f"DROP ROLE IF EXISTS hush{number}")
                    session.execute(f"CREATE ROLE hush{number} LOGIN PASSWORD '{text}'")


@pytest.mark.parametrize("connecting", ["works", "is refused by nobody there", "is refused by the server", "hangs"])
def test_no_password_appears_whatever_becomes_of_connecting(
    connecting: str,
    server: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    running, kind, database = server
    place = {"host": "127.0.0.1", "port": running.port, "database": database}
    with ExitStack() as stack:
        spans = stack.enter_context(recorded_spans())
        if connecting == "works":
            know(kind, place)
        elif connecting == "hangs":
            proxy = stack.enter_context(FaultProxy(running.port))
            proxy.swallow(later_ones=True)
            place["port"] = proxy.port
        elif connecting == "is refused by nobody there":
            place["port"] = free_port()
        user = "hush{}" if connecting == "works" else "nobody{}"
        options = {"echo": True, "pool_size": 1, "connect_timeout": 0.2 if connecting == "hangs" else 20}
        databases = {
            f"db{number}": kind(**place, **options, username=user.format(number), password=password)
            for number, password in enumerate(PASSWORDS)
        }
        caplog.set_level(logging.DEBUG)
        caplog.clear()
        spans.clear()
        sinks: dict[str, str] = {}
        statuses = in_flask(databases, tmp_path, sinks) | in_fastapi(databases, sinks)
    sinks["log"] = caplog.text + repr([vars(record) for record in caplog.records])
    sinks["output"] = "".join(capfd.readouterr())
    sinks["spans"] = "".join(span.to_json() for span in spans.get_finished_spans())
    assert statuses == {200 if connecting == "works" else 500}
    empty = {"works": {"tracebacks", "tracebacks of FastAPI"}}.get(connecting, {"spans"})
    assert {where for where, text in sinks.items() if not text} <= empty | {"output"}
    assert shown(sinks) == []
    pages = "".join(sinks[page] + sinks[f"{page} of the router"] for page in PAGES)
    assert [word for word in ("127.0.0.1", user.format(""), "postgres", "MySQL") if word in pages] == []
