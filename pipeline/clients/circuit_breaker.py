"""The circuit breaker: pauses all requests to a server that is away, and lets them go on when it is back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from pipeline.runtime.cancellation import CancellationToken

log = logging.getLogger(__name__)

# How often a server that is away is looked for: a restart takes seconds.
CHECK_S = 1.0


class CircuitBreaker:
    """Open while a server is away. One task looks for it while all requests wait, so that a restart meets no rush.

    `is_back` asks the server for a sign of life. After `limit_s` seconds without one the run is cancelled: the rows
    that wait would all fail for the same reason, and a later run does them. `others_s`: since how many seconds all
    other addresses of the service refuse requests (infinite without others); while one takes them, nobody waits.
    """

    def __init__(
        self,
        name: str,
        is_back: Callable[[], Awaitable[bool]],
        limit_s: float,
        cancellation: CancellationToken,
        others_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.name = name
        self.is_back = is_back
        self.limit_s = limit_s
        self.cancellation = cancellation
        self.others_s = others_s
        self.count = 0
        self.since: float | None = None
        """When it opened; None while it is closed."""
        self._closed = asyncio.Event()
        self._closed.set()
        self._watch: asyncio.Task[None] | None = None
        self._question: asyncio.Future[bool] | None = None

    def open(self, reason: str) -> None:
        """A request could not reach the server: hold the others."""
        if self.since is None:
            self.since = time.monotonic()
            self.count += 1
            log.warning("the %s is away: %s", self.name, reason)
            self._closed.clear()
            self._watch = asyncio.get_running_loop().create_task(self._look(reason))

    async def suspect(self, reason: str) -> bool:
        """A request got no answer: hold the others if the server shows no sign of life. Many requests call this.

        True for the one request whose call opened the breaker.
        """
        if self.since is None:
            if self._question is None or self._question.done():
                self._question = asyncio.ensure_future(self.is_back())
            if not await asyncio.shield(self._question) and self.since is None:
                self.open(reason)
                return True
        return False

    async def closed(self) -> None:
        """Return when the server is there.

        Raises:
            Cancelled: the run is ending.
        """
        await self._closed.wait()
        self.cancellation.check()

    def stop(self) -> None:
        """Look for the server no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _look(self, reason: str) -> None:
        begin = time.monotonic()
        try:
            while self.cancellation.reason is None and not await self.is_back():
                if min(time.monotonic() - begin, self.others_s()) > self.limit_s:
                    self.cancellation.cancel(
                        f"the {self.name} was away for {self.limit_s:g} s ({reason}): see 'make status' and 'make "
                        "logs', then run again to do the rest"
                    )
                    break
                await asyncio.sleep(CHECK_S)
            log.info("the %s was away for %.1f s", self.name, time.monotonic() - begin)
        finally:  # whatever happens: nobody may wait for ever
            self.since = None
            self._closed.set()
