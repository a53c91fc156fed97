"""Simulated detector and model servers: the real protocols, answers known in advance, misbehaviour on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack
from aiohttp import web
from PIL import Image, ImageOps

from services.detector.messages import UnknownLabel, check_labels

Misbehaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[int], web.Response | Misbehaviour | None]
"""Given a request's number (from 1): a response or a misbehaviour in place of the answer, or None for the answer."""

ANSWER = {"breed": "poodle", "coat_color": "white", "facing": "left"}

# The longest that `hold` keeps an answer back.
HELD_S = 20.0
# The longest that the connections of a client that has ended are waited for.
SETTLE_S = 20.0


@dataclass
class Traffic:
    """What a server saw."""

    requests: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Simulated:
    """Settings and traffic of both servers; change the settings at any time."""

    url: str = ""
    detector: Traffic = field(default_factory=Traffic)
    model: Traffic = field(default_factory=Traffic)
    labels: tuple[str, ...] = ("dog", "cat")
    boxes: Callable[[Image.Image], list[list[float]]] = lambda image: [[0, 0, image.width / 2, image.height / 2]]
    detector_settings: dict[str, Any] = field(default_factory=lambda: {"threshold": 0.4, "nms_iou": 0.6})
    """What the detector says of how it chooses boxes."""
    detector_input: tuple[int, int] | None = None
    """What it says of the pixels that its model takes."""
    answer: Callable[[Image.Image, dict[str, Any]], str] | None = None
    """What the model says about a crop; by default ANSWER, without looking."""
    models: tuple[str, ...] = ("simulated",)
    api_key: str | None = None
    latency: Callable[[], float] | None = None
    """Seconds that an answer takes; by default `latency_s`."""
    latency_s: float = 0.0
    model_latency_s: float | None = None
    """That of the model alone, where it is another."""
    detector_fault: Fault = lambda number: None
    model_fault: Fault = lambda number: None
    hold: Callable[[Traffic, int], bool] = lambda traffic, number: False
    """Given a server's traffic and a request's number: whether its answer, not begun, is kept back for now."""
    restart: Callable[[int], float | None] = lambda number: None
    """Given the number of a request to the model, as it arrives: how many seconds both servers go away, or None."""
    arrivals: Iterator[int] = field(default_factory=partial(itertools.count, 1))
    restarts: int = 0
    """How often they did."""
    keep_bodies: bool = True
    away_s: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    metrics: Callable[[], str] | None = None
    """What both servers say of themselves, in Prometheus' text format; by default they have no such page."""
    connections: Callable[[], int] = lambda: 0
    """How many clients' connections are open."""

    @property
    def settings(self) -> dict[str, str]:
        """The pipeline's environment variables that lead here."""
        return {"SPOTTER_DETECTOR_URL": self.url, "SPOTTER_MODEL_URL": f"{self.url}/v1"}

    def settle(self) -> None:
        """After a client's end: return when all that it had sent is counted, which may lie in a socket still.

        Raises:
            TimeoutError: some client is connected still.
        """
        urllib.request.urlopen(self.url).close()  # connections are taken in order: now each of its own is
        deadline = time.monotonic() + SETTLE_S
        while self.connections():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.connections()} connections are open after {SETTLE_S:g} s")
            time.sleep(0.01)

    async def observed(
        self, traffic: Traffic, fault: Fault, request: web.Request, answer: Callable[[], web.Response]
    ) -> web.StreamResponse:
        """Count a request while it is answered, or not."""
        traffic.requests += 1
        number = traffic.requests
        traffic.in_flight += 1
        traffic.peak_in_flight = max(traffic.peak_in_flight, traffic.in_flight)
        try:
            for _ in range(round(HELD_S / 0.01)):
                if not self.hold(traffic, number):
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(self.seconds(traffic))
            instead = fault(number)
            if instead is None:
                return answer()
            return instead if isinstance(instead, web.Response) else await instead(request)
        finally:
            traffic.in_flight -= 1

    def seconds(self, traffic: Traffic) -> float:
        """How long the next answer of a server takes."""
        if traffic is self.model and self.model_latency_s is not None:
            return self.model_latency_s
        return self.latency() if self.latency else self.latency_s

    async def detect(self, request: web.Request) -> web.StreamResponse:
        """POST /detect as services/detector has it."""
        body = msgpack.unpackb(await request.read())
        if self.keep_bodies:
            self.detector.bodies.append(body)

        def answer() -> web.Response:
            wanted = body["labels"]
            try:
                check_labels(wanted, frozenset(self.labels))
            except UnknownLabel as error:
                return web.Response(status=422, text=f"unknown label: {error}")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(body["image"])))
            names = [label for label in self.labels if wanted is None or label in wanted]
            found = detection(self.boxes(image), names, image.size)
            return message(found | {"settings": self.detector_settings, "input": self.detector_input})

        return await self.observed(self.detector, self.detector_fault, request, answer)

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": name, "root": f"root/{name}"} for name in self.models]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        if seconds := self.restart(next(self.arrivals)):
            self.away_s.put_nowait(seconds)
        text = await request.text()
        body = json.loads(text) if self.keep_bodies or self.answer else {}
        if self.keep_bodies:
            self.model.bodies.append(body)

        def answer() -> web.Response:
            if body and body.get("model") not in self.models:
                said = f"The model `{body.get('model')}` does not exist."
                return web.json_response({"error": {"message": said, "type": "NotFoundError", "code": 404}}, status=404)
            if self.answer is None:
                return completion(json.dumps(ANSWER))
            return completion(self.answer(picture(body), body))

        return await self.observed(self.model, self.model_fault, request, answer)

    async def alive(self, request: web.Request) -> web.Response:
        """GET /."""
        return web.Response()

    async def stats(self, request: web.Request) -> web.Response:
        """GET /stats: what both servers saw."""
        seen = {"detector": self.detector, "model": self.model}
        return web.json_response(
            {name: {"requests": it.requests, "peak_in_flight": it.peak_in_flight} for name, it in seen.items()}
        )

    async def tell_metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(status=404) if self.metrics is None else web.Response(text=self.metrics())

    def app(self) -> web.Application:
        """Both servers as one application."""
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_get("/", self.alive)
        app.router.add_get("/stats", self.stats)
        app.router.add_get("/metrics", self.tell_metrics)
        app.router.add_post("/detect", self.detect)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_post("/v1/chat/completions", self.complete)
        return app


