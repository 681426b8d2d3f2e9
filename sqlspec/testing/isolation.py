"""Isolation of tests: what they do to a database is undone, commits included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy.pool import NullPool

from sqlspec.adapters import Driver
from sqlspec.engine import borrow
from sqlspec.exceptions import ConfigError
from sqlspec.manager import EngineSource
from sqlspec.registry import SQLSpec

__all__ = ["isolated"]

_BEGIN = {"mysql": "START TRANSACTION", "sqlite": "BEGIN"}


@contextlib.contextmanager
def isolated(spec: SQLSpec) -> Iterator[None]:
    """Undo at the end of the ``with`` block what it has done to the databases of a registry, commits included.

    Each database has one connection for the block, with a transaction that is rolled back. Sessions, connections and
    engines of the registry share it, whoever has them: a commit of theirs releases a savepoint, a rollback goes back to
    it. So they must come one after the other, or one within the other, and in one thread at a time. Everything runs
    in one transaction, whatever autocommit, isolation level and read_only say. What MySQL commits by itself, as changes
    of the schema, stays. Sessions of tasks are not isolated.

    Raises:
        ConfigError: the registry is isolated already.
        sqlalchemy.exc.DBAPIError: a database cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        for name in spec.list_configs():
            manager = spec._manager(name)
            if not manager.config.is_async_only:
                stack.enter_context(_isolated(manager.source(), name))
        yield


@contextlib.contextmanager
def _isolated(source: EngineSource, name: str) -> Iterator[None]:
    engine, driver = source.engine, source.driver
    if "connect" in vars(engine.pool):
        raise ConfigError(f"{name!r} is isolated already: leave that block first")
    proxy = source.check_out(None)
    try:
        borrow(proxy, driver, autocommit=False)
        shared = _SharedConnection(proxy.dbapi_connection, driver, engine.dialect)
        shared.begin()
        try:
            with contextlib.ExitStack() as stack:
                _replace(stack, engine.pool, connect=shared.pool.connect)
                _replace(stack, driver, **shared.transactions(), set_autocommit=_nothing, restore=_nothing)
                _replace(stack, engine.dialect, **shared.transactions_of_proxies(), set_isolation_level=_nothing)
                _replace(stack, engine.dialect, reset_isolation_level=_nothing)
                yield
        finally:
            driver.end(proxy.dbapi_connection, "rollback")
    finally:
        proxy.close()


def _replace(stack: contextlib.ExitStack, owner: Any, **methods: Any) -> None:
    """Give one object methods of its own, until the stack ends."""
    before = vars(owner).copy()
    for name, method in methods.items():
        setattr(owner, name, method)
        if name in before:
            stack.callback(setattr, owner, name, before[name])
        else:
            stack.callback(delattr, owner, name)


def _nothing(*_: Any, **__: Any) -> None:
    return


class _SharedConnection:
    """Lend one connection to all who ask, each within a savepoint."""

    def __init__(self, connection: Any, driver: Driver, dialect: Any) -> None:
        self._connection = connection
        self._driver = driver
        self.pool = _SharedPool(self, connection, dialect)
        # the savepoints of those who have it, the last one last
        self._savepoints: list[str] = []
        self._count = 0

    def begin(self) -> None:
        """Begin the transaction that will be rolled back."""
        if self._driver.syntax in _BEGIN:
            self._run(_BEGIN[self._driver.syntax])

    def transactions(self) -> dict[str, Any]:
        """Return what begins and ends transactions instead of a driver's methods."""
        return {"begin": _nothing, "end": lambda connection, how: self.end(how)}

    def transactions_of_proxies(self) -> dict[str, Any]:
        """Return what begins and ends transactions instead of a dialect's methods."""
        return {
            "do_begin": _nothing,
            "do_commit": lambda proxy: self.end("commit"),
            "do_rollback": lambda proxy: self.end("rollback"),
        }

    def enter(self) -> str:
        """Set a savepoint for somebody; return its name."""
        self._count += 1
        savepoint = f"sqlspec_isolated_{self._count}"
        self._run(f"SAVEPOINT {savepoint}")
        self._savepoints.append(savepoint)
        return savepoint

    def leave(self, savepoint: str) -> None:
        """Undo what is not committed, when somebody is done; who came later is not, and goes on."""
        is_last = self._savepoints[-1] == savepoint
        self._savepoints.remove(savepoint)
        if is_last:
            self._run(f"ROLLBACK TO SAVEPOINT {savepoint}")
            self._run(f"RELEASE SAVEPOINT {savepoint}")

    def end(self, how: Literal["commit", "rollback"]) -> None:
        """Keep or undo what ran since the last savepoint."""
        if not self._savepoints:
            return
        savepoint = self._savepoints[-1]
        if how == "rollback":
            self._run(f"ROLLBACK TO SAVEPOINT {savepoint}")
            return
        try:
            self._run(f"RELEASE SAVEPOINT {savepoint}")
        except Exception:
            # of an error before, which has aborted the transaction
            self._run(f"ROLLBACK TO SAVEPOINT {savepoint}")
            raise
        self._run(f"SAVEPOINT {savepoint}")

    def _run(self, statement: str) -> None:
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(statement)


class _SharedPool(NullPool):
    """Be where everybody gets the shared connection."""

    def __init__(self, shared: _SharedConnection, connection: Any, dialect: Any) -> None:
        super().__init__(lambda: connection, reset_on_return=None, dialect=dialect)
        self._shared = shared

    def _do_get(self) -> Any:
        record: Any = super()._do_get()
        record.record_info["savepoint"] = self._shared.enter()
        return record

    def _do_return_conn(self, record: Any) -> None:
        self._shared.leave(record.record_info.pop("savepoint"))
        super()._do_return_conn(record)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        # it is closed by nobody but its own pool
        return
