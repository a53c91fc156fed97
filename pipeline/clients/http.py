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
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import tenacity

from pipeline.clients.circuit_breaker import CircuitBreaker
from pipeline.clients.limiter import AdaptiveLimiter
from pipeline.clients.network import describe, proxy_for, tls_context
from pipeline.clients.rate_limit import RateLimit, pause
from pipeline.clients.retries import (
    QUOTA,
    UNREACHABLE,
    WITHOUT_ANSWER,
    RateLimited,
    Refused,
    Temporary,
    error_in_good_answer,
    judge,
)
from pipeline.clients.sockets import make_socket
from pipeline.errors import RowError
from pipeline.metrics.stage import NoStageMetrics, StageMetrics
from pipeline.runtime.cancellation import CancellationToken, Cancelled
from pipeline.runtime.in_process import InProcess

log = logging.getLogger(__name__)

# Above this a server's Retry-After is not waited out: the row fails, and a later run can ask it again. Rate limits are
# waited for as long as `Limits.rate_limit_s` allows.
LONGEST_RETRY_AFTER_S = 60.0

# A server that is alive answers its check within this time, also under load.
CHECK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer with a good status."""

    body: bytes
    attempts: int
    latency_s: float
    """Of the last request, from sending it to its last byte; waiting for a free slot is not in it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a service."""

    method: str
    path: str
    body: bytes = b""
    media_type: str = "application/octet-stream"
    """Of the body; the answer's is expected to be the same."""


class RequestFailed(RowError):
    """A request failed for good; the message names the status or the error, and `cause` the kind of a refusal."""

    def __init__(self, reason: str, attempts: int, cause: str | None = None) -> None:
        super().__init__(reason, attempts)
        self.cause = cause


class NoAnswer(Temporary):
    """The request was sent, and nothing came back: a slow server, or one that is frozen, dead or cut off."""


class Unreachable(Exception):
    """There was nobody to send the request to."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may spend on requests."""

    concurrency: int
    """Requests at the server at once, at most."""
    timeout_s: float = 120.0
    """Longest that one request may take."""
    attempts: int = 5
    """Tries of a request that fails in a way that can heal."""
    connect_s: float = 10.0
    outage_s: float = 0.0
    """How long to wait for a server that is not there; 0: the request fails at once."""
    rate_limit_s: float = 0.0
    """How long to wait for a server that refuses for the rate alone; 0: it counts as a failed try."""


