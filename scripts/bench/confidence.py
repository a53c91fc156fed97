"""Does a low confidence tell a wrong answer? Ask a served model about fresh crops, most of them spoilt.

    ./spotter up
    SPOTTER_API_KEY=$(cat .spotter/api_key) python -m scripts.bench.confidence

The bundled model is nearly always right about clean crops, so most are spoilt by noise, by few pixels or by a bar over
the dog. For each property: the share of right answers, and AUROC, the chance that a wrong answer has a lower confidence
than a right one (0.5: it tells nothing). It also says what logprobs cost: bytes of a reply, and CPU time of this side.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import random
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw

from pipeline import job as jobs
from pipeline.clients.dialects import RequestForm
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import Answer, ModelClient
from samples.crops import LabelledCrop, labelled_crops
from samples.evaluate_vlm import BOX_SPREAD


def spoilt(jpeg: bytes, generator: random.Random) -> bytes:
    """A crop with noise, with fewer pixels or with a bar over it; one in four stays as it is."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    kind = generator.choice(("none", "noise", "small", "bar"))
    if kind == "noise":
        noise = Image.frombytes("RGB", image.size, generator.randbytes(3 * image.width * image.height))
        image = Image.blend(image, noise, generator.uniform(0.3, 0.8))
    if kind == "small":
        side = generator.randint(6, 24)
        image = image.resize((side, side)).resize(image.size)
    if kind == "bar":
        hidden = generator.uniform(0.4, 0.9)
        left = generator.uniform(0, 1 - hidden) * image.width
        ImageDraw.Draw(image).rectangle((left, 0, left + hidden * image.width, image.height), fill=(120, 120, 120))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def auroc(wrong: Sequence[float], right: Sequence[float]) -> float | None:
    """The chance that a wrong answer has a lower confidence than a right one, ties by half; None without both."""
    if not wrong or not right:
        return None
    ordered = sorted(right)
    higher = sum(len(ordered) - bisect_right(ordered, value) for value in wrong)
    ties = sum(bisect_right(ordered, value) - bisect_left(ordered, value) for value in wrong)
    return (higher + ties / 2) / (len(wrong) * len(right))


async def ask_all(url: str, model: str, jpegs: Sequence[bytes], *, logprobs: bool) -> tuple[list[Answer], int]:
    """The answer about each crop, and the bytes of one reply."""
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("SPOTTER_API_KEY")) else {}
    http = HttpClient(url, Limits(concurrency=16), name="model server", headers=headers)
    client = ModelClient(http, model, jobs.load("dog_breeds"), RequestForm(logprobs=logprobs))
    try:
        one = await http.post(client.path, client.forms[0].body(jpegs[0], {}), "application/json")
        return await asyncio.gather(*(client.ask(jpeg) for jpeg in jpegs)), len(one.body)
    finally:
        await http.aclose()


def measured(url: str, model: str, jpegs: Sequence[bytes], *, logprobs: bool) -> list[Answer]:
    """The answers; says what they cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    answers, size = asyncio.run(ask_all(url, model, jpegs, logprobs=logprobs))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(answer.completion_tokens or 0 for answer in answers) / len(answers)
    name = "with logprobs" if logprobs else "without"
    print(
        f"{name}: {len(answers) / wall:.1f} answers/s, {tokens:.1f} tokens, {size} bytes a reply, "
        f"{1000 * cpu / len(answers):.2f} ms of CPU an answer here"
    )
    return answers


def show(crops: Sequence[LabelledCrop], answers: Sequence[Answer]) -> list[float]:
    """Print a line for each property; the AUROCs that are known."""
    known = []
    for name in crops[0].answer:
        doubts: dict[bool, list[float]] = {True: [], False: []}
        for crop, answer in zip(crops, answers, strict=True):
            if (confidence := answer.columns[f"{name}_confidence"]) is not None:
                doubts[answer.fields[name] == crop.answer[name]].append(confidence)
        area = auroc(doubts[False], doubts[True])
        total = len(doubts[True]) + len(doubts[False])
        line = f"{name}: {len(doubts[True])} of {total} right"
        if area is not None:
            known.append(area)
            mean = {right: sum(values) / len(values) for right, values in doubts.items()}
            line += f", AUROC {area:.3f}, mean confidence {mean[True]:.2f} of right, {mean[False]:.2f} of wrong answers"
        print(line)
    return known


def main() -> int:
    """Ask, measure and print; 1 where no property has an AUROC, or one is below --auroc."""
    parser = argparse.ArgumentParser(description="Measure whether low confidences tell wrong answers.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="API, with its /v1 (default: %(default)s)")
    parser.add_argument("--model", default="tiny-vlm", help="the model's name there (default: %(default)s)")
    parser.add_argument("-n", "--crops", type=int, default=400, help="crops to ask about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=6_000_000, help="seed of the first scene (default: %(default)s)")
    parser.add_argument("--auroc", type=float, default=0.7, help="lowest that is good (default: %(default)s)")
    given = parser.parse_args()
    crops = list(itertools.islice(labelled_crops(given.seed, BOX_SPREAD), given.crops))
    generator = random.Random(given.seed)
    jpegs = [spoilt(crop.jpeg, generator) for crop in crops]
    plain = measured(given.url, given.model, jpegs, logprobs=False)
    answers = measured(given.url, given.model, jpegs, logprobs=True)
    changed = sum(one.raw != other.raw for one, other in zip(plain, answers, strict=True))
    print(f"{changed} of {len(crops)} answers differ between both")
    areas = show(crops, answers)
    return 0 if areas and min(areas) >= given.auroc else 1


if __name__ == "__main__":
    sys.exit(main())
