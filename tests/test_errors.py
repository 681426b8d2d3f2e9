"""The page of errors says what the code says, and what is on it is raised."""

from __future__ import annotations

import ast
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import exc

import sqlspec
from sqlspec import CircuitBreaker, SQLSpec, exceptions, with_connection_fallback
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig
from sqlspec.pool import FairQueuePool
from sqlspec.testing import ScriptedDriver, isolated
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
MISTAKES = (ROOT / "docs" / "reference" / "mistakes.md").read_text("utf-8")
CLASSES = dict(re.findall(r"^\| `(\w+)` \| (?:`([\w.]+)`)? ?\|", PAGE.partition("## Messages")[0], re.MULTILINE))
MESSAGES = re.findall(r"^\| `(\w+)` \| `([^|]+)` \|", PAGE.partition("## Messages")[2], re.MULTILINE)
# what a use is refused with in SQLAlchemy's name; each ConfigError is on the page of mistakes
_OTHERS = {"InvalidRequestError", "PendingRollbackError", "ResourceClosedError"}
_OWN = {name for name in exceptions.__all__ if isinstance(getattr(exceptions, name), type)} - {"ConfigError"}


def _pieces(message: str) -> list[str]:
    return [piece for part in re.split(r"…|\(\)|[,:;] ", message) if len(piece := part.strip(" :;,.()'")) > 2]


