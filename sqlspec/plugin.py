"""``?plugin=sqlspec``: our pool under any engine that SQLAlchemy makes, by a word in its URL."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from sqlalchemy import URL, Engine
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool

from sqlspec.config.base import Frozen, Seconds
from sqlspec.pool import BEYOND_QUEUEPOOL, AsyncFairQueuePool, FairQueuePool, NestedCheckout, follow_statements

__all__ = ["PluginOptions", "SQLSpecPlugin"]

_PREFIX = "sqlspec_"
_OURS: dict[type[Pool], type[Pool]] = {QueuePool: FairQueuePool, AsyncAdaptedQueuePool: AsyncFairQueuePool}


class PluginOptions(Frozen):
    """Name the options that a URL may carry for the pool; SQLAlchemy's own stay arguments of ``create_engine``.

    Attributes:
        sqlspec_max_waiters: how many callers may wait for a connection; more are refused at once.
        sqlspec_nested_checkout: what becomes of a thread or task that asks for another connection while it holds
            one: ``allow``, ``warn`` (in the log, once a place) or ``refuse``.
        sqlspec_leak_seconds: log a connection that is checked out for longer, once.
        sqlspec_linger_seconds: how long overflow connections stay that are not needed; 0: as long as they are used.
        sqlspec_open_aside: connect for waiting callers in the background; they take what comes first.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    _example: ClassVar[str] = "?plugin=sqlspec&sqlspec_leak_seconds=30"

    sqlspec_max_waiters: int | None = Field(default=None, ge=0)
    sqlspec_nested_checkout: NestedCheckout = "warn"
    sqlspec_leak_seconds: Seconds | None = None
    sqlspec_linger_seconds: float = Field(default=BEYOND_QUEUEPOOL["linger_seconds"], ge=0, le=86400)
    sqlspec_open_aside: bool = BEYOND_QUEUEPOOL["open_aside"]


class SQLSpecPlugin(CreateEnginePlugin):
    """Put FairQueuePool in the place of QueuePool, where an engine would have one.

    A pool that is asked for (``pool``, ``poolclass``), and the pools that a dialect chooses for a reason of its own
    (SQLite in memory), stay as they are.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        self._url = url
        self._arguments = kwargs
        self._keys = [key for key in url.query if key.startswith(_PREFIX)]
        given: dict[str, Any] = {key: url.query[key] for key in self._keys}
        self._options = PluginOptions(**given)

    def update_url(self, url: URL) -> URL:
        """Return the URL without our options."""
        return url.difference_update_query(self._keys)

    def handle_dialect_kwargs(self, dialect_cls: type[Any], dialect_args: dict[str, Any]) -> None:
        """Choose the pool, now that the dialect is known."""
        if self._arguments.get("poolclass") is None and self._arguments.get("pool") is None:
            usual = dialect_cls.get_pool_class(self._url)
            if usual in _OURS:
                self._arguments["poolclass"] = _OURS[usual]

    def handle_pool_kwargs(self, pool_cls: type[Pool], pool_args: dict[str, Any]) -> None:
        """Add our options to the arguments of the pool."""
        if issubclass(pool_cls, FairQueuePool):
            given = {name.removeprefix(_PREFIX): value for name, value in self._options}
            pool_args.update({**BEYOND_QUEUEPOOL, **given, **pool_args})

    def engine_created(self, engine: Engine) -> None:
        """Follow the statements of the engine, so that holders can be told by them."""
        if isinstance(engine.pool, FairQueuePool):
            follow_statements(engine)
