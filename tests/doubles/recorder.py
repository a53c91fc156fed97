"""A proxy in front of detector and model server that records the times of each request and its answer.

It shows the load of the servers under any client.
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

from pipeline.clients.probe_model import blank_jpeg

# The picture of Spotter's probe before a run, which is no part of the job.
QUESTIONS_BEFORE = (blank_jpeg(), base64.b64encode(blank_jpeg()))
# Headers that belong to one connection, not to the request.
HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})

BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Span:
    """One request at a server: seconds of `time.monotonic`."""

    start_s: float
    end_s: float


@dataclass
class Recorder:
    """The requests to one server; clients send them to `url`."""

    target: str
    url: str = ""
    spans: list[Span] = field(default_factory=list)

    async def pass_on(self, request: web.Request) -> web.Response:
        """Pass a request on, and record its times."""
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
    """Put a recorder in front of each of these addresses (without a path), until the block ends."""
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

    # asyncio.run ends open requests, such as those of a stopped rung.
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    loop, stop = started.result(timeout=10)
    try:
        yield recorders
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def busy_s(spans: list[Span]) -> float:
    """Seconds with at least one request in flight."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_s):
        total += max(span.end_s - max(span.start_s, until), 0.0)
        until = max(until, span.end_s)
    return total


def request_s(spans: list[Span]) -> float:
    """Sum of all requests' seconds; divided by a wall time it is the mean number in flight."""
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
    """Numbers in flight as a line of blocks: a full block for `full` or more, a blank for nothing."""
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[min(max(round(count / full * steps), count > 0.02), steps)] for count in counts)
