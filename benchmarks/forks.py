"""What becomes of connections when a process forks: `python benchmarks/forks.py`.

Each trial forks in a process that has connections, by `os.fork`, multiprocessing, or gunicorn, and asks the server
who is connected: parent and children must share no backend, nobody may see an error or hang, and a child's first
query, with the connect for it, takes a second at most. `--forks` says how often the trial with threads forks;
`--only` chooses trials by a part of their names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from databases import databases

import sqlspec.adapters
from sqlspec import ConnectionLost, SQLSpec
from tests.servers import free_port, wait_until

THREADS, BAR, HANGS = 8, 1.0, 15.0
# a number of a process is used again after a while, with another beginning
WHO = {
    "postgresql": "SELECT concat(pid, ' ', backend_start) FROM pg_stat_activity WHERE pid = pg_backend_pid()",
    "mariadb": "SELECT concat(CONNECTION_ID(), '')",
    "sqlite": "SELECT 'a file has no backends'",
}
TASKS = 3


class Outcome(NamedTuple):
    """Hold what was seen in one process: whose backends it used, and how long its first query took."""

    backends: list[str]
    seconds: float = 0.0
    error: str = ""


def ask(spec: SQLSpec, kind: str) -> str:
    with spec.get_session() as session:
        return str(session.execute(WHO[kind]).scalar_one())


def first_query(spec: SQLSpec, kind: str) -> Outcome:
    begin = time.monotonic()
    own = ask(spec, kind)
    seconds = time.monotonic() - begin
    return Outcome([own, *(ask(spec, kind) for _ in range(TASKS))], seconds)


class Child:
    """Fork, and do some work in the child; it exits as a script does, or at once."""

    def __init__(self, work: Callable[[], Outcome], at_once: bool = True) -> None:
        reader, writer = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            os.close(reader)
            try:
                outcome = work()
            except BaseException:  # noqa: BLE001  # whatever it is, it is reported
                outcome = Outcome([], error=traceback.format_exc())
            with os.fdopen(writer, "w") as pipe:
                pipe.write(json.dumps(outcome))
            if at_once:
                os._exit(0)
            sys.exit(0)
        os.close(writer)
        self.reader = reader

    def outcome(self) -> Outcome:
        """Wait for its end, and return what it has told."""
        told = Outcome([], error="hangs")
        try:
            wait_until(self._has_ended, HANGS)
            with os.fdopen(self.reader) as pipe:
                told = Outcome(*json.loads(pipe.read()))
        except TimeoutError:
            os.kill(self.number, signal.SIGKILL)
            os.waitpid(self.number, 0)
        return told

    def _has_ended(self) -> bool:
        number, status = os.waitpid(self.number, os.WNOHANG)
        if number and status:
            raise RuntimeError(f"a child ended with {status}")
        return bool(number)


class Report:
    """Collect what the trials have shown, and print it."""

    def __init__(self) -> None:
        self.holds = True

    def say(self, kind: str, what: str, parent: list[Outcome], children: list[Outcome]) -> None:
        """Print one trial: no backend may be used by two processes."""
        parents = {backend for outcome in parent for backend in outcome.backends}
        sets = [parents, *(set(child.backends) for child in children)]
        # a file has no backends
        shared = 0 if "sqlite" in kind else sum(map(len, sets)) - len(set().union(*sets))
        hang = sum(outcome.error == "hangs" for outcome in children)
        errors = [outcome.error for outcome in (*parent, *children) if outcome.error not in {"", "hangs"}]
        slowest = max((child.seconds for child in children), default=0.0)
        holds = not (shared or hang or errors) and slowest <= BAR and bool(children)
        self.holds &= holds
        print(
            f"{'' if holds else '! '}{kind:22} {what:34} {len(children):3} children, {shared} backends shared, "
            f"{len(errors)} errors, {hang} hang, first query {slowest:.3f} s at most",
            flush=True,
        )
        for error in errors[:2]:
            print(error[-1500:], flush=True)


# -- the trials; each returns what was seen in the parent and in its children


Seen = tuple[list[Outcome], list[Outcome]]


def with_threads(spec: SQLSpec, kind: str, forks: int) -> Seen:
    """Fork while eight threads work, and connect anew all the time."""
    seen: list[Outcome] = []
    goes_on = True

    def work() -> None:
        number = 0
        while goes_on:
            number += 1
            try:
                seen.append(Outcome([ask(spec, kind)]))
                with spec.get_session() as session:
                    session.execute("INSERT INTO forked (name) VALUES ('x')")
                if number % 3 == 0:
                    spec.get_connection().invalidate()
            except Exception:  # noqa: BLE001  # whatever it is, it is reported
                seen.append(Outcome([], error=traceback.format_exc()))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(forks):
        child = Child(lambda: first_query(spec, kind))
        time.sleep(0.02)
        children.append(child.outcome())
    goes_on = False
    for thread in threads:
        thread.join()
    return seen, children


def _inherited(at_once: bool) -> Callable[[SQLSpec, str, int], Seen]:
    def over_a_fork(spec: SQLSpec, kind: str, _: int) -> Seen:
        before = first_query(spec, kind)
        session, connection = spec.get_session(), spec.get_connection()
        session.execute("INSERT INTO forked (name) VALUES ('kept')")
        mine = Outcome([str(session.execute(WHO[kind]).scalar_one())])
        cursor = connection.cursor()
        cursor.execute(WHO[kind])
        mine = Outcome([*mine.backends, str(cursor.fetchone()[0]), *before.backends])

        def use() -> Outcome:
            for attempt in (lambda: session.execute("SELECT 1"), session.commit, connection.cursor):
                try:
                    attempt()
                except ConnectionLost:
                    continue
                raise AssertionError("what is the parent's was not refused")
            # a file that the parent's session writes to must not be used, see the documentation
            return Outcome([]) if kind.startswith("sqlite") else first_query(spec, kind)

        children = [Child(use, at_once).outcome() for _ in range(3)]
        session.commit()
        same = str(session.execute(WHO[kind]).scalar_one())
        session.close()
        cursor.execute(WHO[kind])
        same_again = str(cursor.fetchone()[0])
        connection.close()
        problem = "" if {same, same_again} <= set(mine.backends) else "the parent's connections were replaced"
        if spec.get_pool_stats().closed.get("disconnect"):
            problem = "the parent's connections were lost"
        with spec.get_session() as last:
            if not last.execute("SELECT count(*) FROM forked WHERE name = 'kept'").scalar_one():
                problem = "the parent's work was lost"
            last.execute("DELETE FROM forked")
        return [mine._replace(error=problem)], children

    return over_a_fork


def prefork(spec: SQLSpec, kind: str, _: int) -> Seen:
    """Fork workers as Celery does, which run tasks and exit in one way or the other."""
    before = first_query(spec, kind)
    workers = [Child(lambda: first_query(spec, kind), at_once=number % 2 == 0) for number in range(4)]
    children = [worker.outcome() for worker in workers]
    return [before, Outcome([ask(spec, kind)])], children


_SPECS: list[tuple[SQLSpec, str]] = []


def _task(_: int = 0) -> Outcome:
    spec, kind = _SPECS[-1]
    own = first_query(spec, kind)
    time.sleep(0.01)
    return own._replace(error=str(os.getpid()))


def in_processes(spec: SQLSpec, kind: str, _: int) -> Seen:
    """Let multiprocessing fork: a Pool, and a Process."""
    _SPECS.append((spec, kind))
    before = first_query(spec, kind)
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.map_async(_task, range(40), chunksize=1).get(HANGS)
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(_task()))
    process.start()
    process.join(HANGS)
    found.append(queue.get() if process.exitcode == 0 else Outcome([], error="hangs"))
    workers: dict[str, list[Outcome]] = {}
    for outcome in found:
        workers.setdefault(outcome.error, []).append(outcome)
    children = [
        Outcome([b for outcome in own for b in outcome.backends], max(o.seconds for o in own))
        for own in workers.values()
    ]
    return [before, Outcome([ask(spec, kind)])], children


PRELOADED = """
import json, os, time
import sqlspec.adapters
from sqlspec import SQLSpec
spec = SQLSpec()
with open("config") as file:
    name, options = json.load(file)
