"""The job as a chain of functions from DataFrame to DataFrame: read -> detect -> crop -> ask -> store.

Two rules hold in each. No function raises: what went wrong with a row is a value of that row, `failure`, and later
stages pass the row by. And encoded bytes travel, pixels do not: Daft copies a decoded image for each of its detections
(40 images of 3 boxes each: 2.0 GB; encoded: 449 MB).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import daft
from daft import DataType, col
from daft.functions import coalesce

from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.crop import cut
from pipeline.images import BadImage, content_key, decode, for_detector
from pipeline.job import Crop, Job
from pipeline.stop import Stop, Stopped

# Rows of a batch: small before decoding keeps 600 images of 1080p at 0.5-0.7 GB instead of 2.7-3.0.
BATCH = 8

FAILURE = DataType.struct(
    {"stage": DataType.string(), "reason": DataType.string(), "attempts": DataType.int32()},
)
IMAGE = DataType.struct(
    {
        "key": DataType.string(),
        "width": DataType.int32(),
        "height": DataType.int32(),
        "format": DataType.string(),
        "file_bytes": DataType.int64(),
        "duplicate": DataType.bool(),  # the same bytes were read before: nothing is asked about them again
        "data": DataType.binary(),  # the file
        "upload": DataType.binary(),  # what the detector gets
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
BOX = DataType.struct(
    {
        "index": DataType.int32(),
        "label": DataType.string(),
        "box": DataType.list(DataType.float32()),
        "score": DataType.float32(),
    }
)
DETECTED = DataType.struct(
    {
        "boxes": DataType.list(BOX),
        "model": DataType.string(),
        "revision": DataType.string(),
        "attempts": DataType.int32(),
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
DETECTION = DataType.struct({"at": BOX, "jpeg": DataType.binary()})
CROPPED = DataType.struct(
    {
        "detections": DataType.list(DETECTION),
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
ANSWER = DataType.struct(
    {
        "raw": DataType.string(),  # without a failure it is JSON that fits the schema
        "latency": DataType.float32(),
        "attempts": DataType.int32(),
        "prompt_tokens": DataType.int32(),
        "completion_tokens": DataType.int32(),
        "failure": FAILURE,
    }
)
STORED = DataType.struct({"path": DataType.string(), "failure": FAILURE})


class Keys:
    """The keys of the contents that were seen; safe from several threads."""

    def __init__(self, seen: Iterable[str] = ()) -> None:
        self._seen = set(seen)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Keys], tuple[set[str]]]:
        """A copy elsewhere goes on from here by itself."""
        return Keys, (self._seen,)

    def add(self, key: str) -> bool:
        """Note a key; whether it is new."""
        with self._lock:
            new = key not in self._seen
            self._seen.add(key)
        return new


def failure(stage: str, reason: object, attempts: int = 1) -> dict[str, Any]:
    """What went wrong with a row, as one line."""
    return {"stage": stage, "reason": " ".join(str(reason).split())[:500], "attempts": attempts}


class ReadImage:
    """Reads files, finds what is wrong with them, and knows contents that were read before."""

    def __init__(self, known: Keys) -> None:
        self.known = known

    @daft.method(return_dtype=IMAGE)
    def __call__(self, path: bytes) -> dict[str, Any]:
        """Read a file, see that all of it decodes, and prepare what the detector gets."""
        started = time.perf_counter()
        image: dict[str, Any] = {"duplicate": False}
        try:
            data = Path(os.fsdecode(path)).read_bytes()
            image |= {"key": content_key(data), "file_bytes": len(data)}
            upright = decode(data)
            width, height = upright.pixels.size
            image |= {"width": width, "height": height, "format": upright.format}
            if self.known.add(image["key"]):
                image |= {"data": data, "upload": for_detector(data, upright)}
            else:
                image["duplicate"] = True
        except BadImage as error:
            image["failure"] = failure("read", error)
        except OSError as error:
            image["failure"] = failure("read", f"cannot be read: {error.strerror or error}")
        except Exception as error:  # the row fails, not the run
            image["failure"] = failure("read", f"{type(error).__name__}: {error}")
        return image | {"seconds": time.perf_counter() - started}


class Detect:
    """Asks the detector about each image that could be read."""

    def __init__(self, client: DetectorClient) -> None:
        self.client = client

    @daft.method(return_dtype=DETECTED)
    async def __call__(self, upload: bytes | None, width: int | None) -> dict[str, Any] | None:
        """Boxes in the pixels of the upright image (`width` pixels wide), which `upload` may be a smaller copy of."""
        if upload is None or width is None:
            return None
        started = time.perf_counter()
        detected: dict[str, Any] = {}
        try:
            found = await self.client.detect(upload)
            scale = width / found.width
            detected |= {"model": found.model, "revision": found.revision, "attempts": found.attempts}
            detected["boxes"] = [
                {"index": index, "label": box.label, "box": [value * scale for value in box.xyxy], "score": box.score}
                for index, box in enumerate(found.boxes)
            ]
        except RequestFailed as error:
            detected["failure"] = failure("detect", error, error.attempts)
        except Stopped as error:
            detected["failure"] = failure("detect", error, 0)
        except Exception as error:
            detected["failure"] = failure("detect", f"unexpected answer: {type(error).__name__}: {error}")
        return detected | {"seconds": time.perf_counter() - started}


class CropBoxes:
    """Cuts the boxes out of the image at full resolution."""

    def __init__(self, crop: Crop) -> None:
        self.crop = crop

    @daft.method(return_dtype=CROPPED)
    def __call__(self, data: bytes | None, boxes: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        """Each box with its JPEG."""
        if not data or not boxes:
            return None
        started = time.perf_counter()
        try:
            pixels = decode(data).pixels
            jpegs = [cut(pixels, box["box"], self.crop.margin, self.crop.max_side) for box in boxes]
        except Exception as error:
            return {"failure": failure("crop", f"{type(error).__name__}: {error}")}
        detections = [{"at": box, "jpeg": jpeg} for box, jpeg in zip(boxes, jpegs, strict=True)]
        return {"detections": detections, "seconds": time.perf_counter() - started}


class Ask:
    """Asks the model the job's question about each crop."""

    def __init__(self, client: ModelClient) -> None:
        self.client = client

    @daft.method(return_dtype=ANSWER)
    async def __call__(self, jpeg: bytes | None) -> dict[str, Any] | None:
        """The checked answer, or why there is none."""
        if jpeg is None:
            return None
        try:
            answer = await self.client.ask(jpeg)
        except BadAnswer as error:
            return {"raw": error.raw, "attempts": error.attempts, "failure": failure("ask", error, error.attempts)}
        except RequestFailed as error:
            return {"attempts": error.attempts, "failure": failure("ask", error, error.attempts)}
        except Stopped as error:
            return {"failure": failure("ask", error, 0)}
        except Exception as error:
            return {"failure": failure("ask", f"{type(error).__name__}: {error}")}
        return {
            "raw": answer.raw,
            "latency": answer.latency_s,
            "attempts": answer.attempts,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }


