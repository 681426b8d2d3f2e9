"""A forked child has connections and locks of its own, and its parent keeps what it has."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec import ConnectionLost, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.pool import FairQueuePool
from tests.conftest import Database
from tests.servers import free_port, wait_until

# these tests are about what Python warns of
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

WHO = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()", "sqlite": "SELECT 1"}


class Child:
    """Run some work in a forked child, and fetch what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reader, writer = os.pipe()
        self.process_id = os.fork()
        if self.process_id == 0:
            try:
                outcome: Any = work()
            except BaseException as error:
                outcome = error
            os.write(writer, pickle.dumps(outcome))
            os._exit(0)
        os.close(writer)
        self._reader = reader

    def result(self) -> Any:
        with os.fdopen(self._reader, "rb") as pipe:
            told = pipe.read()
        os.waitpid(self.process_id, 0)
        outcome = pickle.loads(told)  # noqa: S301  # our own child's
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def in_child(work: Callable[[], Any]) -> Any:
    return Child(work).result()


@pytest.fixture
def spec(database: Database) -> Iterator[SQLSpec]:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=3), name="primary")
        with spec.get_session("primary") as session:
            session.execute(f"CREATE TABLE forked (id {database.key}, name VARCHAR(50))")
        yield spec
        with spec.get_session("primary") as session:
            session.execute("DROP TABLE forked")


def backend(spec: SQLSpec, database: Database) -> int:
    with spec.get_session("primary") as session:
        return int(session.execute(WHO[database.name]).scalar_one())


def names(spec: SQLSpec) -> list[str]:
    with spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM forked ORDER BY id").scalars())


@pytest.mark.fault(41)
def test_a_child_connects_anew_and_its_parent_keeps_its_connections(spec: SQLSpec, database: Database) -> None:
    parents = backend(spec, database)

    def use_and_free() -> tuple[int, int, int]:
        own = backend(spec, database)
        gc.collect()
        stats = spec.get_pool_stats("primary")
        return own, stats.created, stats.checked_out

    own, created, checked_out = in_child(use_and_free)
    assert (created, checked_out) == (1, 0)
    if database.name != "sqlite":
        assert own != parents
        assert spec.get_pool_stats("primary").created == 1
    assert backend(spec, database) == parents


def test_a_session_over_a_fork_is_its_parents(spec: SQLSpec, database: Database) -> None:
    with spec.get_session("primary") as session:
        session.execute("INSERT INTO forked (name) VALUES ('parent')")

        def use() -> list[str]:
            told = []
            for attempt in (
                lambda: session.execute("SELECT 1"),
                session.commit,
                session.rollback,
                session.connection,
                lambda: session.load_rows("forked", [(1, "child")]),
                session.begin_nested,
                lambda: session.stream("SELECT 1"),
            ):
                try:
                    attempt()
                except ConnectionLost as error:
                    told.append(str(error))
            session.close()
            return [*told, *names(spec)]

        *told, last = in_child(use), session.execute("SELECT name FROM forked").scalar_one()
    (seen,) = told
    assert len(seen) == 7
    assert set(seen) == {seen[0]}
    assert f"checked out in process {os.getpid()}, which has forked" in seen[0]
    assert last == "parent"
    assert names(spec) == ["parent"]


def test_a_dbapi_connection_over_a_fork_is_its_parents(spec: SQLSpec) -> None:
    with spec.get_connection("primary") as connection:
        cursor = connection.cursor()
        cursor.execute("INSERT INTO forked (name) VALUES ('parent')")

        def use() -> int:
            refused = 0
            for attempt in (connection.cursor, connection.commit, lambda: cursor.execute("SELECT 1")):
                try:
                    attempt()
                except ConnectionLost:
                    refused += 1
            connection.close()
            return refused

        assert in_child(use) == 3
        connection.commit()
    assert names(spec) == ["parent"]


