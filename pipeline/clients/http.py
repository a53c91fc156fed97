"""An HTTP client that bounds requests in flight by rows and retries what can heal.

Daft bounds *batches* in flight and gathers all rows of a batch at once: 2,000 rows in one batch are 2,000 requests. So
the bound is here. It is aiohttp and not the openai package because the client is the job's CPU cost: measured at
0.4-0.7 ms a request against 11-12 ms (openai on httpx), which also stops assigning connections beyond 1,000 requests.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import tenacity

# Statuses that a later try can change: a full queue, a server that restarts or is behind.
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

# Above this a server's Retry-After is not waited out: the row fails, and a later run asks it again.
LONGEST_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer with status 200."""

    body: bytes
    attempts: int
    latency_s: float
    """Of the last request, from sending it to its last byte; waiting for a free slot is not in it."""


class RequestFailed(Exception):
    """A request came to no good end; the message names status or error, and `attempts` how often it was tried."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.attempts = attempts


class Temporary(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The server understood the request and will never take it."""


def wait_time(state: tenacity.RetryCallState) -> float:
    """Exponential backoff with jitter, and at least as long as the server asked for."""
    backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=15.0, jitter=0.5)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(backoff, error.retry_after_s if isinstance(error, Temporary) else 0.0)


class HttpClient:
    """POST to one service, with at most `concurrency` requests in flight.

    One instance serves one event loop; what belongs to the loop (session, semaphore) is made at the first request, so
    that an instance can be pickled to where it is used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int,
        timeout_s: float,
        attempts: int,
        connect_s: float = 10.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.connect_s = connect_s
        self.headers = headers or {}
        self.session: aiohttp.ClientSession | None = None
        self.slots: asyncio.Semaphore | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to an event loop."""
        return self.__dict__ | {"session": None, "slots": None, "loop": None}

    async def post(self, path: str, body: bytes, content_type: str) -> Reply:
        """Send a request, again if that can help, and return the body of its answer.

        Raises:
            RequestFailed: the server refused it, or it failed `attempts` times.
        """
        if self.session is None or self.slots is None:
            self.loop = asyncio.get_running_loop()
            self.slots = asyncio.Semaphore(self.concurrency)
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # bounded by `slots`
                timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=self.connect_s),
                headers=self.headers,
            )
        attempt = 0
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Temporary),
            wait=wait_time,
            stop=tenacity.stop_after_attempt(self.attempts),
            reraise=True,
        )
        try:
            async for trial in retrying:
                with trial:
                    attempt += 1
                    async with self.slots:
                        started = time.perf_counter()
                        data = await self._try(self.session, path, body, content_type)
                        return Reply(data, attempt, time.perf_counter() - started)
        except (Temporary, Refused) as error:
            raise RequestFailed(str(error), attempt) from error
        raise AssertionError("tenacity ends with a result or an error")

    async def _try(self, session: aiohttp.ClientSession, path: str, body: bytes, content_type: str) -> bytes:
        try:
            async with session.post(
                self.base_url + path, data=body, headers={"Content-Type": content_type}, allow_redirects=False
            ) as response:
                data = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise Temporary(f"no connection within {self.connect_s:g} s") from None
        except TimeoutError:
            raise Temporary(f"no answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Temporary(describe(error)) from error
        if response.status == 200:
            return data
        reason = f"HTTP {response.status}: {' '.join(data.decode('utf-8', 'replace').split())[:300]}"
        if response.status not in TEMPORARY:
            raise Refused(reason)
        retry_after_s = retry_after(response.headers.get("Retry-After"))
        if retry_after_s > LONGEST_RETRY_AFTER_S:
            raise Refused(f"{reason} (Retry-After: {retry_after_s:g} s)")
        raise Temporary(reason, retry_after_s)

    async def aclose(self) -> None:
        """Close the connections, on the loop that opened them; the client cannot be used again."""
        if self.session is not None:
            await self.session.close()

    def close(self) -> None:
        """Close the connections from another thread than the loop's."""
        if self.loop is not None and self.loop.is_running():
            asyncio.run_coroutine_threadsafe(self.aclose(), self.loop).result(timeout=5)


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
