"""Simulated servers that take only so many requests at once, as real ones do; the others wait their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from aiohttp import web

from tests.doubles.simulated import Fault, Misbehaviour, Simulated, Traffic


@dataclass(frozen=True, slots=True)
class Capacity:
    """How long one request takes, and how many are worked on at once (None: any number)."""

    seconds: float
    at_once: int | None = None
    steps: int = 1
    """In which the time passes: a host that stops for a while adds one of them at most to what is done meanwhile."""

    def makespan(self, requests: int) -> float:
        """Seconds in which the server can answer this many requests that all lie before it."""
        at_once = self.at_once or max(requests, 1)
        return -(-requests // at_once) * self.seconds


@dataclass
class Limited(Simulated):
    """Both servers, with their capacities."""

    detector_capacity: Capacity = Capacity(0.0)
    model_capacity: Capacity = Capacity(0.0)
    turns: dict[int, asyncio.Semaphore] = field(default_factory=dict)
    running: int = 0
    """Requests that the model works on."""

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self.model.in_flight - self.running

    def gauges(self) -> str:
        """Both as vLLM has them, to be served as `metrics`."""
        values = {"running": self.running, "waiting": self.waiting}
        return "".join(
            f'# TYPE vllm:num_requests_{state} gauge\nvllm:num_requests_{state}{{engine="0"}} {value}\n'
            for state, value in values.items()
        )

    async def observed(
        self, traffic: Traffic, fault: Fault, request: web.Request, answer: Callable[[], web.Response]
    ) -> web.StreamResponse:
        """Wait for a turn, and take the time that an answer takes; a request counts from its arrival."""
        capacity = self.detector_capacity if traffic is self.detector else self.model_capacity

        def work(number: int) -> Misbehaviour:
            async def respond(request: web.Request) -> web.StreamResponse:
                async with self.turn(traffic, capacity):
                    self.running += traffic is self.model
                    try:
                        for _ in range(capacity.steps):
                            await asyncio.sleep(capacity.seconds / capacity.steps)
                    finally:
                        self.running -= traffic is self.model
                instead = fault(number)
                if instead is None:
                    return answer()
                return instead if isinstance(instead, web.Response) else await instead(request)

            return respond

        return await super().observed(traffic, work, request, answer)

    def turn(self, traffic: Traffic, capacity: Capacity) -> AbstractAsyncContextManager[None]:
        """What a request holds while it is worked on."""
        if capacity.at_once is None:
            return nullcontext()
        return self.turns.setdefault(id(traffic), asyncio.Semaphore(capacity.at_once))
