"""The sqlspec command."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sqlspec import SQLSpec
from sqlspec.cli import app
from tests.conftest import Database
from tests.servers import PASSWORD


def test_the_demo_runs_to_its_end_and_loses_no_money() -> None:
    result = CliRunner().invoke(app, ["demo", "--seconds", "0.5", "--threads", "8"])
    assert result.exit_code == 0, result.output
    assert "10000 (it was 10000), threads that failed: 0" in result.output
    for row in ("sessions", "commits", "rollbacks", "wait"):
        assert row in result.output


def test_a_wrong_option_of_the_demo_is_explained() -> None:
    result = CliRunner().invoke(app, ["demo", "--threads", "0"])
    assert result.exit_code == 2
    assert "threads" in result.output


def table_of(database: Database) -> str:
    """Return the table of the database in a TOML file, as "primary"."""
    config = database.config()
    lines = ["[primary]", f'scheme = "{config.adapter}"', f'database = "{config.database}"']
    if database.server is not None:
        lines += [
            'host = "127.0.0.1"',
            f"port = {database.server.port}",
            'username = "app"',
            f'password = "{PASSWORD}"',
        ]
    return "\n".join(lines)


def test_check_reports_every_configured_database(database: Database, tmp_path: Path) -> None:
    if database.server is None:
        Path(str(database.config().database)).touch()
    path = tmp_path / "sqlspec.toml"
    path.write_text(table_of(database))
    result = CliRunner().invoke(app, ["check", "--config", str(path), "--json"])
    (report,) = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert report["ok"] is True
    assert {"sqlite": "SQLite 3", "postgresql": "PostgreSQL 1", "mariadb": "MariaDB"}[database.name] in report[
        "version"
    ]
    assert report["tls"] is (None if database.server is None else False)
    assert report["pool"]["pool_size"] == 10
    table = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert "up" in table.stdout
    assert PASSWORD not in table.output + result.output


def write_config(database: Database, folder: Path) -> Path:
    path = folder / "sqlspec.toml"
    path.write_text(f'{table_of(database)}\n[other]\nurl = "sqlite:///{folder / "other.db"}"\n')
    return path


def test_copy_copies_a_table(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    path = write_config(database, tmp_path)
    with spec.get_session("primary") as session:
        session.load_rows("users", [(number, f"user {number}") for number in range(1, 1001)])
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        session.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
    arguments = ["copy", "primary.users", "other.people", "--config", str(path), "--batch-size", "300"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, "1000 rows copied from primary.users to other.people\n")
    assert "1000/1000" in result.stderr
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        assert session.execute("SELECT count(*), sum(id) FROM people").one() == (1000, 500500)
        session.execute("DELETE FROM people WHERE id <= 400")
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    told = re.search(
        r"row (\d+) for people cannot be loaded \(IntegrityError\); (\d+) rows are committed", again.stderr
    )
    assert told is not None
    # in whatever order the database gives them
    assert int(told[2]) == (int(told[1]) - 1) // 300 * 300
    assert "UNIQUE constraint failed: people.id" in again.stderr
    wrongs = {
        "primary": "primary.orders",
        "primary..users": "primary.orders",
        "nobody.users": "did you mean",
        "primary.gone": "gone",
        "other.people": "twice",
    }
    for wrong, told in wrongs.items():
        failed = CliRunner().invoke(app, ["copy", wrong, "other.people", "--config", str(path)])
        assert failed.exit_code in {1, 2}
        assert told in failed.stderr


@pytest.mark.parametrize("driver", ["aiosqlite"])
def test_check_looks_through_an_asynchronous_driver(tmp_path: Path, driver: str) -> None:
    (tmp_path / "a.db").touch()
    path = tmp_path / "sqlspec.toml"
    path.write_text(f'[up]\nurl = "sqlite+{driver}:///{tmp_path / "a.db"}"')
    result = CliRunner().invoke(app, ["check", "--config", str(path), "--json"])
    (report,) = json.loads(result.stdout)
    assert (report["ok"], report["driver"]) == (True, driver)


def test_check_fails_where_a_database_is_down(tmp_path: Path) -> None:
    path = tmp_path / "sqlspec.toml"
    (tmp_path / "a.db").touch()
    path.write_text(f'[up]\nurl = "sqlite:///{tmp_path / "a.db"}"\n[down]\nurl = "postgresql://u:hidden@127.0.0.1:1/d"')
    result = CliRunner().invoke(app, ["check", "--config", str(path), "--json"])
    assert result.exit_code == 1
    up, down = json.loads(result.stdout)
    assert (up["ok"], down["ok"]) == (True, False)
    assert "refused" in down["error"]
    assert "hidden" not in result.output
    assert "down" in CliRunner().invoke(app, ["check", "--config", str(path)]).stdout


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"sqlspec {version('sqlspec-pool')}\n")


def test_on_a_narrow_terminal_check_prints_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "sqlspec.toml").write_text(
        f'[shop]\nurl = "sqlite:///{tmp_path / "a.db"}"\n[gone]\nurl = "sqlite:///gone"'
    )
    monkeypatch.setenv("COLUMNS", "40")
    result = CliRunner().invoke(app, ["check", "--config", str(tmp_path / "sqlspec.toml")])
    assert result.output.startswith("shop: up, SQLite 3")
    assert "gone: down, there is no file gone" in result.output
    monkeypatch.setenv("COLUMNS", "120")
    assert "│ shop" in CliRunner().invoke(app, ["check", "--config", str(tmp_path / "sqlspec.toml")]).output
    assert "tool.sqlspec" in CliRunner().invoke(app, ["check", "--help"]).output


def test_check_creates_no_file(tmp_path: Path) -> None:
    path = tmp_path / "sqlspec.toml"
    path.write_text(f'[typo]\nurl = "sqlite:///{tmp_path / "ap.db"}"')
    result = CliRunner().invoke(app, ["check", "--config", str(path), "--json"])
    assert (result.exit_code, json.loads(result.stdout)[0]["error"]) == (1, f"there is no file {tmp_path / 'ap.db'}")
    assert not (tmp_path / "ap.db").exists()


def test_check_finds_its_config_and_explains_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = CliRunner().invoke(app, ["check"])
    assert (nothing.exit_code, "set DB_URL" in nothing.stderr) == (2, True)
    monkeypatch.setenv("DB_URL", "sqlite:///env.db")
    assert json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)[0]["name"] == "default"
    Path("pyproject.toml").write_text('[tool.sqlspec.project]\nurl = "sqlite:///p.db"')
    assert json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)[0]["name"] == "project"
    Path("sqlspec.toml").write_text('[own]\nurl = "sqlite:///o.db"\npool_sise = 3')
    wrong = CliRunner().invoke(app, ["check"])
    assert (wrong.exit_code, "did you mean pool_size" in wrong.stderr) == (2, True)
