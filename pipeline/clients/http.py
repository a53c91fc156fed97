"""An HTTP client that bounds requests in flight by rows, retries what can heal, and sits out a server's restart.

Daft bounds *batches* in flight and gathers all rows of a batch at once: 2,000 rows in one batch are 2,000 requests. So
the bound is here. It is aiohttp and not the openai package because the client is the job's CPU cost: measured at
0.4-0.7 ms a request against 11-12 ms (openai on httpx), which also stops assigning connections beyond 1,000 requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tenacity

from pipeline.clients.address import Address, NoAnswer, Unreachable
from pipeline.clients.address import Limits as Limits
from pipeline.clients.address import Request as Request
from pipeline.clients.balancer import Alone, Balancer, Turns
from pipeline.clients.rate_limit import pause
from pipeline.clients.retries import QUOTA, UNREACHABLE, RateLimited, Refused, Temporary
from pipeline.errors import RowError
from pipeline.metrics.stage import NoStageMetrics, StageMetrics
from pipeline.runtime.cancellation import CancellationToken, Cancelled
from pipeline.runtime.in_process import InProcess

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer with a good status."""

    body: bytes
    attempts: int
    latency_s: float
    """Of the last request, from sending it to its last byte; waiting for a free slot is not in it."""
    address: Address
    """Where it comes from."""


class RequestFailed(RowError):
    """A request failed for good; the message names the status or the error, and `cause` the kind of a refusal."""

    def __init__(self, reason: str, attempts: int, cause: str | None = None) -> None:
        super().__init__(reason, attempts)
        self.cause = cause


