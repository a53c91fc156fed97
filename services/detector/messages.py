"""The messages of the service: request, answer, and what one stage passes to the next."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.detector.checkpoint import Checkpoint

# Longest label, in characters; also the longest name that an error repeats.
MAX_LABEL = 100

# So many of a model's labels an error lists; COCO has 80.
SHOWN_LABELS = 100


class MalformedRequest(Exception):
    """The request's body is invalid; the message names the field."""


class UnknownLabel(Exception):
    """The model does not know labels of the request; the message names the known ones."""


Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]
Score = Annotated[float, Field(ge=0, le=1)]


class Request(BaseModel):
    """A request's fields: an encoded image, the labels to look for, and the lowest score of a box.

    `labels`: each label and its lowest score, None for `threshold`; None in place of the map: any label of the model.
    `threshold`: None for the service's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: bytes = Field(min_length=1)
    labels: Annotated[dict[Label, Score | None], Field(min_length=1)] | None
    threshold: Score | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded image for the model.

    `pixels` is `(height, width, 3)`, uint8, RGB, upright, scaled down towards the model's input size. `width` and
    `height` are those of the upright image before scaling, in pixels; boxes refer to them. `labels` has the lowest
    score of each label to look for; None: any label that the model knows, from `threshold`.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    labels: Mapping[str, float] | None
    threshold: float

    def least(self, label: str) -> float | None:
        """The lowest score of a box with this label; None for a label that is not looked for."""
        return self.threshold if self.labels is None else self.labels.get(label)

    @property
    def lowest(self) -> float:
        """The lowest score of any box."""
        return self.threshold if self.labels is None else min(self.labels.values())


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


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot look for a label of this request; `reason` is one line, for the client."""

    reason: str


Outcome = Found | Failed | Refused


def parse_request(body: bytes) -> Request:
    """Read a request: msgpack of `{"image": bytes, "labels": {label: 0..1 or nil} or nil, "threshold": 0..1 or nil}`.

    Raises:
        MalformedRequest: the body is not msgpack, or a field is missing, unknown or invalid.
    """
    try:
        fields = msgpack.unpackb(body)
    except Exception as error:  # msgpack raises a dozen unrelated types on bytes that are not msgpack
        raise MalformedRequest(f"the body is not msgpack ({type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise MalformedRequest(f"the body is a msgpack {type(fields).__name__}, expected a map with image and labels")
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        name = str(fault["loc"][0])[:MAX_LABEL]
        if "label" in fields:
            raise MalformedRequest(
                "'label' is no field of a request: send labels, a map of each to 0..1 or nil"
            ) from None
        if fault["type"] == "extra_forbidden":
            expected = ", ".join(Request.model_fields)
            raise MalformedRequest(f"unknown field {name!r}: expected {expected}") from None
        raise MalformedRequest(f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from None


def check_labels(labels: Mapping[str, Any] | None, known: frozenset[str] | None) -> None:
    """Refuse labels that the model does not know; `known` is None for a model that takes free text.

    Raises:
        UnknownLabel: the message names all unknown labels, labels like them, and the known ones in alphabetical order.
    """
    if labels is None:
        if known is None:
            raise UnknownLabel("this model takes free text and has no list of labels: name the labels to look for")
        return
    if known is None or not (wrong := [label for label in labels if label not in known]):
        return
    said = ", ".join(repr(label) + _near(label, known) for label in wrong)
    shown = sorted(known)[:SHOWN_LABELS]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    verb = "is not a label" if len(wrong) == 1 else "are not labels"
    raise UnknownLabel(f"{said} {verb} of this model: known are {', '.join(shown)}{more}")


def _near(label: str, known: frozenset[str]) -> str:
    """A known label that is like this one, as a question; empty if none is."""
    folded = {name.casefold(): name for name in sorted(known)}
    near = difflib.get_close_matches(label.casefold(), folded, n=1)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def answer(found: Found, checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a 200, before packing; `settings` are the service's settings that decide the boxes."""
    boxes = [{"box": list(item.box), "label": item.label, "score": item.score} for item in found.detections]
    made_by = {"model": checkpoint.model, "revision": checkpoint.revision, "settings": settings}
    size = {"width": found.width, "height": found.height, "input": list(checkpoint.input_size.largest)}
    return {"boxes": boxes, **size, **made_by}
