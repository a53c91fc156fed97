"""The two servers' protocols: the requests of all rungs, and how to read the answers."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from typing import Any

import msgpack

from pipeline import job as jobs
from pipeline.clients.model import data_url
from pipeline.stages.boxes import padded_box

JOB = jobs.load("dog_breeds")
MSGPACK = {"Content-Type": "application/msgpack"}


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the detector and the model answer."""

    detector_url: str
    model_url: str
    """With its /v1."""
    model: str
    api_key: str = "none"


def detect_request(image: bytes) -> bytes:
    """The body of a request to the detector, for an encoded image."""
    packed: bytes = msgpack.packb({"image": image, "labels": JOB.labels, "threshold": JOB.threshold})
    return packed


def read_dogs(body: bytes) -> list[dict[str, list[int]]]:
    """The detector's answer: each dog's `box`, and the `cut` with some context around it.

    Both are xyxy, whole pixels of the upright image.
    """
    found = msgpack.unpackb(body)
    size = found["width"], found["height"]
    return [
        {
            "box": [round(side) for side in dog["box"]],
            "cut": list(padded_box(dog["box"], JOB.crop.margin, size)),
        }
        for dog in found["boxes"]
    ]


def detect(servers: Servers, image: bytes) -> list[dict[str, list[int]]]:
    """Ask the detector about an encoded image, and wait."""
    request = urllib.request.Request(f"{servers.detector_url}/detect", detect_request(image), MSGPACK)
    with urllib.request.urlopen(request) as response:
        return read_dogs(response.read())


def question(model: str, crop: bytes) -> dict[str, Any]:
    """The arguments of the openai client's `chat.completions.create` for one dog, cut out as a JPEG or PNG.

    The image comes before the text, and the schema restricts the answer.
    """
    media_type = b"image/png" if crop.startswith(b"\x89PNG") else b"image/jpeg"
    picture = {"type": "image_url", "image_url": {"url": data_url(crop, media_type).decode()}}
    schema = {"name": "dog", "schema": JOB.questions[0].answer_schema, "strict": True}
    return {
        "model": model,
        "messages": [{"role": "user", "content": [picture, {"type": "text", "text": JOB.questions[0].question}]}],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_tokens": JOB.questions[0].max_tokens,
        "temperature": JOB.temperature,
    }
