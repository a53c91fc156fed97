"""A server's rate limit: pauses the whole client for as long as the server asks, and gives up after a while."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable

from pipeline.runtime.cancellation import CancellationToken

log = logging.getLogger(__name__)

# The pause after the first refusal that names no time; each further one is twice as long, up to the longest. All are
# drawn out by up to half, at most of the longest: requests that were refused at one moment must not come back at one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
JITTER = 0.5
# A pause looks this often whether the run is ending.
TICK_S = 1.0


def pause(number: int, least_s: float = 0.0) -> float:
    """Seconds before the next try after failure `number` (from 1): exponential backoff with jitter, at least `least_s`
    as the server asks."""
    backoff_s = min(FIRST_PAUSE_S * 2.0 ** min(number - 1, 30), LONGEST_PAUSE_S)
    return spread(max(backoff_s, least_s))


def spread(seconds: float) -> float:
    """A wait, drawn out."""
    return seconds + min(seconds, LONGEST_PAUSE_S) * random.uniform(0.0, JITTER)


class RateLimit:
    """What a server allows: it belongs to one event loop, and all requests to the server share it.

    When the server takes no request for `limit_s` seconds, or asks for a longer wait than that, the run is cancelled:
    a later run does the rest.
    """

    def __init__(
        self,
        name: str,
        limit_s: float,
        cancellation: CancellationToken,
        others_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`others_s`: since how many seconds all other addresses refuse requests; infinite without others."""
        self.name = name
        self.limit_s = limit_s
        self.cancellation = cancellation
        self.others_s = others_s
        self.since: float | None = None
        """When the server began to refuse, with no answer since; None while it takes requests."""
        self.until = 0.0
        """No request is sent before this time."""

    @property
    def holds(self) -> bool:
        """Whether all requests have to wait now."""
        return self.until > time.monotonic()

    @property
    def refuses_s(self) -> float:
        """For how long the server has taken no request, until the time that it asks to wait for; 0 while it does."""
        return 0.0 if self.since is None else max(self.until, time.monotonic()) - self.since

    @property
    def bites(self) -> bool:
        """Whether the server refuses requests now."""
        return self.since is not None or self.holds

    def refused(self, reason: str, wait_s: float) -> None:
        """The server refused a request for the rate alone; `wait_s` is the wait that it asks for, 0 if it does not."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
            log.warning("the %s limits the rate: %s", self.name, reason)
        self.until = max(self.until, now + wait_s)
        if self.refuses_s > self.limit_s and self.others_s() > self.limit_s:
            too_long = f"asks to wait {wait_s:.0f} s" if wait_s > self.limit_s else f"took none for {self.limit_s:g} s"
            self.cancellation.cancel(
                f"the {self.name} limits the rate of requests and {too_long}, longer than SPOTTER_OUTAGE_LIMIT_S="
                f"{self.limit_s:g} ({reason}): run again later to do the rest, or raise it"
            )

    async def passed(self) -> None:
        """Return when requests may be sent.

        Raises:
            Cancelled: the run is ending.
        """
        while (left_s := self.until - time.monotonic()) > 0:
            await self.sleep(spread(left_s))

    async def sleep(self, seconds: float) -> None:
        """Wait, unless the run ends meanwhile.

        Raises:
            Cancelled: the run is ending.
        """
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self.cancellation.check()
            await asyncio.sleep(min(left_s, TICK_S))
        self.cancellation.check()
