"""FaultProxy: a network between an application and its database, which breaks on command."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["FaultProxy"]

# SO_LINGER with no time: the other side is told with RST, in the middle of whatever it does
_AT_ONCE = struct.pack("ii", 1, 0)


class _Link:
    """Be one connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket, bytes_left: int | None) -> None:
        self.client, self.server = client, server
        self.bytes_left = bytes_left
        self.is_swallowed = False
        # the next answer does not come through
        self.loses_answer = False

    def end(self) -> None:
        """Cut it, for both sides."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            # close() alone would tell nobody as long as another thread reads
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class FaultProxy:
    """Forward connections to a database on TCP, until it is told to cut, swallow, delay or truncate them.

    Give the config `port` instead of the database's; the block of ``with`` starts and ends the proxy. Of TLS it
    sees no text. Thread-safe.

    Args:
        target: the port of the database.
        host: its host.

    Attributes:
        port: where the proxy listens, on 127.0.0.1.
        fired: how often each fault has hit, by the name of its method: a test of a fault asserts that it did.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._target = (host, target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.fired: Counter[str] = Counter()
        # Guards _links and fired, from the threads of all connections.
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._is_over = self._is_refusing = self._swallows_all = False
        self._delay_seconds = 0.0
        self._budget: Callable[[], int] | None = None
        self._truncated: int | None = None
        self._lost_answer: re.Pattern[bytes] | None = None

    def __repr__(self) -> str:
        return f"<FaultProxy on {self.port}, {len(self._links)} connections, fired {dict(self.fired)}>"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            # close() alone would not wake who accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._is_over = True
        self._end_all()

    # -- faults

    def cut(self) -> None:
        """End all connections there are, at once; later ones work."""
        self._fire("cut", self._end_all())

    def refuse(self) -> None:
        """End all connections there are, and let no other through, until `heal`."""
        self._is_refusing = True
        self._fire("refuse", self._end_all())

    def swallow(self, *, later_ones: bool = False) -> None:
        """Let nothing through any more on the connections there are, or on all until `heal`, and tell nobody."""
        self._swallows_all = later_ones
        for link in self._known():
            link.is_swallowed = True

    def delay(self, seconds: float) -> None:
        """Hold back all that the database says for so many seconds, until `heal`."""
        self._delay_seconds = seconds

    def truncate(self, length: int) -> None:
        """End the connection after so many bytes of the next thing that the database says."""
        self._truncated = length

    def cut_after(self, budget: Callable[[], int]) -> None:
        """End each connection that comes from now on after so many bytes in both directions, which this tells."""
        self._budget = budget

    def redirect(self, target: int) -> None:
        """Lead the connections that come from now on to another port, as an address does that moves in a failover."""
        self._target = (self._target[0], target)
        self._fire("redirect")

    def swallow_answer(self, text: str = "COMMIT") -> None:
        """Let the next message with this text through, and end its connection in the place of the answer."""
        # not SET AUTOCOMMIT
        self._lost_answer = re.compile(rb"\b" + re.escape(text.encode()), re.IGNORECASE)

    def heal(self) -> None:
        """Let everything through again, but for connections that something was swallowed of."""
        self._is_refusing = self._swallows_all = False
        self._delay_seconds = 0.0
        self._budget = self._truncated = self._lost_answer = None

    # -- threads

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        budget = None if self._budget is None else self._budget()
        try:
            if self._is_refusing:
                raise ConnectionRefusedError
            link = _Link(client, socket.create_connection(self._target), budget)
        except OSError:
            self._fire("refuse", int(self._is_refusing))
            client.close()
            return
        with self._lock:
            # both are set before the connections that there are get ended
            is_late = self._is_over or self._is_refusing
            if not is_late:
                self._links.add(link)
        if is_late:
            link.end()
            return
        for is_answer in (False, True):
            threading.Thread(target=self._forward, args=(link, is_answer), name="fault-proxy", daemon=True).start()

    def _forward(self, link: _Link, is_answer: bool) -> None:
        source, sink = (link.server, link.client) if is_answer else (link.client, link.server)
        with contextlib.suppress(OSError):
            for end in (source, sink):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(65536):
                whole = len(data)
                data = self._passing(link, data, is_answer)
                sink.sendall(data)
                if len(data) < whole and not link.is_swallowed:
                    break
        with self._lock:
            self._links.discard(link)
        link.end()

    def _passing(self, link: _Link, data: bytes, is_answer: bool) -> bytes:
        """Return how much of this comes through; where it is less, the connection ends, or is a black hole."""
        if link.is_swallowed or self._swallows_all:
            link.is_swallowed = True
            self._fire("swallow")
            return b""
        if is_answer:
            data = self._answer(link, data)
        elif self._lost_answer is not None and self._lost_answer.search(data):
            self._lost_answer, link.loses_answer = None, True
        if link.bytes_left is not None:
            link.bytes_left -= len(data)
            if link.bytes_left < 0:
                self._fire("cut_after")
                return data[: link.bytes_left]
        return data

    def _answer(self, link: _Link, data: bytes) -> bytes:
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
            self._fire("delay")
        if link.loses_answer:
            self._fire("swallow_answer")
            return b""
        if self._truncated is not None and self._truncated < len(data):
            length, self._truncated = self._truncated, None
            self._fire("truncate")
            return data[:length]
        return data

    def _known(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _end_all(self) -> int:
        links = self._known()
        for link in links:
            link.end()
        return len(links)

    def _fire(self, name: str, times: int = 1) -> None:
        with self._lock:
            self.fired[name] += times
