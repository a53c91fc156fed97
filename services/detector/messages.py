"""What a client sends and gets, and what one stage of the service hands to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

FIELDS = frozenset({"image", "label", "threshold"})

# Longest label, in characters, that is looked up, and so the longest that an error repeats.
MAX_LABEL = 100


class MalformedRequest(Exception):
    """The request's body is not what `parse_request` describes; the message says where."""


class UnknownLabel(Exception):
    """The model does not know the request's label; the message names the labels that it knows."""


@dataclass(frozen=True, slots=True)
class Request:
    """One image to look at: `image` as encoded bytes, the label to look for, the least score of a box (or none)."""

    image: bytes
    label: str
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded image on its way to the model.

    `pixels` is `(height, width, 3)`, uint8, RGB, upright, scaled down towards the model's input size; `width` and
    `height` are those of the upright image before that, in pixels, and the measure of all boxes.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    label: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: `box` is `(x1, y1, x2, y2)` in pixels of the upright image and inside it.

    `score` lies in 0..1; it is None for a detector that gives none.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What the model found in one image, best first; no detection is an answer too."""

    detections: tuple[Detection, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The model could not answer for one image; `reason` is one line."""

    reason: str


Outcome = Found | Failed


def parse_request(body: bytes) -> Request:
    """Read a request: msgpack of `{"image": bytes, "label": str, "threshold": number 0..1 or nil, may be left out}`.

    Raises:
        MalformedRequest: the body is not msgpack, or a field is missing, unknown or of the wrong kind.
    """
    try:
        fields = msgpack.unpackb(body)
    except Exception as error:  # msgpack raises a dozen unrelated types on bytes that are not msgpack
        raise MalformedRequest(f"the body is not msgpack ({type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise MalformedRequest(f"the body is a msgpack {type(fields).__name__}, expected a map with image and label")
    if unknown := sorted(str(name)[:MAX_LABEL] for name in fields if name not in FIELDS):
        raise MalformedRequest(f"unknown field {unknown[0]!r}: expected image, label, threshold")
    image, label, threshold = fields.get("image"), fields.get("label"), fields.get("threshold")
    if not isinstance(image, bytes) or not image:
        raise MalformedRequest("image must be the encoded bytes of an image")
    if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL:
        raise MalformedRequest(f"label must be a text of 1 to {MAX_LABEL} characters")
    if threshold is None:
        return Request(image, label, None)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise MalformedRequest("threshold must be a number from 0 to 1, or nil for the service's default")
    return Request(image, label, float(threshold))


def check_label(label: str, known: frozenset[str] | None) -> None:
    """Refuse a label that the model does not know; `known` is None for a model that takes any.

    Raises:
        UnknownLabel: with the known labels, in alphabetical order.
    """
    if known is not None and label not in known:
        raise UnknownLabel(f"{label!r} is not a label of this model: known are {', '.join(sorted(known))}")


def answer(found: Found, model: str, revision: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a 200, before it is packed; `settings` are the service's that decide which boxes there are."""
    boxes = [{"box": list(item.box), "label": item.label, "score": item.score} for item in found.detections]
    made_by = {"model": model, "revision": revision, "settings": settings}
    return {"boxes": boxes, "width": found.width, "height": found.height, **made_by}
