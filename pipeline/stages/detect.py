"""The second stage: find out where the job's objects are."""

from __future__ import annotations

from typing import Any

import daft
from daft import col
from daft.functions import coalesce

from pipeline.clients.detector import Finder, Picture
from pipeline.metrics.stage import CROP, DETECT
from pipeline.runtime.runtime import Runtime
from pipeline.stages.batches import BATCH, in_flight_batches
from pipeline.stages.schema import DETECTED


class Detect:
    """Finds the objects of each image that could be read."""

    def __init__(self, finder: Finder, runtime: Runtime) -> None:
        self.finder = finder
        self.runtime = runtime

    @daft.method(return_dtype=DETECTED)
    async def __call__(
        self, path: bytes, upload: bytes | None, width: int | None, height: int | None, key: str | None
    ) -> dict[str, Any] | None:
        """Boxes in the pixels of the upright image; null for an image that could not be read, or a duplicate."""
        try:
            if not upload or not width or not height or not key:
                return None
            return await self.detect(Picture(path, key, upload, width, height))
        finally:
            self.runtime.budget.detected(path)

    async def detect(self, picture: Picture) -> dict[str, Any]:
        """Boxes in pixels of the image; its `upload` may be a smaller copy of it."""
        detected: dict[str, Any] = {}
        with self.runtime.request(DETECT, picture.key) as step:
            found = await self.finder.find(picture)
            step.latency_s = found.latency_s
            scale = picture.width / found.width
            detected = {
                "attempts": found.attempts,
                "boxes": [
                    {"index": index, "label": box.label, "box": [at * scale for at in box.box], "score": box.score}
                    for index, box in enumerate(found.boxes)
                ],
            }
            if found.boxes:
                step.hand_on(CROP)
        step.count()
        return detected | {"seconds": step.seconds, "failure": step.failure}


def detect(images: daft.DataFrame, finder: Finder, runtime: Runtime, batch: int = BATCH) -> daft.DataFrame:
    """`image`, in batches of so many -> + `detected`."""
    batches = in_flight_batches(finder.concurrency, batch)
    stage = daft.cls(Detect, max_concurrency=batches)(finder, runtime)
    image = col("image")
    upload = coalesce(image["copy"], image["data"])
    return images.with_column("detected", stage(col("path"), upload, image["width"], image["height"], image["key"]))