def test_a_connection_of_sqlalchemys_over_a_fork_is_its_parents(spec: SQLSpec) -> None:
    engine = spec.get_engine("primary")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO forked (name) VALUES ('parent')"))

        def use() -> str:
            with pytest.raises(ConnectionLost):
                connection.execute(sa.text("SELECT 1"))
            with pytest.raises(ConnectionLost):
                connection.commit()
            connection.close()
            del connection.__dict__["_dbapi_connection"]
            gc.collect()
            with engine.connect() as own:
                return str(own.execute(sa.text("SELECT count(*) FROM forked")).scalar_one())

        assert in_child(use) == "0"
    assert names(spec) == ["parent"]


@pytest.mark.parametrize("command_timeout", [None, 20.0])
def test_closing_a_connection_of_sqlalchemys_in_a_child_does_nothing(
    spec: SQLSpec, database: Database, command_timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    spec.register_config(database.config(command_timeout=command_timeout), name="other")
    with spec.get_engine("other").connect() as connection:
        connection.execute(sa.text("INSERT INTO forked (name) VALUES ('parent')"))

        def close() -> list[str]:
            connection.close()
            gc.collect()
            return caplog.messages

        assert in_child(close) == []
        connection.commit()
    assert names(spec) == ["parent"]


@pytest.mark.fault(42)
def test_a_child_takes_no_part_in_what_its_parents_threads_hold(spec: SQLSpec, database: Database) -> None:
    pool: Any = spec.get_engine("primary").pool
    manager: Any = spec._managers["primary"]
    locks = [pool._overflow_lock, pool._pool.tally._lock, manager._lock, spec._lock]
    for lock in locks:
        lock.acquire()
    try:
        child = Child(lambda: (backend(spec, database), spec.get_pool_stats("primary").total, spec.list_configs()))
    finally:
        for lock in locks:
            lock.release()
    assert child.result()[1:] == (1, ["primary"])


@pytest.mark.fault(41)
def test_workers_of_multiprocessing_share_nothing(spec: SQLSpec, database: Database) -> None:
    parents = backend(spec, database)
    with multiprocessing.get_context("fork").Pool(3) as workers:
        found = workers.starmap(_work, [(database.name, number) for number in range(30)])
    assert found == [[str(number)] for number in range(30)]
    assert backend(spec, database) == parents


_inherited: dict[str, SQLSpec] = {}


@pytest.fixture(autouse=True)
def inherited(request: pytest.FixtureRequest) -> Iterator[None]:
    if "spec" in request.fixturenames:
        _inherited["spec"] = request.getfixturevalue("spec")
    yield
    _inherited.clear()


def _work(_name: str, number: int) -> list[str]:
    with _inherited["spec"].get_session("primary") as session:
        return [str(session.execute("SELECT ?", (number,)).scalar_one())]


ENDS = """
import gc, os, sys
from sqlspec import SQLSpec
from sqlspec.adapters import *
spec = SQLSpec()
spec.register_config({config}, name="primary")
held = spec.get_session("primary")
held.execute("INSERT INTO forked (name) VALUES ('parent')")
with spec.get_session("primary") as other:
    before = other.execute({who!r}).scalar_one()
if os.fork() == 0:
    with spec.get_session("primary") as session:
        session.execute("SELECT 1")
    sys.exit(0)
assert os.wait()[1] == 0
held.commit()
held.close()
with spec.get_session("primary") as other:
    assert other.execute("SELECT count(*) FROM forked").scalar_one() == 1
assert spec.get_pool_stats("primary").closed.get("disconnect") is None
spec.close()
print("ended well")
"""


@pytest.mark.fault(43)
def test_the_normal_end_of_a_child_ends_nothing_of_its_parents(spec: SQLSpec, database: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(config=database.as_code(), who=WHO[database.name])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "ended well\n", done.stderr
    assert names(spec) == ["parent"]


PRELOADED = """
import os
from sqlspec import SQLSpec
from sqlspec.adapters import *
spec = SQLSpec()
spec.register_config({config}, name="primary")

def backend():
    with spec.get_session("primary") as session:
        return session.execute({who!r}).scalar_one()

preloaded = backend()

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{os.getpid()}} {{backend()}} {{preloaded}}".encode()]
"""


@pytest.mark.fault(41)
def test_preloaded_workers_of_gunicorn_share_no_connection(spec: SQLSpec, database: Database, tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text(PRELOADED.format(config=database.as_code(), who=WHO[database.name]))
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w4", "--threads=2", "-b", place, "preloaded:app"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            answers = set()

            def ask() -> bool:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{place}/", timeout=10) as answer:
                    answers.add(tuple(map(int, answer.read().split())))
                return len({worker for worker, _, _ in answers}) == 4

            wait_until(ask, seconds=30)
            for _ in range(100):
                ask()
        finally:
            server.terminate()
    if database.name != "sqlite":
        (preloaded,) = {preloaded for _, _, preloaded in answers}
        owners = {own: worker for worker, own, _ in answers}
        assert {(worker, own) for own, worker in owners.items()} == {(worker, own) for worker, own, _ in answers}
        assert preloaded not in owners


def test_files_of_sqlites_are_not_open_over_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "app.db"

    def open_files() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith(str(path)) for link in links if os.path.lexists(link))

    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(path)))
        with spec.get_session() as session:
            session.execute("CREATE TABLE forked (id INTEGER PRIMARY KEY, name TEXT)")
        assert open_files() > 0
        assert in_child(open_files) == 0
        with spec.get_session() as session:
            session.execute("INSERT INTO forked (name) VALUES ('still here')")


