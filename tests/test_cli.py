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


@pytest.mark.parametrize(
    ("source", "target", "code", "told"),
    [
        ("primary", "other.people", 2, "'primary': write the name of a database and a table, such as primary.orders"),
        ("primary.users", "other", 2, "such as primary.orders"),
        ("primary..users", "other.people", 2, "such as primary.orders"),
        (".users", "other.people", 2, "such as primary.orders"),
        ("primary.", "other.people", 2, "such as primary.orders"),
        ("primary.a.b.users", "other.people", 2, "such as primary.orders"),
        ("primary.users", "other.a.b.people", 2, "such as primary.orders"),
        ("primary.\udcff", "other.people", 2, "such as primary.orders"),
        ("", "other.people", 2, "such as primary.orders"),
        ("other.people", "other.people", 2, "twice"),
        ("other.people", "other.main.people", 2, "twice"),
        ("nobody.users", "other.people", 2, "there is no config 'nobody': did you mean"),
        ("primary.users", "nobody.people", 2, "there is no config 'nobody': did you mean"),
        ("primary.usres", "other.people", 2, "there is no table usres in primary: did you mean users?"),
        ("primary.users", "other.peple", 2, "there is no table peple in other: did you mean people?"),
        ("primary.users", "other.x", 2, "there is no table x in other: create it first"),
        ("primary.nowhere.users", "other.people", 2, "nowhere"),
        ("primary.users", "other.nowhere.people", 2, "nowhere"),
        ("primary.users", "other.narrow", 1, "other.narrow has no column name: add it"),
        ("primary.users", "other.computed", 1, "other.computed computes all its columns itself: there is nothing to"),
        ("primary.users", "other.seen", 1, "cannot modify seen because it is a view"),
        ("down.users", "other.people", 1, "refused"),
        ("primary.users", "down.people", 1, "down.people cannot be looked at"),
    ],
)
def test_what_is_typed_wrong_for_copy_is_told_in_one_line(
    spec: SQLSpec, database: Database, tmp_path: Path, source: str, target: str, code: int, told: str
) -> None:
    path = write_config(database, tmp_path)
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        session.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
        session.execute("CREATE TABLE narrow (id INTEGER PRIMARY KEY)")
        twice = ", ".join(f"{name} INTEGER GENERATED ALWAYS AS (a * 2) STORED" for name in ("id", "name"))
        session.execute(f"CREATE TABLE computed (a INTEGER, {twice})")
        session.execute("CREATE VIEW seen AS SELECT * FROM people")
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('x')")
    path.write_text(f'{path.read_text()}[down]\nurl = "postgresql://u:hidden@127.0.0.1:1/d"\n')
    failed = CliRunner().invoke(app, ["copy", source, target, "--config", str(path)])
    assert (failed.exit_code, failed.stdout, isinstance(failed.exception, SystemExit)) == (code, "", True)
    # the line of the progress may stand before it
    assert told in failed.stderr.splitlines()[-1]
    assert len(failed.stderr.splitlines()) == (2 if "view" in told else 1)


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--batch-size=-5"], ["--batch-size", "many"], ["--batch"]])
def test_a_wrong_option_of_copy_is_explained(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["copy", "a.t", "b.t", *options])
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
    assert options[0].partition("=")[0] in result.stderr


@pytest.mark.parametrize("command", [["check"], ["copy", "a.t", "b.t"]])
def test_a_config_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def told(*options: str) -> str:
        result = CliRunner().invoke(app, [*command, *options])
        assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
        (line,) = result.stderr.splitlines()
        return line

    monkeypatch.chdir(tmp_path)
    assert told("--config", "gone.toml") == "gone.toml: No such file or directory"
    assert told("--config", ".") == ".: Is a directory"
    Path("pyproject.toml").write_text("tool = 3")
    assert "set DB_URL" in told()
    Path("pyproject.toml").write_bytes(b"\xff")
    assert told().startswith("pyproject.toml does not parse")
    Path("pyproject.toml").unlink()
    Path("pyproject.toml").mkdir()
    assert told() == "pyproject.toml: Is a directory"


