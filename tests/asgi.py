"""An application served by uvicorn, and clients of it that may go away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
