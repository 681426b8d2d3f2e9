"""What saturated web applications serve, on our pool and on SQLAlchemy's: `python benchmarks/web_load.py`.

The two examples of docs/examples, beside the same applications on SQLAlchemy's own pool, `plain_flask.py` and
`plain_fastapi.py`, all on a private PostgreSQL: Flask under gunicorn, a worker of 32 threads; FastAPI under
uvicorn; five connections each. wrk asks them over 64 connections, in turn, ours, plain, plain, ours …, for a page
that reads twenty rows, for one that writes one, and for the first again where the database takes 30 ms for it: there
connections are what is scarce, before that it is the processor.

With `--statements` nothing is measured: printed is what the server is told for one request of each page, and it fails
where the two tell it something else, or in another way.

Printed are medians of rounds, and the median of the ratios of pairs, ours by plain: of requests a second, of what each
costs the server of a processor, and of milliseconds until the answer. Errors are answers that are no success, and what
wrk counts of its sockets, of all rounds together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from databases import servers

from sqlspec import SQLSpec, build_secure_url
from tests.servers import PASSWORD, family, free_port, wait_until

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "docs" / "examples"
POOL_SIZE, CONNECTIONS = 5, 64
SIDES = ("ours", "plain")
GUNICORN = ["gunicorn", "--worker-class=gthread", "--threads=32", "--log-level=error", "--bind"]
UVICORN = ["uvicorn", "--no-access-log", "--log-level=error", "--host=127.0.0.1", "--port"]
WRK = ["wrk", "--latency", "-t2", f"-c{CONNECTIONS}", "--timeout=10s"]
# of the ratios: of requests at least, of milliseconds at most. Where some are served out of turn, most may wait
# less long than in the order of asking, so that there is none for the median.
BARS = {"requests": 0.9, "processor": 1.0, "p50": math.inf, "p99": 1.0}
# for wrk: everybody is another guest, and all notes are the same
GUESTS = """
local threads, count = 0, 0
function setup(thread) threads = threads + 1; thread:set("number", threads) end
function request() count = count + 1; return wrk.format("POST", "/guest-" .. number .. "-" .. count) end
"""
NOTE = '{"text": "hello"}'
NOTES = f"""
wrk.method, wrk.body = "POST", '{NOTE}'
wrk.headers["Content-Type"] = "application/json"
"""
# asked once a query
SLOW = "WHERE (SELECT pg_sleep(0.03)) IS NOT NULL"


class Page(NamedTuple):
    """Be what is asked for."""

    name: str
    framework: str
    table: str
    path: str
    script: str = ""
    slow: str = ""


PAGES = [
    Page("flask reads", "flask", "guests", "/"),
    Page("flask writes", "flask", "guests", "/", GUESTS),
    Page("flask slow reads", "flask", "guests", "/", slow=SLOW),
    Page("fastapi reads", "fastapi", "notes", "/notes"),
    Page("fastapi writes", "fastapi", "notes", "/notes", NOTES),
    Page("fastapi slow reads", "fastapi", "notes", "/notes", slow=SLOW),
]


class Figures(NamedTuple):
    """Be what wrk tells, and what the server has used: requests a second, milliseconds, and the number of errors."""

    requests: float
    processor: float
    p50: float
    p99: float
    errors: int


def figures(told: str, used: float) -> Figures:
    """Read what wrk has printed, while the server has used so many seconds of a processor."""
    milliseconds = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}

    def latency(percent: int) -> float:
        found = re.search(rf"^ +{percent}% +([\d.]+)(\w+) *$", told, re.MULTILINE)
        return float(found[1]) * milliseconds[found[2]] if found else float("nan")

    errors = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", told)
    ((count, requests),) = re.findall(
        r"^ +(\d+) requests in .*?^Requests/sec: +([\d.]+)$", told, re.MULTILINE | re.DOTALL
    )
    processor = 1000 * used / max(1, int(count))
    return Figures(float(requests), processor, latency(50), latency(99), sum(map(int, errors)))


def used(pid: int) -> float:
    """Return the seconds of a processor that a process and its children have used."""
    ticks = 0
    for each in family(pid):
        # the name, which comes before, may have spaces
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Served(NamedTuple):
    """Be where an application is served, and by which process."""

    port: int
    pid: int


def load(served: Served, page: Page, seconds: int) -> Figures:
    """Ask for a page as often as it is answered."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(page.script)
        script.flush()
        options = [f"-d{seconds}s", *(["-s", script.name] if page.script else [])]
        before = used(served.pid)
        asked = [*WRK, *options, f"http://127.0.0.1:{served.port}{page.path}"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return figures(told, used(served.pid) - before)


def variables(framework: str, side: str, config: Any, pre_ping: bool) -> dict[str, str]:
    """Return what tells an application its database."""
    place = {"host": config.host, "port": config.port}
    url = build_secure_url("postgresql", **place, database="postgres", username="app", password=PASSWORD)
    if (framework, side) == ("flask", "ours"):
        return {"FLASK_SQLSPEC_DATABASES": json.dumps({"url": url, "pool_size": POOL_SIZE, "max_overflow": 0})}
    own = {"DB_MAX_OVERFLOW": "0"} if side == "ours" else {"DB_POOL_PRE_PING": "1"} if pre_ping else {}
    return {"DB_URL": url, "DB_POOL_SIZE": str(POOL_SIZE), **own}


@contextlib.contextmanager
def serve(framework: str, side: str, given: dict[str, str], folder: Path) -> Iterator[Served]:
    """Serve one of the four applications."""
    port, place = free_port(), EXAMPLES / framework if side == "ours" else HERE
    module = "app:app" if side == "ours" else f"plain_{framework}:app"
    if framework == "flask":
        command = [*GUNICORN, f"127.0.0.1:{port}", "--chdir", str(place), module]
    else:
        command = [*UVICORN, str(port), "--app-dir", str(place), module]
    page = next(page.path for page in PAGES if page.framework == framework)

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5):
            return True
        return False

    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), **given}
    log = folder / f"{framework}-{side}.log"
    with (
        log.open("wb") as told,
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=told, stderr=told) as process,
    ):
        try:
            wait_until(lambda: answers() or process.poll() is not None, seconds=30)
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            yield Served(port, process.pid)
        finally:
            process.terminate()