def test_a_connection_that_is_just_being_checked_out_closes_for_a_fork_when_it_comes_back(tmp_path: Path) -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=str(tmp_path / "app.db")))
        with spec.get_session() as session:
            session.execute("SELECT 1")
        pool: Any = spec.get_engine().pool
        # as another thread has it that is interrupted here
        taken = pool._pool.take()
        pool.before_fork(0.0)
        assert taken.dbapi_connection.cursor().execute("SELECT 1").fetchone() == (1,)
        pool._do_return_conn(taken)
        assert taken.dbapi_connection is None
        with spec.get_session() as session:
            assert session.execute("SELECT 2").scalar_one() == 2


def test_a_creator_may_give_a_connection_that_does_not_tell_its_file() -> None:
    class Odd(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            raise ValueError("not now")

    pool = FairQueuePool(
        lambda: sqlite3.connect(":memory:", factory=Odd), dialect=sa.create_engine("sqlite://").dialect
    )
    lent = pool.connect()
    assert isinstance(lent.dbapi_connection, Odd)
    lent.close()
    # no child may have a copy of what may be a file
    pool.before_fork(0.0)
    assert pool.checkedin() == 0
    pool.dispose()


def test_a_database_in_memory_is_copied_to_the_child() -> None:
    with SQLSpec() as spec:
        spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
        with spec.get_session("primary") as session:
            session.execute("CREATE TABLE forked (id INTEGER PRIMARY KEY, name TEXT)")

        def write() -> list[str]:
            with spec.get_session("primary") as session:
                session.execute("INSERT INTO forked (name) VALUES ('child')")
            return names(spec)

        assert in_child(write) == ["child"]
        assert names(spec) == []


def test_a_child_of_a_running_loop_has_loops_of_its_own(database: Database) -> None:
    async def who(spec: SQLSpec) -> int:
        async with spec.get_async_session("primary") as session:
            return int(await session.execute(WHO[database.name]).scalar_one())

    async def fork_in_between(spec: SQLSpec) -> None:
        before = await who(spec)
        child = await asyncio.to_thread(lambda: Child(lambda: asyncio.run(who(spec))))
        own = await asyncio.to_thread(child.result)
        assert await who(spec) == before
        if database.name != "sqlite":
            assert own != before
        await spec.aclose()

    spec = SQLSpec()
    spec.register_config(database.config(), name="primary")
    asyncio.run(fork_in_between(spec))
