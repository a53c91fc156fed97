"""How many requests may be at a server: a fixed bound, and below it what the server can take."""

from __future__ import annotations

import asyncio
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
        self.in_flight = 0
        self.peak = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        """Wait for a free slot and take it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.in_flight < max(1, int(self.limit)))
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back."""
        async with self._changed:
            self.in_flight -= 1
            self._changed.notify(2)  # the slot that is free, and the one that an answer may have added

    def answered(self) -> None:
        """The server took a request: allow one more after `limit` answers."""
        self.limit = min(self.limit + 1 / self.limit, float(self.most))

    def refused(self) -> None:
        """The server has too many requests: allow fewer."""
        self.limit = max(self.limit * DECREASE, 1.0)
