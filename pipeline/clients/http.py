"""An HTTP client that bounds requests in flight by rows, retries what can heal, and sits out a server's restart.

Daft bounds *batches* in flight and gathers all rows of a batch at once: 2,000 rows in one batch are 2,000 requests. So
the bound is here. It is aiohttp and not the openai package because the client is the job's CPU cost: measured at
0.4-0.7 ms a request against 11-12 ms (openai on httpx), which also stops assigning connections beyond 1,000 requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass

import aiohttp
import tenacity

from pipeline.clients.circuit_breaker import CircuitBreaker
from pipeline.clients.limiter import AdaptiveLimiter
from pipeline.clients.sockets import make_socket
from pipeline.errors import RowError
from pipeline.metrics.stage import NoStageMetrics, StageMetrics
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.in_process import InProcess

log = logging.getLogger(__name__)

# Statuses that a later try can change: a full queue, a server that restarts or is behind.
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

# Of these, the ones that say: too many requests at once.
TOO_MANY = frozenset({429, 503})

# The pause after the first try that failed; each further one is twice as long, up to the longest. All are drawn out by
# up to half, also those that a server asks for: it refuses hundreds at one moment, and they must not come back at one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
JITTER = 0.5

# Above this a server's Retry-After is not waited out: the row fails, and a later run can ask it again.
LONGEST_RETRY_AFTER_S = 60.0

# A server that is alive answers its check within this time, also under load.
CHECK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer with status 200."""

    body: bytes
    attempts: int
    latency_s: float
    """Of the last request, from sending it to its last byte; waiting for a free slot is not in it."""


class RequestFailed(RowError):
    """A request failed for good; the message names the status or the error."""


