"""Which address of a service gets a request: the one with the fewest requests in flight, of those that can take one.

An address that is away, limits the rate or answers nonsense gets none, and the others take its share. Only when no
address can take a request do all wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from pipeline.clients.address import Address
from pipeline.runtime.cancellation import CancellationToken, Cancelled

log = logging.getLogger(__name__)

# How often the balancer looks for an address that is back, or silent.
TICK_S = 0.2
# An address with requests in flight that said nothing for this long is asked for a sign of life, as often again.
SILENT_S = 2.0
# An address is set aside when more of its answers than NONSENSE do not fit, and TIMES as many as of the others.
NONSENSE, TIMES = 0.25, 4.0
# Others have to have answered this often before they are compared with.
COMPARABLE = 10


class Alone:
    """The turns of requests at a service with one address."""

    def __init__(self, address: Address) -> None:
        self.addresses = [address]
        self.only = address

    async def take(self, tried: set[Address]) -> Address:
        """Wait until the address can take a request, and count it.

        Raises:
            Cancelled: the run is ending.
        """
        only = self.only
        while True:
            await only.breaker.closed()
            if only.rate_limit.holds:
                await only.rate_limit.passed()
            await only.limiter.take()
            # While this one waited for its turn, the server may have gone away or asked for a pause.
            if only.breaker.since is None and not only.rate_limit.holds:
                return only
            only.limiter.give_back()

    def give_back(self, address: Address) -> None:
        """A request has ended."""
        address.limiter.give_back()

    def grant(self, share: int) -> None:
        """Have at most so many requests in flight from now on."""
        self.only.limiter.grant(share)

    def others(self, tried: set[Address]) -> bool:
        """Whether an address can take a request that was not tried yet."""
        return False

    def misfit(self, address: Address) -> None:
        """The address gave an answer that does not fit the question: there is nobody to compare it with."""
        address.misfit()

    def allowed(self) -> float:
        """How many requests may be in flight now."""
        return self.only.limiter.limit

    def stop(self) -> None:
        """Nothing goes on here between requests."""


class Balancer:
    """The turns of requests at a service with several addresses, at most `most` in flight at all of them together."""

    def __init__(self, addresses: list[Address], most: int, cancellation: CancellationToken) -> None:
        for each in addresses:
            each.others = [other for other in addresses if other is not each]
        self.addresses = addresses
        self.most = most
        self.cancellation = cancellation
        self.in_flight = 0
        self._waiting: deque[tuple[asyncio.Future[Address | None], set[Address]]] = deque()
        self._checks: dict[Address, asyncio.Task[None]] = {}
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def take(self, tried: set[Address]) -> Address:
        """Wait until an address can take a request, and count it; one of those `tried` only where there is no other.

        Raises:
            Cancelled: the run is ending.
        """
        self.cancellation.check()
        if not self._waiting and (address := self._choose(tried)) is not None:
            return address
        turn: asyncio.Future[Address | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, tried))
        try:
            address = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and (given := turn.result()) is not None:
                self.give_back(given)
            raise
        if address is None:
            raise Cancelled(self.cancellation.reason or "the connections are closed")
        return address

    def _choose(self, tried: set[Address]) -> Address | None:
        """The address for a request, which is counted; None where none has room."""
        if self.in_flight >= self.most:
            return None
        able = [each for each in self.addresses if not each.blocked]
        able = [each for each in able if each not in tried] or able
        able = [each for each in able if each.limiter.has_room]
        if not able:
            return None
        address = min(able, key=lambda each: (each.limiter.in_flight, each.answers + each.failures))
        if not address.limiter.in_flight:
            address.heard = time.monotonic()
        address.limiter.in_flight += 1
        self.in_flight += 1
        return address

    def give_back(self, address: Address) -> None:
        """A request has ended."""
        address.limiter.give_back()
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        """Give those who wait their turns, first come, first served; where one's addresses are full, the next."""
        kept = []
        while self._waiting and self.in_flight < self.most:
            turn, tried = self._waiting.popleft()
            if turn.done():
                continue
            if (address := self._choose(tried)) is not None:
                turn.set_result(address)
            else:
                kept.append((turn, tried))
                if not tried:
                    break
        self._waiting.extendleft(reversed(kept))

    def grant(self, share: int) -> None:
        """Have at most so many requests in flight from now on."""
        self.most = share
        self._admit()

    def others(self, tried: set[Address]) -> bool:
        """Whether an address can take a request that was not tried yet."""
        return any(not each.blocked for each in self.addresses if each not in tried)

    def misfit(self, address: Address) -> None:
        """The address gave an answer that does not fit the question: set it aside where the others seldom do."""
        address.misfit()
        others = [each for each in self.addresses if each is not address and not each.blocked]
        compared = [each.misfits for each in others if each.answers >= COMPARABLE]
        if address.aside is not None or not compared:
            return
        theirs = sum(compared) / len(compared)
        if address.misfits > max(NONSENSE, TIMES * theirs):
            address.aside = (
                f"{address.misfits:.0%} of its last answers do not fit the question, {theirs:.0%} at the others"
            )
            log.warning("the %s is set aside: %s", address.name, address.aside)

    def allowed(self) -> float:
        """How many requests may be in flight now."""
        limit = sum(each.limiter.limit for each in self.addresses if not each.blocked)
        return min(float(self.most), max(limit, 1.0))

    async def _tick(self) -> None:
        """Until the end: give turns at addresses that are back, and look after those that are silent."""
        while self.cancellation.reason is None:
            await asyncio.sleep(TICK_S)
            self._admit()
            now = time.monotonic()
            for each in self.addresses:
                silent = each.limiter.in_flight and now - each.heard > SILENT_S and each.breaker.since is None
                if silent and (each not in self._checks or self._checks[each].done()):
                    self._checks[each] = asyncio.get_running_loop().create_task(self._look_after(each))
        self._send_away()

    def _send_away(self) -> None:
        """End all waiting without an address."""
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    async def _look_after(self, address: Address) -> None:
        """Ask a silent address for a sign of life; without one its requests go elsewhere."""
        if await address.is_there():
            address.heard = time.monotonic()
        elif address.breaker.since is None:
            address.breaker.open(f"no sign of life for {time.monotonic() - address.heard:.0f} s")
            address.give_up()

    def stop(self) -> None:
        """Look no more, and give no more turns."""
        for task in (self._ticking, *self._checks.values()):
            task.cancel()
        self._send_away()


Turns = Alone | Balancer