def _template(node: ast.expr) -> str | None:
    """Return a string of the code, with … where it has values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def _raised() -> Iterator[tuple[str, str]]:
    """Return each class and message that the code has, whose text stands in the call or has a name there."""
    for path in (ROOT / "sqlspec").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        named: dict[str, list[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and (text := _template(node.value)):
                for target in node.targets:
                    named.setdefault(ast.unparse(target), []).append(text)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            kind = ast.unparse(node.func).rpartition(".")[2]
            if kind == "warn" and len(node.args) > 1:
                kind = ast.unparse(node.args[1])
            if kind in _OWN | _OTHERS:
                text = _template(node.args[0])
                yield from ((kind, told) for told in ([text] if text else named.get(ast.unparse(node.args[0]), [])))


def test_every_error_of_the_library_is_on_the_page_with_what_it_also_is() -> None:
    assert set(CLASSES) == _OWN | {"ConfigError"}
    for name, also in CLASSES.items():
        kind = getattr(exceptions, name)
        assert getattr(sqlspec, name) is kind
        bases = {f"{base.__module__}.{base.__name__}".removeprefix("builtins.") for base in kind.__mro__}
        assert not also or also in bases | {base.__name__ for base in kind.__mro__}, name


def test_every_message_of_the_code_is_on_the_page() -> None:
    raised = list(_raised())
    assert len(raised) > 25
    for kind, told in raised:
        on_page = [message for known, message in MESSAGES if known == kind]
        assert all(any(piece in message for message in [*on_page, MISTAKES]) for piece in _pieces(told)), (kind, told)


def test_every_message_on_the_page_is_one_of_the_code() -> None:
    texts = [
        text
        for path in (ROOT / "sqlspec").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.expr) and (text := _template(node))
    ]
    assert len(MESSAGES) > 30
    for _, message in MESSAGES:
        for piece in _pieces(message):
            assert any(piece in text for text in texts), piece


def _exhausted(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0)
    with contextlib.closing(pool.connect()):
        pool.connect(timeout=0.01)


def _connects_too_long(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=2, open_aside=True)
    with contextlib.closing(pool.connect()):
        released = driver.hang("connect")
        try:
            pool.connect(timeout=0.05)
        finally:
            released.set()
            wait_until(lambda: pool.stats().connecting == 0)


def _too_many_wait(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, pool_size=1, max_overflow=0, max_waiters=0)
    with contextlib.closing(pool.connect()):
        pool.connect()


def _silent_server(driver: ScriptedDriver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, SQLSpec() as spec:
        spec.register_config(PostgreSQLConfig(host="127.0.0.1", port=server.getsockname()[1], username="app"))
        spec.get_connection(timeout=0.2)


def _silent_ping(driver: ScriptedDriver) -> None:
    pool = driver.engine(ping_after=0, pool_size=1).pool
    pool.connect().close()
    driver.slow("ping", 0.1)
    driver.fail("ping")
    pool.connect(timeout=0.05)


def _name_is_closed(driver: ScriptedDriver) -> None:
    spec = memory()
    manager = spec._manager("default")
    spec.close()
    manager.get_connection()


def _registry_is_closed(driver: ScriptedDriver) -> None:
    spec = memory()
    spec.close()
    spec.get_session()


def _pool_is_closed(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect)
    pool.close()
    pool.connect()


def _nested(driver: ScriptedDriver) -> None:
    pool = FairQueuePool(driver.connect, nested_checkout="refuse")
    with contextlib.closing(pool.connect()):
        pool.connect()


def _circuit_is_open(driver: ScriptedDriver) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    breaker.record_failure(ConnectionRefusedError())
    breaker.call(driver.connect)


def _neither_has_one(driver: ScriptedDriver) -> None:
    with memory("primary") as spec:
        spec.register_config(SQLiteConfig(database=":memory:"), name="replica")
        with spec.get_connection("primary"), spec.get_connection("replica"):
            with_connection_fallback(spec, timeout=0.02).__enter__()


def _bad_row(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session() as session:
        session.execute("CREATE TABLE users (name TEXT NOT NULL)")
        session.load_rows("users", [("Alice",), (None,)], ["name"])


def _left_open(driver: ScriptedDriver) -> None:
    with memory() as spec, contextlib.ExitStack() as stack:
        block = isolated(spec)
        block.__enter__()
        stack.callback(spec.get_session().__enter__().close)
        session = spec.get_session()
        stack.callback(session._abandon)
        session.execute("SELECT 1")
        block.__exit__(None, None, None)


def _loads_from_itself(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session() as session:
        session.execute("CREATE TABLE users (name TEXT)")
        session.load_rows("users", ((session.execute("SELECT 1").scalar_one(),) for _ in range(2)), ["name"])


def _stream_ends(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session() as session:
        rows = iter(session.stream("VALUES (1), (2)", chunk_size=1))
        next(rows)
        session.commit()
        next(rows)


def _savepoint_ends_twice(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session() as session:
        session.execute("SELECT 1")
        savepoint = session.begin_nested()
        savepoint.commit()
        savepoint.commit()


def _transaction_ends_before_its_savepoint(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session() as session, session.begin_nested():
        session.commit()


def _begins_by_itself(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session(read_only=True) as session:
        session.execute("BEGIN")


def _loads_under_autocommit(driver: ScriptedDriver) -> None:
    with memory() as spec, spec.get_session(autocommit=True) as session:
        session.load_rows("users", [("Alice",)], ["name"])


def _streams_under_autocommit(driver: ScriptedDriver) -> None:
    with SQLSpec() as spec:
        spec.register_config(PostgreSQLConfig(host="127.0.0.1"))
        with spec.get_session(autocommit=True) as session:
            session.stream("SELECT 1")


def memory(name: str = "default") -> SQLSpec:
    spec = SQLSpec()
    spec.register_config(SQLiteConfig(database=":memory:"), name=name)
    return spec


# what needs no server; what does is quoted by the tests that have one, and a run of each mistake by its page
PROVOKED: dict[str, Callable[[ScriptedDriver], None]] = {
    "QueuePool limit": _exhausted,
    "connecting takes too long": _connects_too_long,
    "… callers wait": _too_many_wait,
    "connecting took longer": _silent_server,
    "the server did not answer": _silent_ping,
    "… is closed: register": _name_is_closed,
    "this registry is closed": _registry_is_closed,
    "the pool is closed": _pool_is_closed,
    "… asks for another": _nested,
    "… is … after": _circuit_is_open,
    "no connection within": _neither_has_one,
    "… for … cannot be loaded": _bad_row,
    "…: a session or connection is still open": _left_open,
    "load_rows() is under way": _loads_from_itself,
    "This stream was closed": _stream_ends,
    "this savepoint has been released": _savepoint_ends_twice,
    "the transaction of this savepoint": _transaction_ends_before_its_savepoint,
    "this session begins its transactions": _begins_by_itself,
    "load_rows() needs": _loads_under_autocommit,
    "stream() needs": _streams_under_autocommit,
}
# what takes a server that answers in the very moment that the deadline ends
BY_CHANCE = ("making it read only took longer",)


@pytest.mark.parametrize("begin", PROVOKED)
def test_a_message_of_the_page_is_raised(begin: str, driver: ScriptedDriver) -> None:
    ((kind, message),) = [(kind, told) for kind, told in MESSAGES if told.startswith(begin)]
    with pytest.raises(getattr(exceptions, kind, None) or getattr(exc, kind)) as caught:
        PROVOKED[begin](driver)
    text = ".*".join(map(re.escape, message.split("…")))
    assert re.fullmatch(f"(default: )?{text}.*", str(caught.value), re.DOTALL)


def test_every_message_is_raised_by_a_test_or_on_the_page_of_mistakes() -> None:
    tests = {*(ROOT / "tests").glob("test_*.py")} - {Path(__file__)}
    others = MISTAKES + "".join(path.read_text("utf-8") for path in tests)
    for _, message in MESSAGES:
        is_known = any(message.startswith(begin) for begin in (*PROVOKED, *BY_CHANCE))
        assert is_known or any(piece in others for piece in _pieces(message) if piece.count(" ") > 1), message
