"""A server that misbehaves on order, for tests and for people: `python -m tests.doubles.faults --help`.

It speaks the protocols of the model server and the detector; each request is answered, or gets one of MODEL_FAULTS or
DETECTOR_FAULTS instead, chosen by its number and a seed, so that two runs see the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgpack
from aiohttp import web

from tests.doubles.capacity import Capacity, Limited
from tests.doubles.simulated import ANSWER, Fault, Misbehaviour, completion, detection, listen, message

# What a client that gives up after `request_timeout_s` takes for never.
NEVER_S = 3600.0


async def rate_limit(request: web.Request) -> web.StreamResponse:
    """429 with a Retry-After of a fifth of a second."""
    return web.Response(status=429, headers={"Retry-After": "0.2"}, text="too many requests")


async def error(request: web.Request) -> web.StreamResponse:
    """500."""
    return web.Response(status=500, text="internal error")


async def unavailable(request: web.Request) -> web.StreamResponse:
    """503 without a word of when to come back."""
    return web.Response(status=503, text="unavailable")


async def cdn_timeout(request: web.Request) -> web.StreamResponse:
    """524, a CDN's word for a server behind it that took too long, as a page."""
    page = "<!DOCTYPE html><html><head><title>models.example | 524: A timeout occurred</title></head></html>"
    return web.Response(status=524, text=page, content_type="text/html")


async def error_in_200(request: web.Request) -> web.StreamResponse:
    """200, and a gateway's error in place of an answer."""
    return web.json_response({"error": {"message": "Provider returned error", "code": 502}})


async def empty(request: web.Request) -> web.StreamResponse:
    """200, and nothing."""
    return web.Response()


