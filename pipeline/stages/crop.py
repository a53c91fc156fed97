"""The third stage: cut each detection out of its image; from here on a row is a detection."""

from __future__ import annotations

import time
from typing import Any

import daft
from daft import col
from daft.functions import coalesce

from pipeline.job import Crop
from pipeline.metrics.stage import ASK, COLLECT, CROP
from pipeline.runtime.runtime import Runtime, failure
from pipeline.sources.images import Upright, decode
from pipeline.stages.boxes import BadBox, cut, enough
from pipeline.stages.copies import Copies
from pipeline.stages.kept_pixels import KeptPixels
from pipeline.stages.schema import CROPPED


class CropBoxes:
    """Cuts the boxes out of the image, which is decoded as large as the crops need it."""

    def __init__(self, crop: Crop, runtime: Runtime, copies: Copies | None, kept: KeptPixels) -> None:
        self.crop = crop
        self.runtime = runtime
        self.copies = copies
        self.kept = kept

    @daft.method(return_dtype=CROPPED)
    def __call__(
        self, path: bytes, image: dict[str, Any] | None, boxes: list[dict[str, Any]] | None
    ) -> dict[str, Any] | None:
        """Each box with its JPEG; the image's bytes are released."""
        kept, data = self.kept.take(path)
        if image and data:
            image["data"] = data
        cropped = self.cut(image, boxes, kept) if image and image["data"] and boxes else None
        found = (cropped or {}).get("detections", [])
        self.runtime.budget.cropped(path, sum(len(each.get("jpeg", b"")) for each in found))
        return cropped

    def cut(self, image: dict[str, Any], boxes: list[dict[str, Any]], kept: Upright | None) -> dict[str, Any]:
        """Each box with its JPEG, or why it has none; `kept` is the image, if it is decoded already."""
        cropped: dict[str, Any] = {}
        with self.runtime.step(CROP, image["key"]) as step:
            step.bytes_in = len(image["data"])
            places, size = [box["box"] for box in boxes], (image["width"], image["height"])
            needed = enough(places, self.crop.margin, self.crop.max_side, size)
            large = kept is not None and max(kept.pixels.size) >= (needed or max(size))
            upright = kept if kept and large else decode(image["data"], needed)
            cropped["detections"] = [self.cut_one(upright, box) for box in boxes]
            if self.copies:
                self.copies.keep(image, upright)
            jpegs = [found["jpeg"] for found in cropped["detections"] if "jpeg" in found]
            step.bytes_out = sum(map(len, jpegs))
            if jpegs:
                step.hand_on(ASK, len(jpegs))
                self.runtime.metrics.stages[COLLECT].arrive(time.perf_counter(), len(boxes) - len(jpegs))
            else:
                step.hand_on(COLLECT, len(boxes))
        return cropped | {"seconds": step.seconds, "failure": step.failure}

    def cut_one(self, image: Upright, box: dict[str, Any]) -> dict[str, Any]:
        """A box with its JPEG, or why it has none; the image's other boxes are cut all the same."""
        crop, size = self.crop, (image.width, image.height)
        try:
            return box | {"jpeg": cut(image.pixels, box["box"], crop.margin, crop.max_side, crop.min_side, size)}
        except BadBox as error:
            return box | {"failure": failure(CROP, error)}


def crop(
    detected: daft.DataFrame,
    settings: Crop,
    runtime: Runtime,
    copies: Copies | None = None,
    kept: KeptPixels | None = None,
) -> daft.DataFrame:
    """`image`, `detected` -> one row a `detection` (box and JPEG); an image without a detection keeps one row.

    `copies` takes a small copy of each image that has detections. Pixels that are `kept` are not decoded again.

    The image's bytes are dropped before the explode, which would copy them to each detection: 40 images of 3 boxes took
    2.0 GB decoded and 449 MB encoded.
    """
    stage = daft.cls(CropBoxes, use_process=False)(settings, runtime, copies, kept or KeptPixels(0))
    cropped = detected.with_column("cropped", stage(col("path"), col("image"), col("detected")["boxes"]))
    image, found, cut_out = col("image"), col("detected"), col("cropped")
    slim = cropped.select(
        col("path"),
        col("version"),
        *(col(name) for name in ("inputs", "video", "frame", "time_s")),
        *(image[name] for name in ("key", "duplicate", "width", "height", "format", "frames", "file_bytes")),
        image["seconds"].alias("read_s"),
        found["seconds"].alias("detect_s"),
        cut_out["seconds"].alias("crop_s"),
        found["attempts"].alias("detect_attempts"),
        coalesce(image["failure"], found["failure"], cut_out["failure"]).alias("image_failure"),
        cut_out["detections"].length().alias("detections"),
        cut_out["detections"].alias("detection"),
    )
    return slim.explode("detection")
