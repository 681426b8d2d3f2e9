"""What ``import sqlspec`` brings in, and what it says where a driver is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("psycopg2", "psycopg", "MySQLdb", "asyncpg", "aiosqlite", "flask", "fastapi", "typer", "rich")

# An interpreter in which a package is not installed, as far as imports can tell.
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from sqlspec import ConfigError, SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig
spec = SQLSpec()
spec.register_config(eval(sys.argv[2]))
for get in (spec.get_engine, spec.get_session, spec.get_connection, spec.get_pool_stats):
    try:
        get()
    except ConfigError as error:
        print(error)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_sqlspec_imports_no_driver_and_no_framework() -> None:
    code = "import sys, sqlspec; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    assert run(code, *HEAVY, "sqlalchemy.ext.asyncio").strip() == ""


@pytest.mark.parametrize(
    ("driver", "config", "extra"),
    [
        ("psycopg2", "PostgreSQLConfig(host='h')", "postgresql"),
        ("psycopg", "PostgreSQLConfig(url='postgresql+psycopg://h/d')", "psycopg"),
        ("MySQLdb", "MySQLConfig(host='h')", "mysql"),
    ],
)
def test_a_missing_driver_is_named_with_the_command_that_installs_it(driver: str, config: str, extra: str) -> None:
    told = f"the driver {driver} is not installed: pip install 'sqlspec-pool[{extra}]'"
    assert run(WITHOUT, driver, config).splitlines() == [told] * 4


def test_the_command_line_without_its_extra_names_the_command_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['typer'] = None\ntry:\n    import sqlspec.cli\nexcept SystemExit as e:\n    print(e)"
    )
    assert "pip install 'sqlspec-pool[cli]'" in run(code)


@pytest.mark.parametrize(("extension", "missing"), [("flask", "flask"), ("fastapi", "fastapi"), ("fastapi", "anyio")])
def test_an_extension_without_its_framework_names_the_command_that_installs_it(extension: str, missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None\ntry:\n    import sqlspec.extensions.{extension}\n"
    told = run(f"{code}except ModuleNotFoundError as error:\n    print(error)")
    assert told.strip() == f"{extension} is not installed: pip install 'sqlspec-pool[{extension}]'"


def test_the_lifespan_for_starlette_without_it_names_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['anyio'] = None\ntry:\n    import sqlspec.extensions.starlette\n"
    told = run(f"{code}except ModuleNotFoundError as error:\n    print(error)")
    assert told.strip() == "anyio is not installed, as it is with Starlette: pip install starlette"


WITHOUT_GREENLET = """
import asyncio, sys
sys.modules["greenlet"] = None
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlspec import ConfigError, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.extensions.fastapi import FastAPISQLSpec
spec = SQLSpec()
spec.register_config(SQLiteConfig(database=":memory:", pool_size=40), name="primary")
db, app = FastAPISQLSpec(spec), FastAPI()
app.include_router(db.router("ready", auth=None))
with TestClient(app) as client:
    print(client.get("/ready").text)
spec.register_config(SQLiteConfig(database="app.db"), name="file")

async def main():
    try:
        spec.get_async_session("file")
    except ConfigError as error:
        print(error)

asyncio.run(main())
"""


def test_without_greenlet_an_application_of_threads_is_ready_and_one_of_tasks_is_told() -> None:
    assert run(WITHOUT_GREENLET).splitlines() == [
        '{"ready": true}',
        "greenlet is not installed, which tasks need: pip install 'sqlspec-pool[aiosqlite]' 'sqlalchemy[asyncio]'",
    ]
