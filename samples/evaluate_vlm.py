"""Ask a served model about fresh crops, with the pipeline's own client, and compare its answers with the truth.

Three questions: does it name what is in a crop; does its answer follow when the picture is replaced by that of
another breed; and does it know nothing without a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from samples.crops import LabelledCrop, labelled_crops

# Half of what the training boxes were moved by, and more than the tiny detector's error.
BOX_SPREAD = 0.05

# What a smoke test may rely on. Without a picture all answers are the same, so they are right for the share of one
# breed: 1 of 7, and in a draw of 300 crops less than 22% in 999 of 1,000 draws.
LEAST_RIGHT = 0.95
LEAST_FOLLOWED = 0.95
MOST_RIGHT_WITHOUT_PICTURE = 0.22

Fields = dict[str, Any]
# Returns the fields of the answer to the job's question about a JPEG, or about no picture at all.
Ask = Callable[[bytes | None], Awaitable[Fields]]


@dataclass(frozen=True)
class Figures:
    """Shares between 0 and 1."""

    right: dict[str, float]
    """Right values per property."""
    followed: float
    """Answers that name the breed of the picture that was put in place of another breed's."""
    right_without_picture: float
    """Crops whose breed is named without showing them."""

    @property
    def faults(self) -> list[str]:
        """One line for each limit that is not kept."""
        found = [
            f"{name} is right for {share:.1%} of the crops, expected at least {LEAST_RIGHT:.0%}"
            for name, share in self.right.items()
            if share < LEAST_RIGHT
        ]
        if self.followed < LEAST_FOLLOWED:
            found.append(f"{self.followed:.1%} follow a replaced picture, expected at least {LEAST_FOLLOWED:.0%}")
        if self.right_without_picture > MOST_RIGHT_WITHOUT_PICTURE:
            found.append(
                f"{self.right_without_picture:.1%} of the breeds are right without a picture, "
                f"expected at most {MOST_RIGHT_WITHOUT_PICTURE:.0%}: something else than the picture tells the answer"
            )
        return found


def of_other_breeds(crops: Sequence[LabelledCrop]) -> list[LabelledCrop]:
    """Return for each crop the next one, cyclically, that shows another breed."""
    others = []
    for index, crop in enumerate(crops):
        rotated = itertools.chain(crops[index + 1 :], crops[:index])
        other = next((candidate for candidate in rotated if candidate.answer["breed"] != crop.answer["breed"]), None)
        if other is None:
            raise ValueError(f"all {len(crops)} crops show one breed, expected two or more: draw more crops")
        others.append(other)
    return others


async def evaluate(crops: Sequence[LabelledCrop], ask: Ask) -> Figures:
    """Ask about each crop, about the crop that replaces it, and about no picture; all at once, as far as `ask` lets.

    An answer counts as following a replaced picture when it differs from the first answer and names the new breed.
    """
    replacements = of_other_breeds(crops)
    count = len(crops)
    answers = await asyncio.gather(*(ask(crop.jpeg) for crop in crops))
    replaced = await asyncio.gather(*(ask(crop.jpeg) for crop in replacements))
    blind = await asyncio.gather(*(ask(None) for _ in crops))
    right = {
        name: sum(answer[name] == crop.answer[name] for answer, crop in zip(answers, crops, strict=True)) / count
        for name in crops[0].answer
    }
    followed = sum(
        before["breed"] != after["breed"] == crop.answer["breed"]
        for before, after, crop in zip(answers, replaced, replacements, strict=True)
    )
    guessed = sum(answer["breed"] == crop.answer["breed"] for answer, crop in zip(blind, crops, strict=True))
    return Figures(right=right, followed=followed / count, right_without_picture=guessed / count)


async def ask_without_picture(client: ModelClient) -> Fields:
    """Send the pipeline's request with the picture left out."""
    content = [{"type": "text", "text": client.job.questions[0].question}]
    body = json.dumps(client.forms[0].request | {"messages": [{"role": "user", "content": content}]}).encode()
    reply = await client.http.post("/chat/completions", body, "application/json")
    return client.forms[0].parse(reply.body, reply.attempts, reply.latency_s).fields


async def evaluate_server(
    url: str, model: str, crops: Sequence[LabelledCrop], concurrency: int, api_key: str | None = None
) -> Figures:
    """Evaluate a model behind an OpenAI-compatible API with at most `concurrency` requests in flight.

    Raises RequestFailed or BadAnswer at the first request without an answer that fits the job's schema.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    http = HttpClient(url, Limits(concurrency=concurrency, attempts=1), name="model server", headers=headers)
    client = ModelClient(http, model, jobs.load("dog_breeds"))

    async def ask(jpeg: bytes | None) -> Fields:
        return await ask_without_picture(client) if jpeg is None else (await client.ask(jpeg)).fields

    try:
        return await evaluate(crops, ask)
    finally:
        await http.aclose()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure a served model's answers about fresh crops of drawn dogs.",
        epilog="A key that the server asks for is taken from SPOTTER_API_KEY. Exit code: 0 when all limits are kept, "
        "1 when one is not, 2 when the server does not answer as asked.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="API, with its /v1 (default: %(default)s)")
    parser.add_argument("--model", default="tiny-vlm", help="the model's name at the server (default: %(default)s)")
    parser.add_argument("-n", "--crops", type=int, default=300, help="crops to ask about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5_000_000, help="seed of the first scene (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight (default: %(default)s)")
    arguments = parser.parse_args()

    crops = list(itertools.islice(labelled_crops(arguments.seed, BOX_SPREAD), arguments.crops))
    started = time.monotonic()
    try:
        key = os.environ.get("SPOTTER_API_KEY")
        figures = asyncio.run(evaluate_server(arguments.url, arguments.model, crops, arguments.concurrency, key))
    except (RequestFailed, BadAnswer) as error:
        print(f"{arguments.url}, model {arguments.model}: {error}; is it up, and does it serve this model?")
        return 2
    elapsed = time.monotonic() - started
    for name, share in figures.right.items():
        print(f"{name}: {share:.1%} right")
    print(f"replaced pictures: {figures.followed:.1%} followed")
    print(f"without a picture: {figures.right_without_picture:.1%} of the breeds right")
    print(f"{3 * len(crops)} requests in {elapsed:.1f} s, {3 * len(crops) / elapsed:.1f} a second")
    for fault in figures.faults:
        print(f"fault: {fault}")
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
