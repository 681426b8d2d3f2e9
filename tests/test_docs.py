"""What the documentation shows runs, and says what it says it says."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqlspec import InstrumentationConfig, PoolStats, SQLSpec
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.telemetry.figures import COUNTS, GAUGES, POOL, TIMINGS
from tests import test_telemetry

ROOT = Path(__file__).parent.parent
MISTAKES = ROOT / "docs" / "reference" / "mistakes.md"
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {MISTAKES})]
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]
_MISTAKE = re.compile(r"^### (.*?)\n\n```python\n(.*?)```\n\n```text\n(.*?)\n```", re.DOTALL | re.MULTILINE)
_FAULT = re.compile(r"^\| (\d+) \| [^|]+ \| [^|]+ \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+) \| [^|]+ \| ([^|]*) \|$", re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_documentation_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [pytest.param(code, message, id=title) for title, code, message in _MISTAKE.findall(MISTAKES.read_text("utf-8"))],
)
def test_a_mistake_gets_the_message_on_the_page(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    told, names = "", dict[str, Any]()
    try:
        exec(compile(code, "mistake", "exec"), names)  # noqa: S102  # our own page
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        for registry in [value for value in names.values() if isinstance(value, SQLSpec)]:
            registry.close()
        os.environ.clear()
        os.environ.update(before)
    assert told == message


def test_the_page_of_mistakes_has_no_block_that_is_not_tested() -> None:
    page = MISTAKES.read_text("utf-8")
    assert page.count("```python") == page.count("\n### ") == len(_MISTAKE.findall(page)) >= 25


def test_every_block_of_the_source_document_has_its_tests() -> None:
    rows = _ROW.findall((ROOT / "docs" / "reference" / "source-map.md").read_text("utf-8"))
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    for number, tests in rows:
        names = re.findall(r"`(\w+)\.py::(\w+)`", tests)
        assert names, f"block {number} maps to nothing"
        for module, name in names:
            assert name in _functions(ROOT / "tests" / f"{module}.py"), f"block {number}: there is no {module}.{name}"


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_page_of_faults_and_the_marks_of_the_tests_agree() -> None:
    page = (ROOT / "docs" / "reference" / "faults.md").read_text("utf-8")
    rows = _FAULT.findall(page)
    numbers = [int(number) for number, _ in rows]
    assert len(rows) == len(re.findall(r"^\| \d", page, re.MULTILINE))
    told = {(int(number), name) for number, tests in rows for name in re.findall(r"`(\w+\.py::\w+)`", tests)}
    marked = {mark for path in (ROOT / "tests").rglob("*.py") for mark in _fault_marks(path)}
    assert told == marked
    assert {number for number, _ in told} == set(numbers)
    # every fault of the catalogue stands once, in a table or among those that nothing is promised about
    missing = [int(number) for number in re.findall(r"^- \*\*(\d+)\*\*", page, re.MULTILINE)]
    assert sorted(numbers + missing) == list(range(1, 82))


def _fault_marks(path: Path) -> set[tuple[int, str]]:
    """Return the numbers of faults in the marks of a file, each with the test that it stands on."""
    text = path.read_text("utf-8")
    marks = [
        (mark, f"{path.name}::{node.name}")
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
        for mark in node.decorator_list
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault"
    ]
    # none stands elsewhere, where it would not be seen
    assert len(marks) == len(re.findall(r"^ *@pytest\.mark\.fault\b|= pytest\.mark\.fault\b", text, re.MULTILINE))
    return {(ast.literal_eval(number), name) for mark, name in marks for number in mark.args}


@pytest.mark.parametrize(
    "config", [PostgreSQLConfig, MySQLConfig, SQLiteConfig, SQLiteConnectionConfig, InstrumentationConfig]
)
def test_the_page_of_configs_has_every_option_with_its_default(config: Any) -> None:
    page = (ROOT / "docs" / "reference" / "configs.md").read_text("utf-8")
    options = dict(re.findall(r"^\| `(\w+)` \| .* \| `([^`]+)` \|$", page, re.MULTILINE))
    for name, field in config.model_fields.items():
        default = "InstrumentationConfig()" if name == "instrumentation" else repr(field.default)
        assert options.get(name) == default, name


def test_the_page_of_statistics_has_every_figure_and_every_reason() -> None:
    page = (ROOT / "docs" / "reference" / "statistics.md").read_text("utf-8")
    named = {
        name for cell in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    figures = {field.name for field in dataclasses.fields(PoolStats)} - {"parts"}
    properties = {name for name, kind in vars(PoolStats).items() if isinstance(kind, property)}
    told_of_closed = re.search(r"closed: reason to(.*?)\n        \w+:", PoolStats.__doc__ or "", re.DOTALL)
    assert told_of_closed is not None
    reasons = set(re.findall(r"``(\w+)``", told_of_closed[1])) - {"idle_timeout"}
    assert len(reasons) > 10
    assert named == figures | properties | reasons


def test_the_page_of_metrics_has_every_figure_and_every_label() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| .* \|$", page, re.MULTILINE)
    figures = [*GAUGES, *COUNTS]
    names = {figure.name for figure in figures} | {name for name, _ in TIMINGS.values()}
    told = {name: other.strip("`") for name, other in rows if name in names}
    assert set(told) == names
    of_prometheus = test_telemetry.GAUGES | {f"{name}_total" for name in test_telemetry.COUNTERS}
    assert set(told.values()) == of_prometheus | test_telemetry.HISTOGRAMS
    assert [name for name, other in told.items() if not other.startswith(name.replace(".", "_"))] == []
    labels = {figure.label: f"`{figure.name}`" for figure in figures if figure.label is not None}
    assert {label: of for label, of in rows if label not in names} == {POOL: "all", **labels}
