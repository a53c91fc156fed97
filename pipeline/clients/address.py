"""One address of a service: its session, limiter, circuit breaker and rate limit, and one try of a request there."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.clients.circuit_breaker import CircuitBreaker
from pipeline.clients.limiter import AdaptiveLimiter
from pipeline.clients.network import describe_os, proxy_for, tls_context
from pipeline.clients.rate_limit import RateLimit, pause
from pipeline.clients.retries import WITHOUT_ANSWER, RateLimited, Refused, Temporary, error_in_good_answer, judge
from pipeline.clients.sockets import make_socket
from pipeline.runtime.cancellation import CancellationToken

# Above this a server's Retry-After is not waited out: the row fails, and a later run can ask it again. Rate limits are
# waited for as long as `Limits.rate_limit_s` allows.
LONGEST_RETRY_AFTER_S = 60.0

# A server that is alive answers its check within this time, also under load.
CHECK_TIMEOUT_S = 5.0

# One of several addresses rests after so many failures without an answer in between, longer each time.
RESTS_AFTER = 3

# Weight of the last answer in the share of answers that do not fit their question: it follows some 20 answers.
LAST = 0.05


Served = dict[str, list[dict[str, Any]]]
"""What each address of the services did (`Address.served`), by the service's name."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a service."""

    method: str
    path: str
    body: bytes = b""
    media_type: str = "application/octet-stream"
    """Of the body; the answer's is expected to be the same."""


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


class Address:
    """One address of a service, with what belongs to it alone. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        name: str,
        limits: Limits,
        headers: dict[str, str],
        ca_file: Path | None,
        cancellation: CancellationToken,
    ) -> None:
        self.url = url
        self.name = name
        """The service's, with the address where there are several."""
        self.limits = limits
        self.key = headers.get("Authorization", "").removeprefix("Bearer ").encode()
        self.others: list[Address] = []
        """The other addresses of the service."""
        self.session = aiohttp.ClientSession(
            # The limiter bounds its connections.
            connector=aiohttp.TCPConnector(limit=0, socket_factory=make_socket, ssl=tls_context(ca_file)),
            proxy=proxy_for(url),
            timeout=aiohttp.ClientTimeout(total=limits.timeout_s, sock_connect=limits.connect_s),
            headers=headers,
        )
        self.limiter = AdaptiveLimiter(limits.concurrency)
        self.breaker = CircuitBreaker(name, self.is_there, limits.outage_s, cancellation, self.others_s)
        self.rate_limit = RateLimit(name, limits.rate_limit_s, cancellation, self.others_s)
        self.answers = self.failures = 0
        self.latency_s = 0.0
        """Of all answers in sum."""
        self.misfits = 0.0
        """The share of the last answers that do not fit their question, 0 to 1."""
        self.aside: str | None = None
        """Why it gets no more requests."""
        self.heard = 0.0
        """When it last gave a sign of life."""
        self.failed_in_a_row = 0
        self.rests_until = 0.0
        self._open = set[asyncio.Timeout]()

    @property
    def blocked(self) -> bool:
        """Whether it can take no request now."""
        rests = self.failed_in_a_row >= RESTS_AFTER and self.rests_until > time.monotonic()
        return rests or self.aside is not None or self.breaker.since is not None or self.rate_limit.holds

    def blocked_s(self) -> float:
        """Since how many seconds it takes no request."""
        since = self.breaker.since
        away_s = 0.0 if since is None else time.monotonic() - since
        return math.inf if self.aside is not None else max(away_s, self.rate_limit.refuses_s)

    def others_s(self) -> float:
        """Since how many seconds all other addresses refuse requests; infinite without others."""
        return min((each.blocked_s() for each in self.others), default=math.inf)

    def answered(self, latency_s: float) -> None:
        """It answered."""
        self.answers += 1
        self.latency_s += latency_s
        self.misfits *= 1 - LAST
        self.limiter.answered()
        self.rate_limit.since = None
        self.heard = time.monotonic()
        self.failed_in_a_row = 0

    def failed(self) -> None:
        """A try there failed: after some in a row it rests, since it would be the first to be free for the next one."""
        self.failures += 1
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= RESTS_AFTER:
            self.rests_until = time.monotonic() + pause(self.failed_in_a_row - RESTS_AFTER + 1)

    def misfit(self) -> None:
        """Its last answer does not fit the question."""
        self.failures += 1
        self.misfits += LAST

    def served(self) -> dict[str, Any]:
        """What it did, for run.json."""
        return {
            "address": self.url,
            "answers": self.answers,
            "failures": self.failures,
            "mean_latency_s": round(self.latency_s / self.answers, 6) if self.answers else None,
            "outages": self.breaker.count,
            **({"set_aside": self.aside} if self.aside else {}),
        }

    async def close(self) -> None:
        """End the connections; the address cannot be used again."""
        self.breaker.stop()
        await self.session.close()

    async def is_there(self) -> bool:
        """Whether it gives a sign of life."""
        timeout, url = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S), self.url + "/"
        try:
            async with self.session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status < 500  # a proxy's word for a server that is away is 502 or 503
        except (TimeoutError, aiohttp.ClientError):
            return False

    async def send(self, request: Request) -> bytes:
        """One try.

        Raises:
            Unreachable, NoAnswer, Temporary, Refused: it failed.
        """
        if not self.others:
            return await self._send(request)
        given_up = asyncio.timeout(None)
        try:
            async with given_up:
                self._open.add(given_up)
                return await self._send(request)
        except TimeoutError:
            raise NoAnswer("no sign of life") from None
        finally:
            self._open.discard(given_up)

    def give_up(self) -> None:
        """Fail all requests in flight: nobody answers them."""
        for each in self._open:
            each.reschedule(asyncio.get_running_loop().time())

    async def _send(self, request: Request) -> bytes:
        url, body = self.url + request.path, request.body or None
        headers = {"Content-Type": request.media_type} if body else None
        try:
            async with self.session.request(
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


def add_served(before: Served, now: Served) -> Served:
    """What each address of the services did in two starts or processes together."""
    total = {}
    for service in sorted({*before, *now}):
        known: dict[str, dict[str, Any]] = {}
        for one in (*before.get(service, ()), *now.get(service, ())):
            whole = known.setdefault(one["address"], {"address": one["address"], "answers": 0, "mean_latency_s": None})
            answers = whole["answers"] + one["answers"]
            seconds = sum(each["answers"] * (each["mean_latency_s"] or 0.0) for each in (whole, one))
            whole |= {"answers": answers, "mean_latency_s": round(seconds / answers, 6) if answers else None}
            whole |= {name: whole.get(name, 0) + one[name] for name in ("failures", "outages")}
            whole |= {"set_aside": one["set_aside"]} if "set_aside" in one else {}
        total[service] = list(known.values())
    return total


def describe(error: BaseException) -> str:
    """A connection's error in a few words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"cannot connect: {describe_os(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy: {describe_os(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {describe_os(error.os_error)}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
