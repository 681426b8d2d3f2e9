"""Isolation of tests: what they do to a database is undone, commits included."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters import Driver, driver_for
from sqlspec.adapters.shield import shield
from sqlspec.config import NoPoolSyncConfig
from sqlspec.engine import borrow, discard
from sqlspec.exceptions import ConfigError, SQLSpecWarning
from sqlspec.manager import EngineSource, PooledConnectionManager
from sqlspec.registry import SQLSpec

__all__ = ["aisolated", "is_isolated", "isolated"]

# What the pool of an isolated engine has of its own.
_IS_ISOLATED = "connect"
_BEGIN = {"mysql": "START TRANSACTION", "sqlite": "BEGIN"}


@contextlib.contextmanager
def isolated(spec: SQLSpec) -> Iterator[None]:
    """Undo at the end of the ``with`` block what it has done to the databases of a registry, commits included.

    Each database has one connection for the block, with a transaction that is rolled back. Sessions, connections and
    engines of the registry share it, whoever has them: a commit of theirs releases a savepoint, a rollback goes back to
    it. So they must come one after the other, or one within the other, and in one thread at a time. Everything runs
    in one transaction, whatever isolation level and read_only say; under autocommit, an error on PostgreSQL undoes what
    the same session ran before. What MySQL commits by itself, as changes of the schema, stays, and ends the isolation
    with an error. Sessions of tasks are not isolated (`aisolated` does that), nor is what is checked out before the
    block. What is open at its end loses its connection, with a warning.

    Raises:
        ConfigError: the registry is isolated already.
        sqlalchemy.exc.DBAPIError: a database cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        _isolate(stack, spec, is_async=False)
        yield


@contextlib.asynccontextmanager
async def aisolated(spec: SQLSpec) -> AsyncIterator[None]:
    """Undo at the end of the ``async with`` block what it has done to the databases of a registry, as `isolated`.

    That is said of the sessions, connections and engines of the running event loop, in one task at a time. A session of
    a task that is cancelled goes back to its savepoint; with asyncmy, which cannot end a statement, the connection is
    closed with it, and the isolation is of no use any more. Sessions of threads are not isolated: put `isolated` around
    it for these, which have another connection and do not see what is written here.

    Raises:
        ConfigError: the registry is isolated already on this loop.
        sqlalchemy.exc.DBAPIError: a database cannot be reached.
    """
    stack = contextlib.ExitStack()
    try:
        await greenlet_spawn(_isolate, stack, spec, is_async=True)
        yield
    finally:
        with shield():
            await greenlet_spawn(stack.close)


def _isolate(stack: contextlib.ExitStack, spec: SQLSpec, *, is_async: bool) -> None:
    for name in spec.list_configs():
        manager = spec._manager(name)
        if _serves_tasks(manager.config) if is_async else not manager.config.is_async_only:
            stack.enter_context(_isolated(manager.source(is_async=is_async), name))


def _serves_tasks(config: NoPoolSyncConfig) -> bool:
    try:
        driver_for(config, is_async=True)
    except ConfigError:
        # which whoever wants a session of it is told
        return False
    return True


def is_isolated(manager: PooledConnectionManager) -> bool:
    """Tell whether a config is isolated at the moment."""
    source = manager.known_source()
    return source is not None and _IS_ISOLATED in vars(source.engine.pool)


