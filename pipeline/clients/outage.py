"""Pause all requests to a server that is not there, and go on when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from pipeline.runtime.cancellation import Stop

# How often a server that is away is looked for: a restart takes seconds at least.
CHECK_S = 1.0


class Outage:
    """Whether a server is away. One task looks for it while all requests wait, so a restart is not met by a rush.

    `is_back` asks the server for a sign of life. After `limit_s` seconds without one the run is stopped: rows that
    wait would all fail for the same reason, and a later run does them.
    """

    def __init__(self, name: str, is_back: Callable[[], Awaitable[bool]], limit_s: float, stop: Stop) -> None:
        self.name = name
        self.is_back = is_back
        self.limit_s = limit_s
        self.stop = stop
        self.count = 0
        self.since: float | None = None
        self._over = asyncio.Event()
        self._over.set()
        self._watch: asyncio.Task[None] | None = None
        self._question: asyncio.Future[bool] | None = None

    def begin(self, reason: str) -> None:
        """A request could not reach the server: hold the others."""
        if self.since is None:
            self.since = time.monotonic()
            self.count += 1
            self._over.clear()
            self._watch = asyncio.get_running_loop().create_task(self._look(reason))

    async def suspect(self, reason: str) -> bool:
        """A request got no answer: hold the others if the server gives no sign of life. Many ask this at once.

        True for the one whose question found the server away.
        """
        if self.since is None:
            if self._question is None or self._question.done():
                self._question = asyncio.ensure_future(self.is_back())
            if not await asyncio.shield(self._question) and self.since is None:
                self.begin(reason)
                return True
        return False

    async def over(self) -> None:
        """Return at once while the server is there, or else when it is back.

        Raises:
            Stopped: the run is ending.
        """
        await self._over.wait()
        self.stop.check()

    async def _look(self, reason: str) -> None:
        begin = time.monotonic()
        try:
            while self.stop.reason is None and not await self.is_back():
                if time.monotonic() - begin > self.limit_s:
                    self.stop.pull(
                        f"the {self.name} was away for {self.limit_s:g} s ({reason}): see 'make status' and 'make "
                        "logs', then run again to do the rest"
                    )
                    break
                await asyncio.sleep(CHECK_S)
        finally:  # whatever happens: who waits must not wait for good
            self.since = None
            self._over.set()