def wait_time(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try."""
    error = state.outcome.exception() if state.outcome else None
    return pause(state.attempt_number, error.wait_s if isinstance(error, Temporary) else 0.0)


@dataclass(slots=True)
class Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    turns: Turns


class HttpClient(InProcess):
    """POSTs to one service, within limits.

    `urls`: one address of the service or several, which share the requests. `name` is what people call the service,
    `ca_file` holds certificates to trust besides the system's. One instance serves one event loop, on which it connects
    at the first request.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        limits: Limits,
        *,
        name: str = "server",
        headers: dict[str, str] | None = None,
        ca_file: Path | None = None,
        cancellation: CancellationToken | None = None,
        metrics: StageMetrics | None = None,
    ) -> None:
        self.urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self.limits = limits
        self.share = limits.concurrency
        self.name = name
        self.headers = headers or {}
        self.ca_file = ca_file
        self.cancellation = cancellation or CancellationToken()
        self.metrics = metrics or NoStageMetrics()
        self.connection: Connection | None = None

    @property
    def addresses(self) -> list[Address]:
        """Those of the service; none before the first request."""
        return self.connection.turns.addresses if self.connection else []

    @property
    def in_flight(self) -> int:
        """Requests at the service now."""
        return sum(each.limiter.in_flight for each in self.addresses)

    @property
    def away(self) -> bool:
        """Whether no address is there now."""
        used = [each for each in self.addresses if each.aside is None]
        return bool(used) and all(each.breaker.since is not None for each in used)

    @property
    def limited(self) -> bool:
        """Whether each address limits the rate of requests now, or is away."""
        used = [each for each in self.addresses if each.aside is None]
        return any(each.rate_limit.bites for each in used) and all(
            each.rate_limit.bites or each.breaker.since is not None for each in used
        )

    def allowed(self) -> float:
        """How many requests may be at the service now."""
        return self.connection.turns.allowed() if self.connection else self.share

    def connect(self) -> Connection:
        """The connection of the running event loop, made at the first call."""
        if self.connection is None:
            given = self.limits, self.headers, self.ca_file, self.cancellation
            turns: Turns
            if len(self.urls) == 1:
                turns = Alone(Address(self.urls[0], self.name, *given))
            else:
                addresses = [Address(url, f"{self.name} {url}", *given) for url in self.urls]
                turns = Balancer(addresses, self.limits.concurrency, self.cancellation)
            turns.grant(self.share)
            self.connection = Connection(asyncio.get_running_loop(), turns)
        return self.connection

    async def post(self, path: str, body: bytes, content_type: str) -> Reply:
        """Send a request, again if that can help, and return the body of its answer.

        Raises:
            RequestFailed: the server refused it, or all attempts failed.
            Cancelled: the run is ending.
        """
        return await self.send(Request("POST", path, body, content_type))

    async def get(self, path: str) -> Reply:
        """The same for a GET, whose answer may be anything with a good status."""
        return await self.send(Request("GET", path))

    async def send(self, request: Request) -> Reply:
        """See `post`."""
        tried: set[Address] = set()
        try:  # the common case, without the machinery of retries
            return await self._reach(request, tried, 1)
        except (Temporary, Refused) as error:
            return await self._again(error, request, tried)

    async def second(self, request: Request, first: Reply) -> Reply | None:
        """The answer of another address, after a `first` one that does not fit the question; None without another."""
        if len(self.urls) == 1:
            return None
        turns, tried = self.connect().turns, {first.address}
        turns.misfit(first.address)
        if first.attempts >= self.limits.attempts or not turns.others(tried):
            return None
        try:
            return await self._reach(request, tried, first.attempts + 1)
        except (Temporary, Refused):
            return None

    def _failed(self, error: Temporary | Refused, attempts: int) -> RowError:
        """The row's error; an account without money also ends the run, because every row would fail."""
        cause = error.cause if isinstance(error, Refused) else None
        if cause == QUOTA and self.limits.outage_s:
            reason = f"the {self.name} refuses for lack of quota ({error}): see to the account, then run again"
            self.cancellation.cancel(reason)
            return Cancelled(reason)
        return RequestFailed(str(error), attempts, cause)

    async def _again(self, first: Temporary | Refused, request: Request, tried: set[Address]) -> Reply:
        """The further tries after the `first`: at once at an address that was not tried, or after a pause."""
        attempt, turns = 0, self.connect().turns

        def heals(error: BaseException) -> bool:
            return isinstance(error, Temporary) or (isinstance(error, Refused) and turns.others(tried))

        def wait(state: tenacity.RetryCallState) -> float:
            if turns.others(tried):
                return 0.0
            tried.clear()
            return wait_time(state)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(heals),
            wait=wait,
            stop=tenacity.stop_after_attempt(self.limits.attempts),
            before_sleep=self._before_retry,
            reraise=True,
        )
        try:
            async for trial in retrying:
                with trial:
                    attempt += 1
                    if attempt == 1:
                        raise first
                    return await self._reach(request, tried, attempt)
        except (Temporary, Refused) as error:
            raise self._failed(error, attempt) from error
        raise AssertionError("tenacity ends with a result or an error")

    def _before_retry(self, state: tenacity.RetryCallState) -> None:
        self.metrics.arrive(time.perf_counter())
        reason = state.outcome.exception() if state.outcome else None
        log.debug("%s, attempt %d: %s", self.name, state.attempt_number, reason)

    async def _reach(self, request: Request, tried: set[Address], attempt: int) -> Reply:
        """One try that reaches the server: while nobody is there or its rate is used up, it waits and does not count.

        An address at which it fails is added to those `tried`.

        Raises:
            Temporary, Refused: the try failed.
            Cancelled: the run is ending.
        """
        limits, turns = self.limits, self.connect().turns
        limited, limited_since = 0, 0.0
        while True:
            address = await turns.take(tried)
            try:
                self.cancellation.check()
                began = self.metrics.begin()
                data, ended = await self._send(address, request, began)
                address.answered(ended - began)
                return Reply(data, attempt, ended - began, address)
            except Unreachable as error:
                tried.add(address)
                if not limits.outage_s:
                    raise Refused(str(error), UNREACHABLE) from error
                address.breaker.open(str(error))
                self.metrics.arrive(time.perf_counter())
                continue
            except (Temporary, Refused) as error:
                tried.add(address)
                if isinstance(error, Refused):
                    turns.misfit(address)
                    raise
                if not isinstance(error, RateLimited) or not limits.rate_limit_s:
                    await self._failed_at(address, error)
                    raise
                address.rate_limit.refused(str(error), error.wait_s)
                refusal = error
            finally:
                turns.give_back(address)
            limited += 1
            limited_since = limited_since or began
            self.cancellation.check()
            if time.perf_counter() - limited_since > limits.rate_limit_s:
                raise Refused(f"{refusal} (for {limits.rate_limit_s:g} s)")
            self.metrics.arrive(time.perf_counter())
            if not turns.others(tried):
                tried.clear()
                await address.rate_limit.sleep(pause(limited, refusal.wait_s))

    async def _failed_at(self, address: Address, error: Temporary) -> None:
        """Note a try that failed.

        Raises:
            Refused: there is no answer, and an outage is not waited for.
        """
        address.failed()
        if isinstance(error, NoAnswer):
            if not self.limits.outage_s:
                raise Refused(str(error), UNREACHABLE) from error
            if await address.breaker.suspect(str(error)):
                address.limiter.died()

    async def _send(self, address: Address, request: Request, began: float) -> tuple[bytes, float]:
        """One try at an address: its answer, and when it ended."""
        sent_in, data = address.limiter.round, b""
        try:
            data = await address.send(request)
        except Temporary as error:
            if error.too_many:
                address.limiter.refused(sent_in)
            raise
        finally:
            ended = self.metrics.end(began, len(request.body), len(data))
        return data, ended

    def grant(self, share: int) -> None:
        """Have at most so many of the limit's requests in flight from now on; callable from another thread."""
        self.share = share
        if self.connection is not None:
            self._call(self.connection.turns.grant, share)

    def hear_queue(self, url: str, running: float, waiting: float) -> None:
        """An address says how many requests it runs and how many wait there; to be called from another thread."""
        if self.connection is not None:
            (address,) = (each for each in self.addresses if each.url == url)
            self._call(address.limiter.queue, running, waiting)

    def _call(self, function: Callable[..., None], *arguments: float) -> None:
        """Call on the connection's loop, from another thread."""
        if self.connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: the run is at its end
                self.connection.loop.call_soon_threadsafe(function, *arguments)

    async def aclose(self) -> None:
        """Close the connections, on the loop that opened them; the client cannot be used again."""
        if self.connection is not None:
            self.connection.turns.stop()
            for address in self.addresses:
                await address.close()

    def close(self) -> None:
        """Close the connections from another thread than the loop's, unless that is stuck."""
        if self.connection is not None and self.connection.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.aclose(), self.connection.loop)
            with contextlib.suppress(TimeoutError):
                closing.result(timeout=5)