@contextlib.contextmanager
def _isolated(source: EngineSource, name: str) -> Iterator[None]:
    engine, driver = source.engine, source.driver
    if _IS_ISOLATED in vars(engine.pool):
        raise ConfigError(f"{name!r} is isolated already: leave that block first")
    proxy = source.check_out(None)
    try:
        borrow(proxy, driver, autocommit=False)
        shared = _SharedConnection(proxy.dbapi_connection, driver, engine.dialect)
        try:
            shared.begin()
            with contextlib.ExitStack() as stack:
                _replace(stack, engine.pool, connect=shared.pool.connect)
                _replace(stack, driver, **shared.only_on_it(driver, shared.methods_of_driver()))
                _replace(stack, engine.dialect, **shared.only_on_it(engine.dialect, shared.methods_of_dialect()))
                yield
        finally:
            if shared.is_unknown:
                discard(proxy)
            else:
                driver.end(proxy.dbapi_connection, "rollback")
            if shared.end_for_all():
                # a commit of theirs would be a real one, on a connection that is somebody else's by then
                discard(proxy)
                if driver.is_async:
                    await_only(driver.finish_closing())
                warnings.warn(
                    f"{name}: a session or connection is still open at the end of its isolation, and its connection "
                    "is closed: close it within the block",
                    SQLSpecWarning,
                    stacklevel=1,
                )
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
        # the savepoints of those who have it, the last one last, and whether they autocommit
        self._savepoints: dict[str, bool] = {}
        self._count = 0
        # whether it was given up in the middle of a statement, such as by a task that is cancelled
        self.is_unknown = False

    def begin(self) -> None:
        """Begin the transaction that will be rolled back."""
        if self._driver.syntax in _BEGIN:
            self._run(_BEGIN[self._driver.syntax])

    def end_for_all(self) -> bool:
        """Know of no savepoint any more; return whether somebody has one."""
        is_lent = bool(self._savepoints)
        self._savepoints.clear()
        return is_lent

    def only_on_it(self, owner: Any, methods: dict[str, Any]) -> dict[str, Any]:
        """Return methods that do something else on this connection, and what the owner's do on those from before."""

        def choose(method: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
            def chosen(connection: Any, *arguments: Any) -> Any:
                is_shared = getattr(connection, "dbapi_connection", connection) is self._connection
                return (method if is_shared else usual)(connection, *arguments)

            return chosen

        return {name: choose(method, getattr(owner, name)) for name, method in methods.items()}

    def methods_of_driver(self) -> dict[str, Any]:
        """Return what begins and ends transactions instead of a driver's own."""
        recover = self._driver.recover

        def recover_to_savepoint(connection: Any, cursor: Any) -> bool:
            undoing = _Undoing(self._connection, self.undo)
            recover(undoing, cursor)
            # the transaction goes on, which drivers do not expect
            return undoing.is_done

        return {
            "begin": _nothing,
            "end": lambda connection, how: self.end(how),
            "set_autocommit": lambda connection, enabled: self.set_autocommit(enabled),
            "restore": _nothing,
            "recover": recover_to_savepoint,
        }

    def methods_of_dialect(self) -> dict[str, Any]:
        """Return what begins and ends transactions instead of a dialect's own."""
        return {
            "do_begin": _nothing,
            "do_commit": lambda proxy: self.end("commit"),
            "do_rollback": lambda proxy: self.end("rollback"),
            "set_isolation_level": lambda connection, level: self.set_autocommit(level == "AUTOCOMMIT"),
            "reset_isolation_level": lambda connection: self.set_autocommit(self._driver.autocommit),
        }

    def enter(self) -> str:
        """Set a savepoint for somebody; return its name."""
        self._count += 1
        savepoint = f"sqlspec_isolated_{self._count}"
        self._run(f"SAVEPOINT {savepoint}")
        self._savepoints[savepoint] = self._driver.autocommit
        return savepoint

    def leave(self, savepoint: str, *, is_lost: bool) -> None:
        """Undo what is not committed, when somebody is done; who came later is not, and goes on."""
        if is_lost or savepoint != self._last:
            self._savepoints.pop(savepoint, None)
            return
        # an error in autocommit has undone what ran before it, and was raised then
        with contextlib.suppress(Exception):
            self.end("commit" if self._savepoints[savepoint] else "rollback")
        del self._savepoints[savepoint]
        self._run(f"RELEASE SAVEPOINT {savepoint}")

    def set_autocommit(self, enabled: bool) -> None:
        """Know whether who came last autocommits."""
        last = self._last
        if last is not None and enabled is not self._savepoints[last]:
            self.end("commit")
            self._savepoints[last] = enabled

    @property
    def _last(self) -> str | None:
        return next(reversed(self._savepoints), None)

    def end(self, how: Literal["commit", "rollback"]) -> None:
        """Keep or undo what ran since the last savepoint; under autocommit, nothing can be undone."""
        savepoint = self._last
        if savepoint is None or (how == "rollback" and self._savepoints[savepoint]):
            return
        if how == "rollback":
            self.undo()
            return
        try:
            self._run(f"RELEASE SAVEPOINT {savepoint}")
        except Exception:
            # of an error before, which has aborted the transaction
            self.undo()
            raise
        self._run(f"SAVEPOINT {savepoint}")

    def undo(self) -> None:
        """Go back to the last savepoint."""
        self._run(f"ROLLBACK TO SAVEPOINT {self._last}")

    def _run(self, statement: str) -> None:
        try:
            with contextlib.closing(self._connection.cursor()) as cursor:
                cursor.execute(statement)
        except BaseException as error:
            self.is_unknown |= not isinstance(error, Exception)
            raise


class _Undoing:
    """Be the shared connection to who ends a statement on it, and would roll everything back."""

    def __init__(self, connection: Any, undo: Callable[[], None]) -> None:
        self._connection = connection
        self._undo = undo
        self.is_done = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def rollback(self) -> None:
        self._undo()
        self.is_done = True


class _SharedPool(NullPool):
    """Be where everybody gets the shared connection."""

    def __init__(self, shared: _SharedConnection, connection: Any, dialect: Any) -> None:
        super().__init__(lambda: connection, reset_on_return=None, dialect=dialect)
        self._shared = shared

    def _do_get(self) -> Any:
        record: Any = super()._do_get()
        record.record_info["savepoint"] = self._shared.enter()
        # the engine's own pool asks this of a connection that is lost: it says nothing of those in that pool
        record.expires_at = -math.inf
        return record

    def _do_return_conn(self, record: Any) -> None:
        self._shared.leave(record.record_info.pop("savepoint"), is_lost=record.dbapi_connection is None)
        super()._do_return_conn(record)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        # it is closed by nobody but its own pool
        return