class Temporary(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class NoAnswer(Temporary):
    """The request was sent, and nothing came back: a slow server, or one that is frozen, dead or cut off."""


class Unreachable(Exception):
    """There was nobody to send the request to."""


class Refused(Exception):
    """The server understood the request and will never take it."""


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
    """How long to wait for a server that is not there; 0: it counts as a failed try."""


def wait_time(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: exponential backoff with jitter, and at least as long as the server asked for."""
    backoff_s = min(FIRST_PAUSE_S * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE_S)
    error = state.outcome.exception() if state.outcome else None
    least_s = max(backoff_s, error.retry_after_s if isinstance(error, Temporary) else 0.0)
    return least_s * random.uniform(1.0, 1.0 + JITTER)


@dataclass(slots=True)
class Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    limiter: AdaptiveLimiter
    breaker: CircuitBreaker


class HttpClient(InProcess):
    """POSTs to one service, within limits.

    `name` is what people call the service; a GET of `check_path` answers 200 when it is there. One instance serves one
    event loop, whose session and limiter it makes at the first request.
    """

    def __init__(
        self,
        base_url: str,
        limits: Limits,
        *,
        name: str = "server",
        check_path: str = "/",
        headers: dict[str, str] | None = None,
        cancellation: CancellationToken | None = None,
        metrics: StageMetrics | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.limits = limits
        self.name = name
        self.check_path = check_path
        self.headers = headers or {}
        self.cancellation = cancellation or CancellationToken()
        self.metrics = metrics or NoStageMetrics()
        self.connection: Connection | None = None

    def allowed(self) -> float:
        """How many requests may be at the server now."""
        return self.connection.limiter.limit if self.connection else self.limits.concurrency

    def connect(self) -> Connection:
        """The connection of the running event loop, made at the first call."""
        if self.connection is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=make_socket),  # the limiter bounds them
                timeout=aiohttp.ClientTimeout(total=self.limits.timeout_s, sock_connect=self.limits.connect_s),
                headers=self.headers,
            )
            breaker = CircuitBreaker(self.name, self.is_there, self.limits.outage_s, self.cancellation)
            limiter = AdaptiveLimiter(self.limits.concurrency)
            self.connection = Connection(asyncio.get_running_loop(), session, limiter, breaker)
        return self.connection

    async def is_there(self) -> bool:
        """Whether the service gives a sign of life."""
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S)
        try:
            async with self.connect().session.get(self.base_url + self.check_path, timeout=timeout) as response:
                return response.status < 500  # a proxy's word for a server that is away is 502 or 503
        except (TimeoutError, aiohttp.ClientError):
            return False

    async def post(self, path: str, body: bytes, content_type: str) -> Reply:
        """Send a request, again if that can help, and return the body of its answer.

        Raises:
            RequestFailed: the server refused it, or all attempts failed.
            Cancelled: the run is ending.
        """
        connection = self.connect()
        try:  # the common case, without the machinery of retries
            data, latency_s = await self._reach(connection, path, body, content_type)
            return Reply(data, 1, latency_s)
        except Refused as error:
            raise RequestFailed(str(error), 1) from error
        except Temporary as error:
            return await self._again(connection, error, path, body, content_type)

    async def _again(
        self, connection: Connection, first: Temporary, path: str, body: bytes, content_type: str
    ) -> Reply:
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
                    data, latency_s = await self._reach(connection, path, body, content_type)
                    return Reply(data, attempt, latency_s)
        except (Temporary, Refused) as error:
            raise RequestFailed(str(error), attempt) from error
        raise AssertionError("tenacity ends with a result or an error")

    def _before_retry(self, state: tenacity.RetryCallState) -> None:
        self.metrics.arrive(time.perf_counter())
        reason = state.outcome.exception() if state.outcome else None
        log.debug("%s, attempt %d: %s", self.name, state.attempt_number, reason)

    async def _reach(self, connection: Connection, path: str, body: bytes, content_type: str) -> tuple[bytes, float]:
        """One try that reaches the server: while nobody is there, it waits and does not count."""
        while True:
            await connection.breaker.closed()
            async with connection.limiter as sent_in:
                if connection.breaker.since is not None:  # since this one has waited for its turn
                    continue
                self.cancellation.check()
                began, data = self.metrics.begin(), b""
                try:
                    data = await self._send(connection, sent_in, path, body, content_type)
                except Unreachable as error:
                    if not self.limits.outage_s:
                        raise Temporary(str(error)) from error
                    connection.breaker.open(str(error))
                    self.metrics.arrive(time.perf_counter())
                    continue
                except NoAnswer as error:
                    if self.limits.outage_s and await connection.breaker.suspect(str(error)):
                        connection.limiter.died()
                    raise
                finally:
                    ended = self.metrics.end(began, len(body), len(data))
                connection.limiter.answered()
                return data, ended - began

    async def _send(self, connection: Connection, sent_in: int, path: str, body: bytes, content_type: str) -> bytes:
        headers = {"Content-Type": content_type}
        try:
            async with connection.session.post(
                self.base_url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                data = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise Unreachable(f"no connection within {self.limits.connect_s:g} s") from None
        except TimeoutError:
            raise NoAnswer(f"no answer within {self.limits.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(describe(error)) from error
        except aiohttp.ClientError as error:
            raise NoAnswer(describe(error)) from error
        if response.status == 200:
            return data
        reason = f"HTTP {response.status}: {' '.join(data.decode('utf-8', 'replace').split())[:300]}"
        if response.status not in TEMPORARY:
            raise Refused(reason)
        if response.status in TOO_MANY:
            connection.limiter.refused(sent_in)
        retry_after_s = retry_after(response.headers.get("Retry-After"))
        if retry_after_s > LONGEST_RETRY_AFTER_S:
            raise Refused(f"{reason} (Retry-After: {retry_after_s:g} s)")
        raise Temporary(reason, retry_after_s)

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


def describe(error: aiohttp.ClientError) -> str:
    """A connection's error in a few words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    return f"{type(error).__name__}: {error}"


def retry_after(value: str | None) -> float:
    """The seconds of a Retry-After header; 0 where it is missing or a date, which model servers do not send."""
    try:
        return max(float(value or 0), 0.0)
    except ValueError:
        return 0.0
