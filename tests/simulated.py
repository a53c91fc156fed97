"""Simulated detector and model servers on loopback: the same protocols, answers known in advance, faults on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
from aiohttp import web
from PIL import Image, ImageOps

Fault = Callable[[int], web.Response | None]
"""Given a request's number (from 1), the response to send in place of the answer, or None for the answer."""


@dataclass
class Traffic:
    """What a server saw."""

    requests: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Simulated:
    """Settings and traffic of both servers; tests change the settings before a run."""

    url: str = ""
    detector: Traffic = field(default_factory=Traffic)
    model: Traffic = field(default_factory=Traffic)
    labels: tuple[str, ...] = ("dog", "cat")
    boxes: Callable[[Image.Image], list[list[float]]] = lambda image: [[0, 0, image.width / 2, image.height / 2]]
    answer: Callable[[Image.Image, dict[str, Any]], str] = lambda crop, request: json.dumps(
        {"breed": "poodle", "coat_color": "white", "facing": "left"}
    )
    finish_reason: str = "stop"
    models: tuple[str, ...] = ("simulated",)
    api_key: str | None = None
    latency_s: float = 0.0
    detector_fault: Fault = lambda number: None
    model_fault: Fault = lambda number: None

    @property
    def settings(self) -> dict[str, str]:
        """The pipeline's environment variables that lead here."""
        return {"SPOTTER_DETECTOR_URL": self.url, "SPOTTER_MODEL_URL": f"{self.url}/v1"}

    async def observed(self, traffic: Traffic, answer: Callable[[], Awaitable[web.Response]]) -> web.Response:
        """Count a request while it is answered."""
        traffic.requests += 1
        traffic.in_flight += 1
        traffic.peak_in_flight = max(traffic.peak_in_flight, traffic.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
            return await answer()
        finally:
            traffic.in_flight -= 1

    async def detect(self, request: web.Request) -> web.Response:
        """POST /detect as services/detector has it."""
        body = msgpack.unpackb(await request.read())
        number = self.detector.requests + 1

        async def answer() -> web.Response:
            if fault := self.detector_fault(number):
                return fault
            if body["label"] not in self.labels:
                return web.Response(status=422, text=f"unknown label, known are {', '.join(self.labels)}")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(body["image"])))
            boxes = [
                {"box": box, "label": body["label"], "score": 0.9 - 0.01 * n} for n, box in enumerate(self.boxes(image))
            ]
            found = {
                "boxes": boxes,
                "width": image.width,
                "height": image.height,
                "model": "simulated",
                "revision": None,
            }
            return web.Response(body=msgpack.packb(found), content_type="application/msgpack")

        return await self.observed(self.detector, answer)

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": name, "root": f"root/{name}"} for name in self.models]})

    async def complete(self, request: web.Request) -> web.Response:
        """POST /v1/chat/completions."""
        body = await request.json()
        number = self.model.requests + 1
        self.model.bodies.append(body)

        async def answer() -> web.Response:
            if fault := self.model_fault(number):
                return fault
            url = body["messages"][0]["content"][0]["image_url"]["url"]
            crop = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            message = {"role": "assistant", "content": self.answer(crop, body)}
            choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
            return web.json_response(
                {"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52}}
            )

        return await self.observed(self.model, answer)


@contextmanager
def serve() -> Iterator[Simulated]:
    """Run both servers on one free port of loopback, in a thread, until the block ends."""
    simulated = Simulated()
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_post("/detect", simulated.detect)
    app.router.add_get("/v1/models", simulated.list_models)
    app.router.add_post("/v1/chat/completions", simulated.complete)
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        simulated.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("the simulated servers did not start")
    try:
        yield simulated
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
