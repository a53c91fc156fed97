"""The messages of the service: request, answer, and what one stage passes to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.detector.checkpoint import Checkpoint

# Longest label, in characters; also the longest name that an error repeats.
MAX_LABEL = 100


class MalformedRequest(Exception):
    """The request's body is invalid; the message names the field."""


class UnknownLabel(Exception):
    """The model does not know the request's label; the message names the known ones."""


class Request(BaseModel):
    """A request's fields: an encoded image, the label to look for, and the lowest score of a box."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: bytes = Field(min_length=1)
    label: str = Field(min_length=1, max_length=MAX_LABEL)
    threshold: float | None = Field(default=None, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded image for the model.

    `pixels` is `(height, width, 3)`, uint8, RGB, upright, scaled down towards the model's input size. `width` and
    `height` are those of the upright image before scaling, in pixels; boxes refer to them.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    label: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: `box` is `(x1, y1, x2, y2)` in pixels of the upright image and inside it.

    `score` lies in 0..1; None for a detector without scores.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """The detections in one image, best first; there may be none."""

    detections: tuple[Detection, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The model could not answer for one image; `reason` is one line."""

    reason: str


Outcome = Found | Failed


def parse_request(body: bytes) -> Request:
    """Read a request: msgpack of `{"image": bytes, "label": str, "threshold": number 0..1 or nil, optional}`.

    Raises:
        MalformedRequest: the body is not msgpack, or a field is missing, unknown or invalid.
    """
    try:
        fields = msgpack.unpackb(body)
    except Exception as error:  # msgpack raises a dozen unrelated types on bytes that are not msgpack
        raise MalformedRequest(f"the body is not msgpack ({type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise MalformedRequest(f"the body is a msgpack {type(fields).__name__}, expected a map with image and label")
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        name = str(fault["loc"][0])[:MAX_LABEL]
        if fault["type"] == "extra_forbidden":
            expected = ", ".join(Request.model_fields)
            raise MalformedRequest(f"unknown field {name!r}: expected {expected}") from None
        raise MalformedRequest(f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from None


def check_label(label: str, known: frozenset[str] | None) -> None:
    """Refuse a label that the model does not know; `known` is None for a model that takes any label.

    Raises:
        UnknownLabel: the message lists the known labels in alphabetical order.
    """
    if known is not None and label not in known:
        raise UnknownLabel(f"{label!r} is not a label of this model: known are {', '.join(sorted(known))}")


def answer(found: Found, checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a 200, before packing; `settings` are the service's settings that decide the boxes."""
    boxes = [{"box": list(item.box), "label": item.label, "score": item.score} for item in found.detections]
    made_by = {"model": checkpoint.model, "revision": checkpoint.revision, "settings": settings}
    size = {"width": found.width, "height": found.height, "input": list(checkpoint.input_size.largest)}
    return {"boxes": boxes, **size, **made_by}
