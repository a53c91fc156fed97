"""The adaptive limiter: how many requests may be at a server.

There is a fixed bound, and below it the server decides, in two ways. By its answers: 429 (the detector's queue is full)
or 503 (vLLM's queue, whose length the presets bound by max-num-queued-reqs). And earlier by its metrics, where they can
be read: how many requests it runs, and how many wait. A short queue is wanted: it keeps the server's batches full. In a
long queue requests only use up their time limit, and so do those of others who share the server.
"""

from __future__ import annotations

import asyncio
from collections import deque

# After a refusal the server gets this share of the requests, and one more for each round of answers. Additive increase
# and multiplicative decrease let many clients share a server (Chiu and Jain, 1989; TCP does the same). The increase
# grows by one with each round without a refusal, as in H-TCP: from 1 to 256 takes 26 rounds, not 255.
DECREASE = 0.7

# As many requests may wait in the server as it runs: each one that ends is followed at once, even if all end together.
WAITING_PER_RUNNING = 1.0

# Never throttle below 8 requests for a queue: that is a short queue for any server, and a share beside clients that do
# not throttle.
LEAST_IN_QUEUE = 8


class AdaptiveLimiter:
    """At most `most` requests in flight; fewer while the server refuses some for being too many, or queues many.

    `take` before each request, `give_back` after it; `refused` takes the `round` in which it was sent. Belongs to one
    event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.share = float(most)
        """Of these, what is this process' to use: several may ask the same server under one bound."""
        self.in_flight = 0
        self._taken = float(most)
        """The limit by refusals."""
        self._queued = float(most)
        """The limit by the server's queue."""
        self._cuts = 0
        self._rounds = 0.0
        """Rounds of answers since the last refusal."""
        self._room = 1.0
        """At the last look: by which factor the requests in flight could grow (above 1) or had to shrink."""
        self._regain = 0.0
        """Below this the limit grows fast: the server took as many before it died."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> float:
        """The requests that may be in flight now, a fraction until it is rounded down."""
        return min(self._taken, self._queued, self.share)

    @property
    def round(self) -> int:
        """The number of the round in which a request is sent now: how often the limit was cut."""
        return self._cuts

    @property
    def has_room(self) -> bool:
        """Whether one more request may be in flight."""
        return self.in_flight < int(self.limit)

    async def take(self) -> None:
        """Wait for a free slot and take it; first come, first served."""
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # `_admit` has counted it
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """A request has ended."""
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        """Let as many waiting requests go as the limit allows."""
        while self._waiting and self.has_room:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def grant(self, share: int) -> None:
        """Have at most so many requests in flight from now on."""
        self.share = float(share)
        self._admit()

    def answered(self) -> None:
        """The server took a request: each round of answers raises the limit, and after a death each answer does."""
        self._rounds += 1 / self._taken
        more = 1.0 if self._taken < self._regain else max(self._rounds, 1.0) / self._taken
        self._taken = min(self._taken + more, float(self.most))

    def died(self) -> None:
        """The server went down, perhaps by one of the requests in flight. Send few, so that this one is soon alone and
        does not use up the attempts of others."""
        self._regain, self._rounds = self.limit, 0.0
        self._taken = max(self.limit / 8, 1.0)

    def refused(self, sent_in: int) -> None:
        """The server refused a request for being one too many: cut the limit once for the round in which it was sent.

        Refusals of requests that were sent before the last cut tell nothing new: a full queue refuses many at once.
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
