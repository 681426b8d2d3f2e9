"""Run SQLAlchemy's own tests with its pools and with ours, and compare them test by test.

The tests are those of the installed SQLAlchemy: its source distribution is downloaded, and kept below ``.venv``.
Besides sqlspec it takes pytest and greenlet, and aiosqlite for all suites but "pool". Not collected by pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import sqlalchemy as sa

from sqlspec.pool import FairQueuePool

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".venv" / "upstream"
POOLS = ("stock", "ours")
NAMES = {"AsyncFairQueuePool": "AsyncAdaptedQueuePool", "FairQueuePool": "QueuePool"}
# tests that differ and may, and why
ALLOWED = {"test_cant_use_async_pool_w_create_engine": "it looks for the name of the class in a message"}

Outcomes = dict[str, str]


class Suite(NamedTuple):
    """Be some of SQLAlchemy's tests, and the databases they run on.

    Attributes:
        paths: where the tests are, in SQLAlchemy's source.
        options: further arguments of pytest.
        url: of a database, ``{}`` being a file. Our pools come by its plugin; without a URL they are swapped in.
    """

    name: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    url: str | None = None

    def arguments(self, pools: str, folder: Path) -> list[str]:
        """Return the arguments of pytest."""
        if self.url is None:
            swap = ["-p", "tests.swapped_pools"] if pools == "ours" else []
            return [*self.paths, *self.options, *swap]
        url = self.url.format(folder / f"{pools}.db")
        if pools == "ours":
            url += "?plugin=sqlspec"
            assert_ours(url)
        return [*self.paths, *self.options, "--dburi", url]


SUITES = [
    Suite("pool", ("test/engine/test_pool.py",)),
    Suite("asyncio", ("test/engine", "test/ext/asyncio"), ("--db", "sqlite", "--db", "aiosqlite_file")),
    Suite("dialect", ("test/dialect/test_suite.py",), url="sqlite:///{}"),
    Suite("dialect", ("test/dialect/test_suite.py",), url="sqlite+aiosqlite:///{}"),
]


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201  # this is a script


def assert_ours(url: str) -> None:
    """Stop where the plugin is not found: the tests would prove nothing."""
    if not isinstance(sa.create_engine(url).pool, FairQueuePool):
        sys.exit(f"{url} makes an engine with SQLAlchemy's own pool: is sqlspec installed?")


def download(release: str) -> Path:
    """Return the source distribution of a release."""
    archive = KEPT / f"sqlalchemy-{release}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "sqlalchemy"]
        subprocess.run([*pip, "-d", str(KEPT), f"sqlalchemy=={release}"], check=True)
    return archive


def run(suite: Suite, pools: str, source: Path, label: str) -> Outcomes:
    """Run a suite; return what became of each test."""
    report, log = KEPT / f"{label}.xml", KEPT / f"{label}.log"
    report.unlink(missing_ok=True)
    # no user site: by that the tests know that the installed SQLAlchemy is meant, not the source beside them
    environment = {**os.environ, "PYTHONNOUSERSITE": "1", "PYTHONPATH": str(ROOT)}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [*pytest, *suite.arguments(pools, source)]
    with log.open("wb") as output:
        subprocess.run(command, cwd=source, env=environment, stdout=output, stderr=output, check=False)
    if not report.exists():
        sys.exit(f"pytest ended early: see {log}")
    return dict(read(report))


def read(report: Path) -> Iterator[tuple[str, str]]:
    """Give each test of a report, and what became of it."""
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  # our own report
        became = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "skipped" if became == {"skipped"} else "failed" if became else "passed"
        test = f"{case.get('classname')}.{case.get('name')}"
        # some are named after the class
        for ours, stock in NAMES.items():
            test = test.replace(ours, stock)
        yield test, outcome


def differences(stock: Outcomes, ours: Outcomes) -> Iterator[str]:
    """Give the tests that do not as well with our pools as with SQLAlchemy's."""
    for test in sorted(stock.keys() | ours.keys()):
        before, after = stock.get(test, "missing"), ours.get(test, "missing")
        if before != after and before != "failed":
            yield f"{test}: {before} with SQLAlchemy's pool, {after} with ours"


def may_differ(line: str) -> bool:
    """Tell whether this is one of the tests that may, and say why."""
    reason = next((reason for name, reason in ALLOWED.items() if f".{name}:" in line), None)
    if reason is not None:
        say(f"as it may: {line}: {reason}")
    return reason is not None


def compare(suite: Suite, wanted: list[str], archive: Path, release: str) -> list[str]:
    """Run a suite with each of the wanted pools, say how it went, and return what differs."""
    found: dict[str, Outcomes] = {}
    driver = (suite.url or "").partition(":")[0]
    for pools in wanted:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="upstream-") as folder, tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
            source = Path(folder) / archive.name.removesuffix(".tar.gz")
            found[pools] = run(suite, pools, source, "-".join(filter(None, (release, suite.name, driver, pools))))
        counts = Counter(found[pools].values())
        figures = ", ".join(f"{counts[outcome]:5} {outcome}" for outcome in ("passed", "failed", "skipped"))
        say(f"{release:7} {suite.name:8} {driver:17} {pools:6} {figures}  {time.monotonic() - begin:4.0f} s")
        if not counts["passed"]:
            sys.exit("no test passed: see the log in " + str(KEPT))
    if len(wanted) < 2:
        lines = [f"{test}: failed" for test, outcome in found[wanted[0]].items() if outcome == "failed"]
    else:
        lines = list(differences(found["stock"], found["ours"]))
    return [line for line in lines if not may_differ(line)]


def main() -> None:
    """Run what is asked for; exit with 1 where our pools do worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sqlalchemy", metavar="RELEASE", help="insist on this release being installed")
    parser.add_argument("--suite", choices=[*dict.fromkeys(suite.name for suite in SUITES), "all"], default="all")
    parser.add_argument("--pool", choices=POOLS, help="run with these pools only, and compare nothing")
    options = parser.parse_args()
    release = version("sqlalchemy")
    if options.sqlalchemy not in {None, release}:
        sys.exit(f"SQLAlchemy {release} is installed: pip install sqlalchemy=={options.sqlalchemy}")
    KEPT.mkdir(parents=True, exist_ok=True)
    archive = download(release)
    wanted = [options.pool] if options.pool else list(POOLS)
    suites = [suite for suite in SUITES if options.suite in {suite.name, "all"}]
    worse = [line for suite in suites for line in compare(suite, wanted, archive, release)]
    for line in worse:
        say(line)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
