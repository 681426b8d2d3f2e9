"""A Flask application that four preloaded workers of gunicorn serve."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.servers import free_port, wait_until

__all__ = ["PRELOADED", "checkouts", "served"]

PRELOADED = """
import os
from flask import Flask
from sqlspec import with_retry
from sqlspec.adapters import *
from sqlspec.extensions.flask import FlaskSQLSpec

app, db = Flask("preloaded"), FlaskSQLSpec(configs={{"primary": {config}}})
db.init_app(app)
app.register_blueprint(db.blueprint(auth=None), url_prefix="/db")

@app.get("/")
def index():
    return {{"worker": os.getpid(), "backend": db.session.execute({who!r}).scalar_one()}}

@app.get("/retried")
def retried():
    def read():
        with db.spec.get_session("primary", read_only=True) as session:
            return session.execute({who!r}).scalar_one()

    backend = with_retry(read, max_attempts=1000, max_delay=0.1, timeout=10.0)
    return {{"worker": os.getpid(), "backend": backend}}

@app.get("/up")
def up():
    return {{"worker": os.getpid(), "checkouts": db.get_pool_stats("primary").hold.count}}

with app.app_context():
    preloaded = db.session.execute({who!r}).scalar_one()
"""


@contextlib.contextmanager
def served(folder: Path, module: str, threads: int = 2) -> Iterator[Callable[[str], str]]:
    """Serve the application of a module by four preloaded workers, and return what asks it for a page."""
    (folder / "preloaded.py").write_text(module)
    (folder / "shared").mkdir()
    place, log = f"127.0.0.1:{free_port()}", folder / "log"
    workers = ["--preload", "--workers=4", f"--threads={threads}", "--bind", place]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(folder)]),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "shared"),
    }

    def ask(page: str) -> str:
        with urllib.request.urlopen(f"http://{place}/{page}", timeout=30) as answer:
            return str(answer.read().decode())

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            return bool(ask("up"))
        return False

    command = [sys.executable, "-m", "gunicorn", *workers, "preloaded:app"]
    with log.open("wb") as errors, subprocess.Popen(command, env=environment, stderr=errors) as server:
        try:
            wait_until(is_up, seconds=30)
            yield ask
        except urllib.error.HTTPError as error:
            raise AssertionError(log.read_text()) from error
        finally:
            server.terminate()


def checkouts(page: str) -> float:
    """Return how many checkouts the metrics on a page count."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "db_client_connection_use_time_seconds_count"
    )
