"""A TCP proxy that counts round trips."""

from __future__ import annotations

from typing import Any

from sqlspec.testing import FaultProxy


class CountingProxy(FaultProxy):
    """Count how often the client speaks after the server did."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        # both guarded by the proxy's own lock
        self.round_trips = 0
        self._client_spoke_last = False

    def _passing(self, link: Any, data: bytes, is_answer: bool) -> bytes:
        with self._lock:
            self.round_trips += not is_answer and not self._client_spoke_last
            self._client_spoke_last = not is_answer
        return super()._passing(link, data, is_answer)
