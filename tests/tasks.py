"""The asynchronous interface, called as the synchronous one: so that the same tests say what both do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from sqlspec import AsyncConnection, AsyncCursor, AsyncSavepoint, AsyncSession, PendingResult, SQLSpec

_WRAPPED = (AsyncConnection, AsyncCursor, AsyncSavepoint, AsyncSession)


class Loop:
    """Run coroutines in the event loop of a thread, each as a task of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="tests-loop", daemon=True)
        self._until: asyncio.Event | None = None
        started = threading.Event()
        self._started = started
        self._thread.start()
        started.wait(20)

    def _run(self) -> None:
        async def wait() -> None:
            self._until = asyncio.Event()
            self._started.set()
            await self._until.wait()

        with self._runner as runner:
            runner.run(wait())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(40)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function where the loop runs; await what it returns, where that can be awaited."""

        async def call() -> Any:
            result = function(*arguments, **options)
            return await result if asyncio.iscoroutine(result) or isinstance(result, PendingResult) else result

        result = self.run(call())
        return InTasks(self, result) if isinstance(result, _WRAPPED) else result

    def end(self) -> None:
        assert self._until is not None
        self.loop.call_soon_threadsafe(self._until.set)
        self._thread.join(20)


class InTasks:
    """Be an asynchronous object whose methods wait by themselves, each in a task."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self.__dict__.update(_loop=loop, _inner=inner)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if isinstance(value, _WRAPPED):
            return InTasks(self._loop, value)
        return (lambda *a, **o: self._loop.call(value, *a, **o)) if callable(value) else value

    def __enter__(self) -> Any:
        self._loop.call(self._inner.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return self._loop.call(self._inner.__aexit__, kind, error, trace)


class RegistryInTasks:
    """Be a registry whose sessions and connections are the asynchronous ones."""

    def __init__(self, loop: Loop, registry: SQLSpec) -> None:
        self._loop = loop
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def get_session(self, *arguments: Any, **options: Any) -> Any:
        return self._loop.call(self._registry.get_async_session, *arguments, **options)

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        # checked out by the call, as the synchronous one
        connection = self._loop.call(self._registry.get_async_connection, *arguments, **options)
        return _Entered(connection)

    def create_connection(self, *arguments: Any, **options: Any) -> Any:
        return self.get_connection(*arguments, **options)._connection

    def run_transaction(self, name: str, fn: Callable[[Any], Any], **options: Any) -> Any:
        async def call(session: AsyncSession) -> Any:
            return await asyncio.to_thread(fn, InTasks(self._loop, session))

        return self._loop.call(self._registry.arun_transaction, name, call, **options)

    def get_engine(self, name: str = "default") -> Any:
        return self._loop.call(self._registry.get_async_engine, name).sync_engine

    def _get_pool(self, name: str = "default") -> Any:
        return self.get_engine(name).pool

    def close(self, timeout: float | None = None) -> None:
        self._loop.call(self._registry.aclose, timeout)


class _Entered:
    def __init__(self, connection: Any) -> None:
        self._connection = connection.__enter__()

    def __enter__(self) -> Any:
        return self._connection

    def __exit__(self, *arguments: Any) -> Any:
        return self._connection.__exit__(*arguments)
