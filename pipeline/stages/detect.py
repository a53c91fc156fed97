"""The second stage: ask the detector where the job's objects are."""

from __future__ import annotations

from typing import Any

import daft
from daft import col
from daft.functions import coalesce

from pipeline.clients.detector import DetectorClient
from pipeline.metrics.stage import CROP, DETECT
from pipeline.runtime.runtime import Runtime
from pipeline.stages.batches import BATCH, in_flight_batches
from pipeline.stages.schema import DETECTED


class Detect:
    """Asks the detector about each image that could be read."""

    def __init__(self, client: DetectorClient, runtime: Runtime) -> None:
        self.client = client
        self.runtime = runtime

    @daft.method(return_dtype=DETECTED)
    async def __call__(
        self, path: bytes, upload: bytes | None, width: int | None, key: str | None
    ) -> dict[str, Any] | None:
        """Boxes in the pixels of the upright image; null for an image that could not be read, or a duplicate."""
        try:
            return await self.detect(upload, width, key) if upload and width else None
        finally:
            self.runtime.budget.detected(path)

    async def detect(self, upload: bytes, width: int, key: str | None) -> dict[str, Any]:
        """Boxes in pixels of the image, which is `width` pixels wide; `upload` may be a smaller copy of it."""
        detected: dict[str, Any] = {}
        with self.runtime.request(DETECT, key) as step:
            found = await self.client.detect(upload)
            step.latency_s = found.latency_s
            scale = width / found.width
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


def detect(images: daft.DataFrame, client: DetectorClient, runtime: Runtime, batch: int = BATCH) -> daft.DataFrame:
    """`image`, in batches of so many -> + `detected`."""
    batches = in_flight_batches(client.http.limits.concurrency, batch)
    stage = daft.cls(Detect, max_concurrency=batches)(client, runtime)
    image = col("image")
    upload = coalesce(image["copy"], image["data"])
    return images.with_column("detected", stage(col("path"), upload, image["width"], image["key"]))
