"""A proxy before the detector and the model server that notes when each request came and when it was answered.

So the same can be seen of any client: what the servers were given to do, and when they had nothing.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from pipeline.clients.probe import blank_jpeg

# Spotter's question before a run is about this picture. It is no part of the job.
QUESTIONS_BEFORE = (blank_jpeg(), base64.b64encode(blank_jpeg()))
# What belongs to one connection, not to the request.
HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})

BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Span:
    """One request at a server: seconds of `time.monotonic`."""

    start_s: float
    end_s: float


@dataclass
class Recorder:
    """What one server was given to do; `url` is where clients send it."""

    target: str
    url: str = ""
    spans: list[Span] = field(default_factory=list)

    async def pass_on(self, request: web.Request) -> web.Response:
        """Send a request on, and note its time."""
        body = await request.read()
        session: aiohttp.ClientSession = request.app[SESSION]
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        started = time.monotonic()
        async with session.request(
            request.method, self.target + request.path_qs, data=body, headers=headers, allow_redirects=False
        ) as response:
            answer = await response.read()
        if request.method == "POST" and not any(mark in body for mark in QUESTIONS_BEFORE):
            self.spans.append(Span(started, time.monotonic()))
        return web.Response(status=response.status, body=answer, content_type=response.content_type)


SESSION = web.AppKey("session", aiohttp.ClientSession)


@contextmanager
def record(*targets: str) -> Iterator[list[Recorder]]:
    """Put a recorder before each of these addresses (without a path), until the block ends."""
    recorders = [Recorder(target.rstrip("/")) for target in targets]
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            runners = []
            for recorder in recorders:
                app = web.Application(client_max_size=64 * 1024**2)
                app[SESSION] = session
                app.router.add_route("*", "/{path:.*}", recorder.pass_on)
                runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                runners.append(runner)
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()
            for runner in runners:
                await runner.cleanup()

    # asyncio.run ends the requests that are still open, such as those of a rung that was stopped.
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    loop, stop = started.result(timeout=10)
    try:
        yield recorders
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def busy_s(spans: list[Span]) -> float:
    """Seconds in which there was at least one request."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_s):
        total += max(span.end_s - max(span.start_s, until), 0.0)
        until = max(until, span.end_s)
    return total


def request_s(spans: list[Span]) -> float:
    """All requests' seconds: over a wall time that is the mean number of requests in flight."""
    return sum(span.end_s - span.start_s for span in spans)


def in_flight(spans: list[Span], begin_s: float, end_s: float, columns: int) -> list[float]:
    """The mean number of requests in flight in each of `columns` equal slices of a time."""
    slice_s = max(end_s - begin_s, 1e-9) / columns
    counts = [0.0] * columns
    for column in range(columns):
        low, high = begin_s + column * slice_s, begin_s + (column + 1) * slice_s
        inside = (min(span.end_s, high) - max(span.start_s, low) for span in spans)
        counts[column] = sum(seconds for seconds in inside if seconds > 0) / slice_s
    return counts


def peak(spans: list[Span]) -> int:
    """The most requests in flight at one moment."""
    steps = sorted([(span.start_s, 1) for span in spans] + [(span.end_s, -1) for span in spans])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def strip(counts: list[float], full: float) -> str:
    """Numbers in flight as a line of blocks; `full` or more is a whole block, and nothing at all is a blank."""
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[min(max(round(count / full * steps), count > 0.02), steps)] for count in counts)