def picture(body: dict[str, Any]) -> Image.Image:
    """The picture in a request to the model; one black pixel where there is none."""
    for part in body["messages"][0]["content"]:
        if part["type"] == "image_url":
            return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
    return Image.new("RGB", (1, 1))


def detection(
    boxes: list[list[float]], labels: Sequence[str] = ("dog",), size: tuple[int, int] = (640, 480)
) -> dict[str, Any]:
    """What the detector says of an image of this width and height; the boxes have the labels in turn."""
    found = [
        {"box": box, "label": labels[number % len(labels)], "score": 0.9 - 0.001 * number}
        for number, box in enumerate(boxes)
    ]
    return {"boxes": found, "width": size[0], "height": size[1], "model": "simulated", "revision": None}


def message(content: dict[str, Any]) -> web.Response:
    """The detector's answer with this content."""
    return web.Response(body=msgpack.packb(content), content_type="application/msgpack")


def completion(content: str, finish_reason: str = "stop") -> web.Response:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52}
    return web.json_response({"choices": [choice], "usage": usage})


def open_connections(runner: web.AppRunner) -> int:
    """Of a server that runs; 0 of one that does not."""
    return len(runner.server.connections) if runner.server else 0


async def listen(simulated: Simulated, port: int, ready: Callable[[], object]) -> None:
    """Serve both on a port of loopback (0: a free one) until cancelled; `restart` cuts all connections for a while."""
    while True:
        runner = web.AppRunner(simulated.app(), shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
            port = runner.addresses[0][1]
            simulated.url = f"http://127.0.0.1:{port}"
            simulated.connections = partial(open_connections, runner)
            ready()
            away_s = await simulated.away_s.get()
        finally:
            await runner.cleanup()
        await asyncio.sleep(away_s)
        simulated.restarts += 1


@contextmanager
def serve(simulated: Simulated | None = None) -> Iterator[Simulated]:
    """Run both servers on one free port of loopback, in a thread, until the block ends."""
    simulated = simulated or Simulated()
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        listening = asyncio.create_task(listen(simulated, 0, started.set))
        await stop.wait()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends requests that are still open, too
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("the simulated servers did not start")
    try:
        yield simulated
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