def wait_time(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try."""
    error = state.outcome.exception() if state.outcome else None
    return pause(state.attempt_number, error.wait_s if isinstance(error, Temporary) else 0.0)


@dataclass(slots=True)
class Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    limiter: AdaptiveLimiter
    breaker: CircuitBreaker
    rate_limit: RateLimit


class HttpClient(InProcess):
    """POSTs to one service, within limits.

    `name` is what people call the service, `ca_file` holds certificates to trust besides the system's. One instance
    serves one event loop, whose session and limiter it makes at the first request.
    """

    def __init__(
        self,
        base_url: str,
        limits: Limits,
        *,
        name: str = "server",
        headers: dict[str, str] | None = None,
        ca_file: Path | None = None,
        cancellation: CancellationToken | None = None,
        metrics: StageMetrics | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.limits = limits
        self.name = name
        self.headers = headers or {}
        self.key = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        self.ca_file = ca_file
        self.cancellation = cancellation or CancellationToken()
        self.metrics = metrics or NoStageMetrics()
        self.connection: Connection | None = None

    def allowed(self) -> float:
        """How many requests may be at the server now."""
        return self.connection.limiter.limit if self.connection else self.limits.concurrency

    def connect(self) -> Connection:
        """The connection of the running event loop, made at the first call."""
        if self.connection is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=make_socket, ssl=tls_context(self.ca_file))
            session = aiohttp.ClientSession(
                connector=connector,  # the limiter bounds its connections
                proxy=proxy_for(self.base_url),
                timeout=aiohttp.ClientTimeout(total=self.limits.timeout_s, sock_connect=self.limits.connect_s),
                headers=self.headers,
            )
            breaker = CircuitBreaker(self.name, self.is_there, self.limits.outage_s, self.cancellation)
            limiter = AdaptiveLimiter(self.limits.concurrency)
            rate_limit = RateLimit(self.name, self.limits.rate_limit_s, self.cancellation)
            self.connection = Connection(asyncio.get_running_loop(), session, limiter, breaker, rate_limit)
        return self.connection

    async def is_there(self) -> bool:
        """Whether the service gives a sign of life."""
        timeout, url = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S), self.base_url + "/"
        try:
            async with self.connect().session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status < 500  # a proxy's word for a server that is away is 502 or 503
        except (TimeoutError, aiohttp.ClientError):
            return False

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
        connection = self.connect()
        try:  # the common case, without the machinery of retries
            data, latency_s = await self._reach(connection, request)
            return Reply(data, 1, latency_s)
        except Refused as error:
            raise self._failed(error, 1) from error
        except Temporary as error:
            return await self._again(connection, error, request)

    def _failed(self, error: Temporary | Refused, attempts: int) -> RowError:
        """The row's error; an account without money also ends the run, because every row would fail."""
        cause = error.cause if isinstance(error, Refused) else None
        if cause == QUOTA and self.limits.outage_s:
            reason = f"the {self.name} refuses for lack of quota ({error}): see to the account, then run again"
            self.cancellation.cancel(reason)
            return Cancelled(reason)
        return RequestFailed(str(error), attempts, cause)

    async def _again(self, connection: Connection, first: Temporary, request: Request) -> Reply:
        """The further tries, each after a pause, the `first` having failed."""
        attempt = 0
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Temporary),
            wait=wait_time,
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
                    data, latency_s = await self._reach(connection, request)
                    return Reply(data, attempt, latency_s)
        except (Temporary, Refused) as error:
            raise self._failed(error, attempt) from error
        raise AssertionError("tenacity ends with a result or an error")

    def _before_retry(self, state: tenacity.RetryCallState) -> None:
        self.metrics.arrive(time.perf_counter())
        reason = state.outcome.exception() if state.outcome else None
        log.debug("%s, attempt %d: %s", self.name, state.attempt_number, reason)

    async def _reach(self, connection: Connection, request: Request) -> tuple[bytes, float]:
        """One try that reaches the server: while nobody is there or its rate is used up, it waits and does not count.

        Raises:
            Temporary, Refused: the try failed.
            Cancelled: the run is ending.
        """
        limited, limited_since = 0, 0.0
        while True:
            await connection.breaker.closed()
            if connection.rate_limit.holds:
                await connection.rate_limit.passed()
            async with connection.limiter as sent_in:
                # While this one waited for its turn, the server may have gone away or asked for a pause.
                if connection.breaker.since is not None or (connection.rate_limit.holds):
                    continue
                self.cancellation.check()
                refusal: RateLimited | None = None
                began, data = self.metrics.begin(), b""
                try:
                    data = await self._send(connection, request)
                except Unreachable as error:
                    if not self.limits.outage_s:
                        raise Refused(str(error), UNREACHABLE) from error
                    connection.breaker.open(str(error))
                    self.metrics.arrive(time.perf_counter())
                    continue
                except NoAnswer as error:
                    if not self.limits.outage_s:
                        raise Refused(str(error), UNREACHABLE) from error
                    if await connection.breaker.suspect(str(error)):
                        connection.limiter.died()
                    raise
                except Temporary as error:
                    if error.too_many:
                        connection.limiter.refused(sent_in)
                    if not isinstance(error, RateLimited) or not self.limits.rate_limit_s:
                        raise
                    connection.rate_limit.refused(str(error), error.wait_s)
                    refusal = error
                finally:
                    ended = self.metrics.end(began, len(request.body), len(data))
                if refusal is None:
                    connection.limiter.answered()
                    connection.rate_limit.since = None
                    return data, ended - began
            limited += 1
            limited_since = limited_since or began
            self.cancellation.check()
            if ended - limited_since > self.limits.rate_limit_s:
                raise Refused(f"{refusal} (for {self.limits.rate_limit_s:g} s)")
            self.metrics.arrive(time.perf_counter())
            await connection.rate_limit.sleep(pause(limited, refusal.wait_s))

    async def _send(self, connection: Connection, request: Request) -> bytes:
        url, body = self.base_url + request.path, request.body or None
        headers = {"Content-Type": request.media_type} if body else None
        try:
            async with connection.session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                data = await response.read()
                if self.key and self.key in data:  # a server may repeat it, and its words go into tables
                    data = data.replace(self.key, b"***")
        except aiohttp.ConnectionTimeoutError:
            raise Unreachable(f"no connection within {self.limits.connect_s:g} s") from None
        except TimeoutError:
            raise NoAnswer(f"no answer within {self.limits.timeout_s:g} s") from None
        except aiohttp.ClientHttpProxyError as error:
            raise judge(error.status, error.headers or {}, f"the proxy says: {error.message}".encode()) from error
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(describe(error)) from error
        except aiohttp.ClientError as error:
            raise NoAnswer(describe(error)) from error
        if not 200 <= response.status < 300 or response.status in WITHOUT_ANSWER:
            verdict: Temporary | Refused | None = judge(response.status, response.headers, data)
        elif request.method == "POST":
            verdict = error_in_good_answer(data, response.headers, request.media_type)
        else:
            return data
        if verdict is None:
            return data
        wait_s = verdict.wait_s if isinstance(verdict, Temporary) else 0.0
        if wait_s > LONGEST_RETRY_AFTER_S and not isinstance(verdict, RateLimited):
            raise Refused(f"{verdict} (Retry-After: {wait_s:g} s)")
        raise verdict

    def hear_queue(self, running: float, waiting: float) -> None:
        """The server says how many requests it runs and how many wait there; to be called from another thread."""
        if self.connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: the run is at its end
                self.connection.loop.call_soon_threadsafe(self.connection.limiter.queue, running, waiting)

    async def aclose(self) -> None:
        """Close the connections, on the loop that opened them; the client cannot be used again."""
        if self.connection is not None:
            await self.connection.session.close()

    def close(self) -> None:
        """Close the connections from another thread than the loop's, unless that is stuck."""
        if self.connection is not None and self.connection.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.aclose(), self.connection.loop)
            with contextlib.suppress(TimeoutError):
                closing.result(timeout=5)