class StoreCrop:
    """Writes each crop into the run's folder."""

    def __init__(self, folder: Path, stop: Stop) -> None:
        self.folder = folder
        self.stop = stop

    @daft.method(return_dtype=STORED)
    def __call__(self, jpeg: bytes | None, key: str | None, index: int | None) -> dict[str, Any] | None:
        """The crop's path within the run's folder."""
        if jpeg is None:
            return None
        path = Path("crops", f"{key}-{index}.jpg")
        try:
            (self.folder / path).write_bytes(jpeg)
        except OSError as error:
            # No row is to blame for a full disk, and no later one will do better.
            self.stop.pull(f"cannot write {self.folder / path}: {error.strerror or error}: make room, then run again")
            return {"failure": failure("store", f"{path}: {error.strerror or error}")}
        return {"path": str(path)}


def in_flight_batches(concurrency: int, batch: int) -> int:
    """How many batches an async stage may hold so that `concurrency` rows are always in flight.

    The clients bound the rows. Twice the batches keep them busy while a batch waits for its slowest row.
    """
    return max(2, 2 * concurrency // batch)


def ask_batch(concurrency: int) -> int:
    """Rows of a batch of questions: a share of those in flight, so that a batch ends soon, and at most 32.

    Batches cost: of a bare client's rows per second at concurrency 256, batches of 1 / 8 / 32 reached 0.4 / 0.75 / 0.9.
    """
    return min(max(concurrency // 8, 1), 32)


def read(paths: daft.DataFrame, known: Keys) -> daft.DataFrame:
    """`path` (bytes, as the file system has it) -> + `image`. What is `known` is read, and no more."""
    stage = daft.cls(ReadImage, use_process=False)(known)
    return paths.into_batches(BATCH).with_column("image", stage(col("path")))


def detect(images: daft.DataFrame, client: DetectorClient) -> daft.DataFrame:
    """`image` -> + `detected`: boxes in pixels of the upright image. What was sent to the detector is dropped."""
    stage = daft.cls(Detect, max_concurrency=in_flight_batches(client.http.limits.concurrency, BATCH))(client)
    return images.with_column("detected", stage(col("image")["upload"], col("image")["width"]))


def crop(detected: daft.DataFrame, job: Job) -> daft.DataFrame:
    """`image`, `detected` -> one row a `detection` (where and JPEG); an image without one keeps a row.

    The image's bytes are dropped before the explode, which would copy them to each detection.
    """
    stage = daft.cls(CropBoxes, use_process=False)(job.crop)
    cropped = detected.with_column("cropped", stage(col("image")["data"], col("detected")["boxes"]))
    image, found, cut_out = col("image"), col("detected"), col("cropped")
    slim = cropped.select(
        col("path"),
        col("modified_ns"),
        *(image[name] for name in ("key", "duplicate", "width", "height", "format", "file_bytes")),
        image["seconds"].alias("read_s"),
        found["seconds"].alias("detect_s"),
        cut_out["seconds"].alias("crop_s"),
        found["model"].alias("detector_model"),
        found["revision"].alias("detector_revision"),
        found["attempts"].alias("detect_attempts"),
        coalesce(image["failure"], found["failure"], cut_out["failure"]).alias("image_failure"),
        cut_out["detections"].length().alias("detections"),
        cut_out["detections"].alias("detection"),
    )
    return slim.explode("detection")


def ask(crops: daft.DataFrame, client: ModelClient) -> daft.DataFrame:
    """`detection` -> + `answer`."""
    concurrency = client.http.limits.concurrency
    batch = ask_batch(concurrency)
    stage = daft.cls(Ask, max_concurrency=in_flight_batches(concurrency, batch))(client)
    return crops.into_batches(batch).with_column("answer", stage(col("detection")["jpeg"]))


def store(answered: daft.DataFrame, folder: Path, stop: Stop) -> daft.DataFrame:
    """`detection` -> the crop as a file in `folder`/crops, with `at` and `stored`; its bytes are dropped."""
    stage = daft.cls(StoreCrop, use_process=False)(folder, stop)
    at, jpeg = col("detection")["at"], col("detection")["jpeg"]
    return answered.with_columns({"at": at, "stored": stage(jpeg, col("key"), at["index"])}).exclude("detection")
