"""The detector service's client: an encoded image in, boxes in that image's pixels out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgpack
from pydantic import BaseModel, FiniteFloat, PositiveInt

from pipeline.clients.http import HttpClient, Reply, Request
from pipeline.clients.retries import MESSAGE_PACK
from pipeline.errors import RowError


class BadReply(RowError):
    """The detector answered in another form than its protocol."""


class Box(BaseModel):
    """A detection as the service sends it; a box of NaN or infinity fails alone, when it is cropped."""

    box: tuple[float, float, float, float]
    """`xyxy` in pixels of the image that was sent, upright."""
    label: str
    score: FiniteFloat | None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the stage `detect` has it."""

    path: bytes
    key: str
    upload: bytes
    """What the detector gets: the file, or a smaller copy."""
    width: int
    height: int
    """Pixels of the upright image."""


class Finder(Protocol):
    """What says where the objects of an image are."""

    @property
    def concurrency(self) -> int:
        """The most images that it takes at once."""

    async def find(self, picture: Picture) -> Detected:
        """The boxes of an image, best first.

        Raises:
            RowError: there are none to be had for it.
        """


@dataclass(frozen=True, slots=True)
class Detected:
    """The detector's answer for one image; boxes by descending score."""

    boxes: list[Box]
    width: int
    height: int
    model: str
    revision: str | None
    settings: dict[str, str | float]
    """Those of the service that decide which boxes there are, such as its threshold; empty where it tells none."""
    attempts: int
    latency_s: float
    """Of the request that was answered."""
    input: tuple[int, int] | None = None
    """Pixels across and down that the detector's model takes: more give no better boxes. None: it does not say."""


class Answer(BaseModel):
    """The service's answer, checked: what no column can hold fails its image here, and not the run later."""

    boxes: list[Box]
    width: PositiveInt
    height: PositiveInt
    model: str
    revision: str | None
    settings: dict[str, str | FiniteFloat] = {}
    input: tuple[PositiveInt, PositiveInt] | None = None


class DetectorClient:
    """Asks the service of services/detector; `service.py` there has the protocol."""

    def __init__(
        self, http: HttpClient, labels: Mapping[str, float | None] | None, threshold: float | None = None
    ) -> None:
        """`labels`: each with its lowest score, None for `threshold`, and that None for the detector's own.

        None in place of the labels: any that the detector knows.
        """
        self.http = http
        self.labels = labels
        self.threshold = threshold

    @property
    def concurrency(self) -> int:
        """The most images at once."""
        return self.http.limits.concurrency

    async def find(self, picture: Picture) -> Detected:
        """See `Finder.find`."""
        return await self.detect(picture.upload)

    async def detect(self, image: bytes) -> Detected:
        """Find the labels' objects in an encoded image.

        Raises:
            RequestFailed: the service refused the image or a label, or could not be reached.
            BadReply: it answered in another form.
        """
        body = msgpack.packb({"image": image, "labels": self.labels, "threshold": self.threshold})
        reply = await self.http.post("/detect", body, MESSAGE_PACK)
        try:
            return read(reply)
        except BadReply:
            second = await self.http.second(Request("POST", "/detect", body, MESSAGE_PACK), reply)
            if second is None:
                raise
            return read(second)


def read(reply: Reply) -> Detected:
    """The detector's answer, checked.

    Raises:
        BadReply: it is in another form.
    """
    try:
        answer = Answer.model_validate(msgpack.unpackb(reply.body))
    except (ValueError, LookupError, TypeError, msgpack.UnpackException) as error:
        raise BadReply(f"unexpected answer: {type(error).__name__}: {error}", reply.attempts) from error
    # A detector without scores keeps its order; ties are broken by place, so that two runs agree.
    answer.boxes.sort(key=lambda box: (-(box.score or 0.0), box.box))
    return Detected(
        answer.boxes,
        answer.width,
        answer.height,
        answer.model,
        answer.revision,
        answer.settings,
        reply.attempts,
        reply.latency_s,
        answer.input,
    )
