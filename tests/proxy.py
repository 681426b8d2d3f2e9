"""TCP proxies: one that counts round trips, one that becomes a black hole."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Forward connections to a local port."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink, is_client in ((client, server, True), (server, client, False)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._forward, args=(source, sink, is_client), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._passes(source, is_client):
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                # close() alone would tell nobody while the other thread reads
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _passes(self, source: socket.socket, is_client: bool) -> bool:
        """See what one side has said; tell whether the other hears of it."""
        return True


class CountingProxy(Proxy):
    """Count how often the client speaks after the server did."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        # Guards round_trips and _client_spoke_last.
        self._lock = threading.Lock()
        self.round_trips = 0
        self._client_spoke_last = False

    def _passes(self, source: socket.socket, is_client: bool) -> bool:
        with self._lock:
            self.round_trips += is_client and not self._client_spoke_last
            self._client_spoke_last = is_client
        return True


class BlackHole(Proxy):
    """Let nothing through any more, from some moment on, and say nothing about it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._known: set[socket.socket] = set()
        self._swallowed: set[socket.socket] = set()
        self.swallows_all = False
        # how often something was swallowed
        self.count = 0

    def swallow(self) -> None:
        """Swallow what the connections say that have said something so far; later ones work."""
        self._swallowed |= set(self._known)

    def end(self) -> None:
        """Hang up on whoever has said something so far."""
        for end in list(self._known):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _passes(self, source: socket.socket, is_client: bool) -> bool:
        self._known.add(source)
        is_lost = self.swallows_all or source in self._swallowed
        self.count += is_lost
        return not is_lost
