"""TCP proxies for what only tests want to know or break."""

from __future__ import annotations

import re
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


class LosingProxy(FaultProxy):
    """End the connection in the place of the next message with a text, which the server never gets."""

    lost: str | None = None

    def _passing(self, link: Any, data: bytes, is_answer: bool) -> bytes:
        if not is_answer and self.lost is not None and re.search(rb"\b" + self.lost.encode(), data, re.IGNORECASE):
            self.lost = None
            self._fire("lost")
            return b""
        return super()._passing(link, data, is_answer)
