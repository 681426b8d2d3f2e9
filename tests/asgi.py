"""An application served by uvicorn, and clients of it that may go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import uvicorn

from tests.servers import wait_until


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve an application in a thread; give the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, name="tests-uvicorn")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), seconds=30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "uvicorn does not end"


class Client:
    """Be one request, of which the answer may be read or not."""

    def __init__(self, port: int, path: str, method: str = "GET") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        self._socket.sendall(head.encode())

    def read_until(self, text: bytes) -> bytes:
        """Read until this has come."""
        got = b""
        while text not in got:
            more = self._socket.recv(65536)
            assert more, got
            got += more
        return got

    def answer(self) -> tuple[int, Any]:
        """Read all; return the status and what the JSON says."""
        got = b""
        while more := self._socket.recv(65536):
            got += more
        self.close()
        head, _, body = got.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body) if b"application/json" in head else body

    def close(self) -> None:
        """Go away."""
        self._socket.close()


class CancelOnDisconnect:
    """Be middleware that cancels a request whose client has gone away; `cancelled` counts them.

    By anyio, which waits for threads and cancels each further await as well, by asyncio, which does neither, or by both
    in turn. It is for requests without a body.
    """

    def __init__(self, app: Any, how: Literal["anyio", "asyncio", "both"]) -> None:
        self._app = app
        self._how = how
        self._count = 0
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._count += 1
        how = ("anyio", "asyncio")[self._count % 2] if self._how == "both" else self._how
        await (self._by_anyio if how == "anyio" else self._by_asyncio)(scope, receive, send)

    async def _by_anyio(self, scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await self._gone(receive)
                self.cancelled += 1
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._app(scope, self._wait, send)
            group.cancel_scope.cancel()

    async def _by_asyncio(self, scope: Any, receive: Any, send: Any) -> None:
        request = asyncio.create_task(self._app(scope, self._wait, send))
        gone = asyncio.create_task(self._gone(receive))
        await asyncio.wait({request, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not request.done():
            self.cancelled += 1
            request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _wait(self) -> Any:
        await asyncio.Event().wait()