async def hang(request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.sleep(NEVER_S)
    return web.Response()


async def slow_body(request: web.Request) -> web.StreamResponse:
    """Headers at once, then a byte a second."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 10_000
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(1.0)


async def broken_off(request: web.Request) -> web.StreamResponse:
    """Headers and half of the body, and then the connection is cut."""
    response = web.StreamResponse()
    response.content_length = 10_000
    await response.prepare(request)
    await response.write(bytes(5_000))
    return await reset(request)


async def truncated(request: web.Request) -> web.StreamResponse:
    """200, and JSON that breaks off."""
    return completion(json.dumps(ANSWER)[:20])


async def wrong_schema(request: web.Request) -> web.StreamResponse:
    """200, and JSON that the job's schema does not allow."""
    return completion(json.dumps(ANSWER | {"breed": "cat"}))


async def cut(request: web.Request) -> web.StreamResponse:
    """200, and an answer that ran into max_tokens."""
    return completion(json.dumps(ANSWER)[:20], "length")


async def garbage(request: web.Request) -> web.StreamResponse:
    """200, and a page in place of JSON."""
    return web.Response(text="<html>proxy error</html>", content_type="text/html")


async def reset(request: web.Request) -> web.StreamResponse:
    """The connection is cut."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def short_message(request: web.Request) -> web.StreamResponse:
    """200, and MessagePack that breaks off."""
    return web.Response(body=msgpack.packb(detection([[0, 0, 9, 9]]))[:-9])


def sends(**wrong: Any) -> Misbehaviour:
    """200, and the detector's message with other values in it."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return message(detection([[0, 0, 9, 9]]) | wrong)

    return respond


def finds(*box: float) -> Misbehaviour:
    """200, and a box that is none, or lies where no image is."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return message(detection([list(box)]))

    return respond


# What a later try of the same request heals.
HEALING: dict[str, Misbehaviour] = {
    "rate-limit": rate_limit,
    "error": error,
    "unavailable": unavailable,
    "hang": hang,
    "slow-body": slow_body,
    "reset": reset,
    "broken-off": broken_off,
    "cdn-timeout": cdn_timeout,
    "error-in-200": error_in_200,
    "empty": empty,
    "garbage": garbage,
}
# A try that these struck does not count.
UNCOUNTED = frozenset({"rate-limit"})
MODEL_FAULTS: dict[str, Misbehaviour] = HEALING | {
    "truncated": truncated,
    "wrong-schema": wrong_schema,
    "cut": cut,
}
# With these the image has detections, which fail when they are to be cut out.
BAD_BOXES: dict[str, Misbehaviour] = {
    "outside": finds(90_000, 90_000, 90_100, 90_100),
    "no-area": finds(9, 9, 9, 9),
    "no-numbers": finds(math.nan, 0, math.inf, 9),
}
DETECTOR_FAULTS: dict[str, Misbehaviour] = (
    HEALING
    | BAD_BOXES
    | {
        "truncated": short_message,
        "wrong-boxes": sends(boxes=[{"box": [0, 0, "9"], "label": 1, "score": "high"}]),
        "wrong-score": sends(boxes=[{"box": [0, 0, 9, 9], "label": "dog", "score": math.nan}]),
        "wrong-size": sends(width=0),
    }
)


def misbehave(
    rates: dict[str, float], seed: int = 0, after: int = 0, kinds: Mapping[str, Misbehaviour] = MODEL_FAULTS
) -> Fault:
    """Some of the `kinds` at given rates (0 to 1, of all requests); the first `after` requests are answered."""

    def fault(number: int) -> Misbehaviour | None:
        if number <= after:
            return None
        drawn = random.Random(f"{seed} {number}").random()
        for kind, rate in rates.items():
            if drawn < rate:
                return kinds[kind]
            drawn -= rate
        return None

    return fault


def parse_fault(text: str, kinds: Mapping[str, Misbehaviour] = MODEL_FAULTS) -> tuple[str, float]:
    """`kind=rate`."""
    kind, _, rate = text.partition("=")
    if kind not in kinds:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(kinds)}")
    try:
        share = float(rate)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {kind}=RATE with a rate from 0 to 1")
    return kind, share


def grid(boxes: int) -> list[list[float]]:
    """Small boxes, side by side."""
    return [[20.0 * (n % 20), 20.0 * (n // 20), 20.0 * (n % 20) + 16, 20.0 * (n // 20) + 16] for n in range(boxes)]


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9300, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument(
        "--latency", type=float, default=0.05, help="seconds that an answer takes (default: %(default)s)"
    )
    parser.add_argument(
        "--spread", type=float, default=0.0, help="sigma of a lognormal distribution around it (default: %(default)s)"
    )
    parser.add_argument("--at-once", type=int, help="questions that are worked on at once (default: any number)")
    parser.add_argument("--boxes", type=int, default=3, help="boxes in each image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and faults (default: %(default)s)")
    parser.add_argument("--after", type=int, default=0, help="answer this many requests first (default: %(default)s)")
    for option, service, kinds in (
        ("--fault", "model server", MODEL_FAULTS),
        ("--detector-fault", "detector", DETECTOR_FAULTS),
    ):
        parser.add_argument(
            option,
            type=partial(parse_fault, kinds=kinds),
            action="append",
            default=[],
            metavar="KIND=RATE",
            help=f"of the {service}, may be repeated; kinds: {', '.join(kinds)}",
        )
    parser.add_argument("--restart-every", type=int, default=0, help="so many questions (default: never)")
    parser.add_argument("--away", type=float, default=5.0, help="seconds that a restart takes (default: %(default)s)")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    simulated = Limited(
        keep_bodies=False,
        model_capacity=Capacity(arguments.latency if arguments.at_once else 0.0, arguments.at_once),
        model_fault=misbehave(dict(arguments.fault), arguments.seed, arguments.after),
        detector_fault=misbehave(
            dict(arguments.detector_fault), arguments.seed, arguments.after, kinds=DETECTOR_FAULTS
        ),
    )
    every = arguments.restart_every
    simulated.restart = lambda number: arguments.away if every and number % every == 0 else None
    if arguments.at_once is None:
        simulated.latency = lambda: arguments.latency * math.exp(draw.gauss(0, arguments.spread))
    boxes = grid(arguments.boxes)
    simulated.boxes = lambda image: boxes
    print(
        f"SPOTTER_DETECTOR_URL=http://127.0.0.1:{arguments.port} SPOTTER_MODEL_URL=http://127.0.0.1:{arguments.port}/v1"
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(listen(simulated, arguments.port, lambda: None))


if __name__ == "__main__":
    main()
