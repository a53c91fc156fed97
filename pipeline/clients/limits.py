"""How many requests may be at a server: a fixed bound, and below it what the server can take.

A server tells that by its own answers: 429 (the detector's queue is full) or 503 (vLLM's is, whose length the presets
bound with max-num-queued-reqs). Metrics would tell a queue's length beforehand, but only vLLM's, only where they can be
reached, and a short queue in the server is wanted: it keeps the batches full.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

# A server that refuses gets this share of the requests from then on, and one more for each round of answers. Additive
# increase and multiplicative decrease is what lets many clients share a server (Chiu and Jain, 1989; TCP's choice).
DECREASE = 0.7


class Slots:
    """At most `most` requests in flight; fewer while the server refuses some for being too many.

    Use as an asynchronous context manager around one request. Belongs to one event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._regain = 0.0
        """Below this the limit grows fast: the server had as many before it died, and did not mind."""
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        """Wait for a free slot and take it; first come, first served."""
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever gives a slot away has counted it for us
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.in_flight -= 1
                self._admit()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        """Give free slots to those who wait."""
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def answered(self) -> None:
        """The server took a request: allow one more after `limit` answers, and after its death at once."""
        more = 1.0 if self.limit < self._regain else 1 / self.limit
        self.limit = min(self.limit + more, float(self.most))

    def died(self) -> None:
        """The server went down under the requests in flight: one of them may be why. Send few, so that it is soon
        alone, and does not take others' attempts."""
        self._regain = self.limit
        self.limit = max(self.limit / 8, 1.0)

    def refused(self) -> None:
        """The server has too many requests: allow fewer."""
        self.limit = max(self.limit * DECREASE, 1.0)
        self._regain = 0.0