spec.register_config(getattr(sqlspec.adapters, name)(**options))

def ask():
    begin = time.monotonic()
    with spec.get_session() as session:
        backend = session.execute({who!r}).scalar_one()
    return backend, time.monotonic() - begin

preloaded = ask()[0]

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [json.dumps([os.getpid(), *ask(), preloaded]).encode()]
"""


def under_gunicorn(_what: str, kind: str, config: Any, _forks: int) -> Seen:
    """Let gunicorn fork four workers from a master that has used the registry."""
    place = f"127.0.0.1:{free_port()}"
    root = str(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preloaded.py").write_text(PRELOADED.format(who=WHO[kind]))
        Path(folder, "config").write_text(json.dumps(written(config)))
        command = [sys.executable, "-m", "gunicorn", "--preload", "-w4", "--threads=2", "-b", place, "preloaded:app"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, folder])}
        server = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL)
        workers: dict[int, Outcome] = {}
        masters: set[str] = set()

        def request() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"http://{place}/", timeout=HANGS) as answer:
                worker, backend, seconds, preloaded = json.loads(answer.read())
                known = workers.get(worker, Outcome([], seconds))
                workers[worker] = known._replace(backends=[*known.backends, str(backend)])
                masters.add(str(preloaded))
            return len(workers) == 4

        try:
            wait_until(request, 30)
            for _ in range(100):
                request()
        finally:
            server.terminate()
            server.wait(HANGS)
    return [Outcome(list(masters))], list(workers.values())


def in_a_loop(spec: SQLSpec, kind: str, forks: int) -> Seen:
    """Fork in the thread of an event loop whose tasks connect and work."""

    async def who() -> str:
        async with spec.get_async_session() as session:
            return str(await session.execute(WHO[kind]).scalar_one())

    async def work(seen: list[Outcome], is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            try:
                seen.append(Outcome([await who()]))
                async with spec.get_async_connection() as connection:
                    await connection.invalidate()
            except Exception:  # noqa: BLE001  # whatever it is, it is reported
                seen.append(Outcome([], error=traceback.format_exc()))

    def use() -> Outcome:
        begin = time.monotonic()
        own = asyncio.run(who())
        return Outcome([own], time.monotonic() - begin)

    async def fork() -> Seen:
        seen: list[Outcome] = []
        is_over = asyncio.Event()
        tasks = [asyncio.create_task(work(seen, is_over)) for _ in range(4)]
        children = []
        for _ in range(forks):
            await asyncio.sleep(0.02)
            child = Child(use)
            children.append(await asyncio.to_thread(child.outcome))
        is_over.set()
        await asyncio.gather(*tasks)
        await spec.aclose()
        return seen, children

    return asyncio.run(fork())


TRIALS: dict[str, Callable[[SQLSpec, str, int], Seen]] = {
    "os.fork, eight threads work": with_threads,
    "checked out, child ends at once": _inherited(at_once=True),
    "checked out, child ends normally": _inherited(at_once=False),
    "prefork, both ways to end": prefork,
    "multiprocessing": in_processes,
}
IN_LOOP = "os.fork in the thread of a loop"
KEYS = {"postgresql": "SERIAL", "mariadb": "INTEGER AUTO_INCREMENT", "sqlite": "INTEGER"}


def written(config: Any) -> list[Any]:
    """Return a config as what JSON can hold."""
    options = {name: getattr(config, name) for name in config.model_fields_set}
    return [type(config).__name__, {**options, "password": config.reveal_password()}]


def apart(what: str, kind: str, config: Any, forks: int) -> Seen:
    """Run a trial in a process of its own, since children that end normally leave all blocks of their parent."""
    command = [sys.executable, __file__, "--trial", what]
    told = json.dumps([kind, *written(config), forks])
    try:
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=180)
    except subprocess.TimeoutExpired as error:
        return [Outcome([], error=f"the parent hangs: {error.stderr!r}")], []
    if done.returncode:
        return [Outcome([], error=done.stderr)], []
    if "may hang" in done.stderr or "must not use" in done.stderr:
        return [Outcome([], error=done.stderr)], []
    parent, children = json.loads(done.stdout)
    return [Outcome(*outcome) for outcome in parent], [Outcome(*outcome) for outcome in children]


def one_trial(what: str) -> None:
    """Be the process of one trial."""
    kind, name, options, forks = json.loads(sys.stdin.read())
    with SQLSpec() as spec:
        spec.register_config(getattr(sqlspec.adapters, name)(**options))
        if what == IN_LOOP:
            seen = in_a_loop(spec, kind, forks)
        else:
            with spec.get_session() as session:
                session.execute("DROP TABLE IF EXISTS forked")
                session.execute(f"CREATE TABLE forked (id {KEYS[kind]} PRIMARY KEY, name VARCHAR(50))")
            seen = TRIALS[what](spec, kind, forks)
    sys.stdout.write(json.dumps(seen))


TLS = {"postgresql": {"tls": "require"}, "mariadb": {"tls": "verify-ca"}}
DRIVERS = {"postgresql": ["", "postgresql+psycopg://"], "mariadb": [""], "sqlite": [""]}
IN_TASKS = {"postgresql": ["asyncpg", "psycopg"], "mariadb": ["asyncmy"], "sqlite": ["aiosqlite"]}


def variants(kind: str, config: Any, ca: str) -> dict[str, Any]:
    """Return the config for each driver, with TLS and without."""
    found = {}
    for url in DRIVERS[kind]:
        name = {"": kind, "postgresql+psycopg://": "psycopg"}[url]
        found[name] = config.model_copy(update={"url": url}) if url else config
        if kind in TLS:
            options = {**TLS[kind], "tls_ca": ca} if kind == "mariadb" else TLS[kind]
            found[f"{name}, TLS"] = found[name].model_copy(update=options)
    return found


def trials(kind: str, config: Any, ca: str) -> Iterator[tuple[str, Any, str]]:
    """Tell the name, the config and the trial of each row."""
    for name, variant in variants(kind, config, ca).items():
        for what in (*TRIALS, "gunicorn --preload, four workers"):
            yield name, variant, what
    for driver in IN_TASKS[kind]:
        dialect = "mysql" if kind == "mariadb" else kind
        yield driver, config.model_copy(update={"url": f"{dialect}+{driver}://"}), IN_LOOP


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--only", default="", metavar="PART")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.basicConfig()

    if options.trial:
        one_trial(options.trial)
        return 0
    report = Report()
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder:
        Path(folder).chmod(0o755)
        authority, ca, certificate = trustme.CA(), f"{folder}/ca.pem", Path(folder, "server.pem")
        authority.cert_pem.write_to_path(ca)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        with databases(*KEYS, certificate=certificate) as started:
            for kind, config in started.items():
                for name, variant, what in trials(kind, config, ca):
                    if options.only in f"{name} {what}":
                        work = under_gunicorn if what.startswith("gunicorn") else apart
                        report.say(name, what, *work(what, kind, variant, options.forks))
    print("every bar holds" if report.holds else "a bar does not hold")
    return 0 if report.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