def renew(spec: SQLSpec, page: Page) -> None:
    """Have twenty rows, whatever was written before, behind a view that is as slow as the page is to be."""
    # requests that wrk has not waited for
    time.sleep(0.5)
    stored = f"stored_{page.table}"
    with spec.get_session() as session:
        session.execute(f"CREATE OR REPLACE VIEW {page.table} AS SELECT * FROM {stored} {page.slow}")  # noqa: S608  # ours
        session.execute(f"TRUNCATE {stored}")
        session.load_rows(stored, [(f"somebody {number}",) for number in range(20)])


def measure(
    spec: SQLSpec, served: dict[tuple[str, str], Served], pages: list[Page], options: argparse.Namespace
) -> dict[str, list[Any]]:
    """Return the pairs of figures of each page, ours and plain, after a round of warming up."""
    found: dict[str, list[Any]] = {page.name: [] for page in pages}
    for number in range(options.rounds + 1):
        for page in pages:
            pair: dict[str, Figures] = {}
            # whoever is second finds what the first one has left, such as a processor that has become warm
            for side in SIDES if number % 2 else reversed(SIDES):
                renew(spec, page)
                pair[side] = load(served[page.framework, side], page, options.seconds if number else 1)
            if number:
                found[page.name].append([pair[side] for side in SIDES])
    return found


class Row(NamedTuple):
    """Hold one figure of both, their ratio, and whether its bar holds."""

    page: str
    figure: str
    ours: float
    plain: float
    ratio: float | None
    bar: float
    holds: bool


def compared(page: str, pairs: list[Any]) -> Iterator[Row]:
    """Return a row for each figure of a page."""
    for figure in BARS:
        ours, plain = zip(*[[getattr(side, figure) for side in pair] for pair in pairs], strict=True)
        ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
        bar = BARS[figure]
        holds = ratio >= bar if figure == "requests" else ratio <= bar
        yield Row(page, figure, statistics.median(ours), statistics.median(plain), ratio, bar, holds)
    ours, plain = zip(*[[side.errors for side in pair] for pair in pairs], strict=True)
    yield Row(page, "errors", sum(ours), sum(plain), None, 0, sum(ours) == 0)