def test_what_the_driver_cannot_read_is_told_in_one_line(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    if database.name != "postgresql":
        return
    path = write_config(database, tmp_path)
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS ancient")
        session.execute("CREATE TABLE ancient (day DATE)")
        session.execute("INSERT INTO ancient VALUES ('0044-03-15 BC')")
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        session.execute("CREATE TABLE ancient (day TEXT)")
    failed = CliRunner().invoke(app, ["copy", "primary.ancient", "other.ancient", "--config", str(path)])
    assert (failed.exit_code, isinstance(failed.exception, SystemExit)) == (1, True)
    assert "Error: year" in failed.stderr or "Error: date too" in failed.stderr
    assert failed.stderr.splitlines()[-1].endswith("; sqlspec: 0 rows are committed in ancient")
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE ancient")


def test_copy_leaves_to_the_target_what_the_target_computes(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    path = write_config(database, tmp_path)
    identity = "INTEGER GENERATED ALWAYS AS IDENTITY" if database.name == "postgresql" else database.key
    columns = "twice INTEGER GENERATED ALWAYS AS (price * 2) STORED, price INTEGER, {} TEXT"
    with spec.get_session("primary") as session:
        for name in ("priced", "again"):
            session.execute(f"DROP TABLE IF EXISTS {name}")
            session.execute(f"CREATE TABLE {name} (id {identity}, {columns.format('label')})")
        session.load_rows("priced", [(5, 7, "a"), (9, 8, "b")], columns=["id", "price", "label"])
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        session.execute(f"CREATE TABLE priced (id INTEGER PRIMARY KEY, {columns.format('LABEL')})")
        session.execute("CREATE TABLE plain (id INTEGER, price INTEGER, twice INTEGER, label TEXT)")
    for source, target in (
        ("primary.priced", "other.priced"),
        ("other.priced", "primary.again"),
        ("primary.priced", "other.plain"),
    ):
        result = CliRunner().invoke(app, ["copy", source, target, "--config", str(path)])
        assert (result.exit_code, result.stdout) == (0, f"2 rows copied from {source} to {target}\n"), result.stderr
        name, table = target.split(".")
        with SQLSpec.from_toml(path) as registry, registry.get_session(name) as session:
            rows = session.execute(f"SELECT id, price, twice, label FROM {table} ORDER BY id").all()
        assert rows == [(5, 7, 14, "a"), (9, 8, 16, "b")]
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE priced")
        session.execute("DROP TABLE again")


def test_copy_copies_within_a_database_without_a_word(
    spec: SQLSpec, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_config(database, tmp_path)
    # where one connection is all there is, nobody waits for another
    path.write_text(path.read_text().replace("[primary]", "[primary]\npool_size = 1\nmax_overflow = 0"))
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS people")
        session.execute(f"CREATE TABLE people (id {database.key}, name VARCHAR(100))")
        session.execute("INSERT INTO users (name) VALUES ('x')")
    caplog.clear()
    result = CliRunner().invoke(app, ["copy", "primary.users", "primary.people", "--config", str(path)])
    assert (result.exit_code, result.stdout) == (0, "1 rows copied from primary.users to primary.people\n")
    assert caplog.messages == []
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE people")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_columns_that_differ_by_their_case_alone_are_not_copied_into_one(
    spec: SQLSpec, database: Database, tmp_path: Path
) -> None:
    path = write_config(database, tmp_path)
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS cases")
        session.execute('CREATE TABLE cases ("A" INTEGER, a INTEGER)')
        session.execute("INSERT INTO cases VALUES (1, 2)")
    with SQLSpec.from_toml(path) as registry, registry.get_session("other") as session:
        session.execute("CREATE TABLE cases (a INTEGER)")
    failed = CliRunner().invoke(app, ["copy", "primary.cases", "other.cases", "--config", str(path)])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("other.cases has one column for A and a: copy from a view")
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE cases")


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
