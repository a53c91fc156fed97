"""How many requests may be at a server: a fixed bound, and below it what the server can take.

A server tells that in two ways. By its answers: 429 (the detector's queue is full) or 503 (vLLM's is, whose length the
presets bound with max-num-queued-reqs). And beforehand by its metrics, where they can be read: how many requests it
runs, and how many wait for that. A short queue is wanted, since it keeps the server's batches full; in a long one
requests only spend their time limit, and so do those of others who share the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

# A server that refuses gets this share of the requests from then on, and one more for each round of answers. Additive
# increase and multiplicative decrease is what lets many clients share a server (Chiu and Jain, 1989; TCP's choice). The
# increase grows by one with each round without a refusal, in the way of H-TCP: from 1 to 256 it is 26 rounds, not 255.
DECREASE = 0.7

# As many requests may wait in the server as it runs: whatever ends is followed at once, even if all end together.
WAITING_PER_RUNNING = 1.0

# So many requests are a long queue for nobody. It also is what is left beside others who queue without end.
LEAST_IN_QUEUE = 8


class Slots:
    """At most `most` requests in flight; fewer while the server refuses some for being too many, or lets many wait.

    Use as an asynchronous context manager around one request; what that gives goes back with `refused`. Belongs to one
    event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_flight = 0
        self._taken = float(most)
        """What the server took without refusing any."""
        self._queued = float(most)
        """With so many its queue is not too long."""
        self._cuts = 0
        self._rounds = 0.0
        """Rounds of answers since the last refusal."""
        self._room = 1.0
        """By which factor there was room for more, or too little, when the queue was last looked at."""
        self._regain = 0.0
        """Below this the limit grows fast: the server had as many before it died, and did not mind."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> float:
        """The requests that may be in flight now; the whole ones of them count."""
        return min(self._taken, self._queued)

    async def __aenter__(self) -> int:
        """Wait for a free slot and take it; first come, first served. Gives the number of the round it is sent in."""
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return self._cuts
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever gives a slot away has counted it for us
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.in_flight -= 1
                self._admit()
            raise
        return self._cuts

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
        """The server took a request: a round of answers allows some more, and after its death each of them does."""
        self._rounds += 1 / self._taken
        more = 1.0 if self._taken < self._regain else max(self._rounds, 1.0) / self._taken
        self._taken = min(self._taken + more, float(self.most))

    def died(self) -> None:
        """The server went down under the requests in flight: one of them may be why. Send few, so that it is soon
        alone, and does not take others' attempts."""
        self._regain, self._rounds = self.limit, 0.0
        self._taken = max(self.limit / 8, 1.0)

    def refused(self, sent_in: int) -> None:
        """The server had too many requests in the round in which this one was sent: allow fewer, once for the round.

        Those that were sent before the last cut tell nothing new: a full queue refuses all that come at that moment.
        """
        if sent_in != self._cuts:
            return
        self._cuts += 1
        self._taken = max(self.limit * DECREASE, 1.0)
        self._regain = self._rounds = 0.0

    def queue(self, running: float, waiting: float) -> None:
        """The server says how many requests it runs and how many wait: allow as many as leave a short queue.

        Others' requests are among them: all who share the server change their own by the same factor. It is that of
        what is in flight and not of the limit, which a queue that is being worked off may be far above. A queue counts
        as long when it was so twice, by the shorter one: when requests end together, the next ones wait for a moment.
        """
        if waiting and not running:
            return  # it has not begun, or stands still: how much it can do is not to be seen
        before, total = self._room, running + waiting
        self._room = (1 + WAITING_PER_RUNNING) * running / total if total else 1 + WAITING_PER_RUNNING
        if self._room >= 1:
            self._queued = min(max(self._queued, self.in_flight * self._room), float(self.most))
        elif before < 1:
            self._queued = min(max(self.in_flight * max(before, self._room), LEAST_IN_QUEUE), float(self.most))
        self._admit()
