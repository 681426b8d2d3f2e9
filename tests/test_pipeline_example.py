"""The example of a pipeline: a file into a warehouse, sums of it, and a copy in an archive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from tests.conftest import Database
from tests.servers import PASSWORD

SCRIPT = Path(__file__).parent.parent / "docs" / "examples" / "pipeline" / "pipeline.py"
TOLD = """60 orders loaded
Alice      922.37
Dávid      821.81
Zoë        520.82
25 orders archived
50 orders archived
60 orders archived
"""


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[3]), "PYTHONIOENCODING": "utf-8", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)


def stored(file: Path) -> tuple[int, int]:
    """Return how many orders a file of SQLite has, and their sum."""
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(file)))
        with spec.get_session() as session:
            count, cents = session.execute("SELECT count(*), sum(cents) FROM orders").one()
            return count, cents


def test_the_example_runs_with_one_command_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = run(tmp_path)
        assert (done.returncode, done.stdout) == (0, TOLD), done.stderr
    assert stored(tmp_path / "warehouse.db") == stored(tmp_path / "archive.db") == (60, 299_707)


def test_a_row_that_does_not_fit_is_named_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "bad.csv").write_text("id,customer,cents\n1,Alice,100\n2,Bob,100\n1,Carol,100\n")
    done = run(tmp_path, "bad.csv")
    assert (done.returncode, done.stdout) == (1, "")
    told = "row 3 for orders cannot be loaded (IntegrityError); 0 rows are committed: (sqlite3.IntegrityError) UNIQUE"
    assert done.stderr.startswith(told)
    assert stored(tmp_path / "warehouse.db") == (60, 299_707)


def test_the_warehouse_may_be_any_database(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    url = spec.get_engine("primary").url
    url = url if database.server is None else url.set(password=PASSWORD)
    try:
        done = run(tmp_path, WAREHOUSE_URL=url.render_as_string(hide_password=False))
        assert (done.returncode, done.stdout) == (0, TOLD), done.stderr
        assert stored(tmp_path / "archive.db") == (60, 299_707)
        assert not (tmp_path / "warehouse.db").exists()
    finally:
        with spec.get_session("primary") as session:
            session.execute("DROP TABLE IF EXISTS orders")