def show(rows: list[Row]) -> None:
    print(f"{'':29} {'ours':>9} {'plain':>9} {'ratio':>6} {'bar':>5}")
    units = {"requests": "requests/s", "processor": "cpu ms", "p50": "p50 ms", "p99": "p99 ms", "errors": "errors"}
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        bar = "-" if row.bar == math.inf else f"{row.bar:.2f}"
        told = f"{row.page:18} {units[row.figure]:10} {row.ours:9.1f} {row.plain:9.1f} {ratio:>6} {bar:>5}"
        print(told if row.holds else f"{told} !")


def statements(log: Path, served: Served, page: Page) -> list[str]:
    """Return what the server is told for a request, without the names of prepared statements and guests."""
    before, body = 0, NOTE.encode() if page.script else None
    # of the second one: the first may have to connect, or to prepare
    for guest in ("guest-1", "guest-2"):
        before = log.stat().st_size
        path = page.path + (guest if page.script == GUESTS else "")
        asked = urllib.request.Request(
            f"http://127.0.0.1:{served.port}{path}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=5):  # noqa: S310  # it is http
            pass
    return re.findall("LOG:  (.*)", re.sub(r"(?<=execute )\S+(?=:)", "…", log.read_text()[before:]))


def show_statements(log: Path, spec: SQLSpec, served: dict[tuple[str, str], Served], pages: list[Page]) -> int:
    """Print what the server is told for each page; return 1 where it is not the same from both."""
    differs = False
    for page in pages:
        found = []
        for side in SIDES:
            renew(spec, page)
            found.append(statements(log, served[page.framework, side], page))
        ours, plain = found
        differs |= ours != plain
        print(page.name, *ours, *([] if ours == plain else ["but of the plain one !", *plain]), sep="\n    ")
    return 1 if differs else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="for which each page is asked for in each round")
    parser.add_argument("--only", choices=["flask", "fastapi"])
    parser.add_argument(
        "--pre-ping", action="store_true", help="have SQLAlchemy's pool ask the server at each checkout"
    )
    parser.add_argument("--statements", action="store_true", help="show what the server is told, and measure nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar does not hold")
    return parser.parse_args()


@contextlib.contextmanager
def tables(logs: bool) -> Iterator[tuple[Any, Any, SQLSpec]]:
    """Start a server with the tables, which logs statements or not; give it, its config and what has it registered."""
    with servers("postgresql") as started, SQLSpec() as spec:
        server, config = started["postgresql"]
        spec.register_config(config)
        if logs:
            with spec.get_session(autocommit=True) as session:
                session.execute("ALTER SYSTEM SET log_statement = 'all'")
            server.restart()
        with spec.get_session() as session:
            for table, column in (("guests", "name VARCHAR(50) PRIMARY KEY"), ("notes", "text VARCHAR(200) NOT NULL")):
                session.execute(f"CREATE TABLE stored_{table} ({column})")
                session.execute(f"CREATE VIEW {table} AS SELECT * FROM stored_{table}")  # noqa: S608  # ours
        yield server, config, spec


def main() -> int:
    options = read_options()
    if shutil.which("wrk") is None and not options.statements:
        sys.exit("wrk is not installed: apt-get install -y wrk")
    pages = [page for page in PAGES if options.only in {None, page.framework}]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sqlspec-")))
        server, config, spec = stack.enter_context(tables(options.statements))
        served = {
            (framework, side): stack.enter_context(
                serve(framework, side, variables(framework, side, config, options.pre_ping), folder)
            )
            for framework in dict.fromkeys(page.framework for page in pages)
            for side in SIDES
        }
        if options.statements:
            return show_statements(server.folder / "log", spec, served, pages)
        found = measure(spec, served, pages, options)
    rows = [row for page, pairs in found.items() for row in compared(page, pairs)]
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        show(rows)
    return 1 if options.check and not all(row.holds for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
