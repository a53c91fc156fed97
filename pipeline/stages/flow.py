"""The job as a chain of functions from DataFrame to DataFrame: read -> detect -> crop -> ask -> store.

Two rules hold in each. No function raises: what went wrong with a row is a value of that row, `failure`, and later
stages pass the row by. And encoded bytes travel, pixels do not: Daft copies a decoded image for each of its detections
(40 images of 3 boxes each: 2.0 GB; encoded: 449 MB).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
from daft import DataType, Series, col
from daft.functions import coalesce, download
from PIL import Image

from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.job import Crop, Job
from pipeline.locations import is_object, is_utf8
from pipeline.metrics.stage import Account
from pipeline.runtime.cancellation import Stop, Stopped
from pipeline.runtime.memory_budget import Held
from pipeline.sources.images import BadImage, content_key, decode, for_detector
from pipeline.sources.listing import Reader, Row, Source, too_large
from pipeline.sources.objects import NoObject, StoreError
from pipeline.stages.crop import BadBox, cut, encoded_size
from pipeline.stages.reusable import KeptAnswers

# Rows of a batch: small before decoding keeps 600 images of 1080p at 0.5-0.7 GB instead of 2.7-3.0.
BATCH = 8

FAILURE = DataType.struct(
    {"stage": DataType.string(), "reason": DataType.string(), "attempts": DataType.int32()},
)
ROW = DataType.struct({"table": DataType.binary(), "column": DataType.string(), "number": DataType.int64()})
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
DETECTION = DataType.struct({"at": BOX, "jpeg": DataType.binary(), "failure": FAILURE})
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
ANSWER_ARROW = ANSWER.to_arrow_dtype()
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
    """What went wrong with a row, as one line; a path in it that is no UTF-8 is shown as escapes."""
    text = str(reason).encode("utf-8", "backslashreplace").decode()
    return {"stage": stage, "reason": " ".join(text.split())[:500], "attempts": attempts}


class Admit:
    """Lets a batch of images into the flow when there is room for their bytes."""

    def __init__(self, held: Held) -> None:
        self.held = held

    @daft.method.batch(return_dtype=DataType.binary())
    async def __call__(self, paths: daft.Series, sizes: daft.Series) -> daft.Series:
        """The paths, when they may pass."""
        await self.held.enter(dict(zip(paths.to_pylist(), sizes.to_pylist(), strict=True)))
        return paths


class ReadImage:
    """Reads images, finds what is wrong with them, and knows contents that were read before."""

    def __init__(self, reader: Reader, known: Keys, held: Held, account: Account) -> None:
        self.reader = reader
        self.known = known
        self.held = held
        self.account = account

    @daft.method(return_dtype=IMAGE)
    def __call__(
        self, path: bytes, row: dict[str, Any] | None, size: int | None, fetched: bytes | None
    ) -> dict[str, Any]:
        """Read an image, unless it was `fetched`; see that all of it decodes, and prepare what the detector gets."""
        began, cpu = self.account.read.begin(), time.thread_time()
        image: dict[str, Any] = {"duplicate": False}
        try:
            place = Row(os.fsdecode(row["table"]), row["column"], row["number"]) if row else None
            data = self.reader.read(path, place, size, fetched)
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
        except NoObject as error:
            image["failure"] = failure("read", error)
        except StoreError as error:
            image["failure"] = failure("fetch", error)
        except OSError as error:
            image["failure"] = failure("read", f"cannot be read: {error.strerror or error}")
        except Exception as error:  # the row fails, not the run
            image["failure"] = failure("read", f"{type(error).__name__}: {error}")
        upload: bytes = image.get("upload", b"")
        self.held.read(path, len(image.get("data", b"")) + len(upload))
        seconds = self.account.finish(
            self.account.read,
            began,
            self.account.detect if upload else self.account.collect,
            key=image.get("key"),
            failed="failure" in image,
            bytes_in=image.get("file_bytes", 0),
            bytes_out=len(upload),
            cpu_s=time.thread_time() - cpu,
        )
        return image | {"seconds": seconds}


class Detect:
    """Asks the detector about each image that could be read."""

    def __init__(self, client: DetectorClient, held: Held, account: Account) -> None:
        self.client = client
        self.held = held
        self.account = account

    @daft.method(return_dtype=DETECTED)
    async def __call__(
        self, path: bytes, upload: bytes | None, width: int | None, key: str | None
    ) -> dict[str, Any] | None:
        """Where things are in an image; null when it could not be read."""
        try:
            return await self.detected(upload, width, key)
        finally:
            self.held.detected(path)

    async def detected(self, upload: bytes | None, width: int | None, key: str | None) -> dict[str, Any] | None:
        """Boxes in the pixels of the upright image (`width` pixels wide), which `upload` may be a smaller copy of."""
        if upload is None or width is None:
            return None
        started = time.perf_counter()
        detected: dict[str, Any] = {}
        latency_s: float | None = None
        try:
            found = await self.client.detect(upload)
            latency_s = found.latency_s
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
        self.account.detect.count(failed="failure" in detected)
        (self.account.crop if detected.get("boxes") else self.account.collect).arrive(time.perf_counter())
        if key is not None and latency_s is not None and self.account.selection.has(key):
            self.account.asked(self.account.detect, started, latency_s, key)
        return detected | {"seconds": time.perf_counter() - started}


class CropBoxes:
    """Cuts the boxes out of the image at full resolution."""

    def __init__(self, crop: Crop, held: Held, account: Account) -> None:
        self.crop = crop
        self.held = held
        self.account = account

    @daft.method(return_dtype=CROPPED)
    def __call__(
        self, path: bytes, data: bytes | None, boxes: list[dict[str, Any]] | None, key: str | None
    ) -> dict[str, Any] | None:
        """Each box with its JPEG; the image is done with."""
        cropped = self.cut(data, boxes, key) if data and boxes else None
        self.held.cut(path, sum(len(found.get("jpeg", b"")) for found in (cropped or {}).get("detections", [])))
        return cropped

    def cut(self, data: bytes, boxes: list[dict[str, Any]], key: str | None) -> dict[str, Any]:
        """Each box with its JPEG, or why there is none."""
        began, cpu = self.account.crop.begin(), time.thread_time()
        jpegs: list[bytes] = []
        cropped: dict[str, Any] = {}
        try:
            pixels = decode(data).pixels
            cropped["detections"] = [self.cut_one(pixels, box) for box in boxes]
            jpegs = [found["jpeg"] for found in cropped["detections"] if "jpeg" in found]
            if jpegs and len(jpegs) < len(boxes):
                self.account.collect.arrive(time.perf_counter(), len(boxes) - len(jpegs))
        except Exception as error:
            cropped["failure"] = failure("crop", f"{type(error).__name__}: {error}")
        seconds = self.account.finish(
            self.account.crop,
            began,
            self.account.ask if jpegs else self.account.collect,
            len(jpegs) or (1 if "failure" in cropped else len(boxes)),
            key=key,
            failed="failure" in cropped,
            bytes_in=len(data),
            bytes_out=sum(map(len, jpegs)),
            cpu_s=time.thread_time() - cpu,
        )
        return cropped | {"seconds": seconds}

    def cut_one(self, pixels: Image.Image, box: dict[str, Any]) -> dict[str, Any]:
        """A box with its JPEG, or why there is none; the image's other boxes are cut all the same."""
        try:
            return {"at": box, "jpeg": cut(pixels, box["box"], self.crop.margin, self.crop.max_side)}
        except BadBox as error:
            return {"at": box, "failure": failure("crop", error)}


class Ask:
    """Asks the model the job's question about each crop."""

    def __init__(self, client: ModelClient, account: Account, kept: KeptAnswers) -> None:
        self.client = client
        self.account = account
        self.kept = kept

    # A batch as a whole: a coroutine and a conversion by Daft for each row took a fifth more CPU.
    @daft.method.batch(return_dtype=ANSWER)
    async def __call__(
        self,
        jpegs: daft.Series,
        keys: daft.Series | None = None,
        indices: daft.Series | None = None,
        boxes: daft.Series | None = None,
    ) -> pa.Array:
        """For each crop the checked answer, or why there is none; key and index name the crop in the run's profile.

        What was answered before about the same box of the same image is not asked again.
        """
        crops = jpegs.to_pylist()
        names = [[None] * len(crops) if column is None else column.to_pylist() for column in (keys, indices)]
        kept = list(map(self.kept.find, names[0], [None] * len(crops) if boxes is None else boxes.to_pylist()))
        asked = [None if answer else crop for crop, answer in zip(crops, kept, strict=True)]
        new = await asyncio.gather(*map(self.answer, asked, *names))
        self.note([answer for answer in new if answer is not None])
        self.pass_on(sum(answer is not None for answer in kept))
        return pa.array([before or answer for before, answer in zip(kept, new, strict=True)], ANSWER_ARROW)

    def pass_on(self, rows: int) -> None:
        """Count rows that had their answer already."""
        if rows:
            self.account.ask.count(rows)
            self.account.store.arrive(time.perf_counter(), rows)

    def note(self, answers: list[dict[str, Any]]) -> None:
        """Count the answers of a batch, which go on together."""
        if not answers:
            return
        self.account.ask.count(
            len(answers),
            sum("failure" in answer for answer in answers),
            sum(answer.get("prompt_tokens") or 0 for answer in answers),
            sum(answer.get("completion_tokens") or 0 for answer in answers),
        )
        self.account.store.arrive(time.perf_counter(), len(answers))

    async def answer(
        self, jpeg: bytes | None, key: str | None = None, index: int | None = None
    ) -> dict[str, Any] | None:
        """One crop's answer; never raises, so that no row takes its batch along."""
        if jpeg is None:
            return None
        came = time.perf_counter()
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
        if key is not None and self.account.selection.has(key):
            self.account.asked(self.account.ask, came, answer.latency_s, key, index, encoded_size(jpeg))
        return {
            "raw": answer.raw,
            "latency": answer.latency_s,
            "attempts": answer.attempts,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }


class StoreCrop:
    """Writes each crop into the run's folder."""

    def __init__(self, folder: Path, stop: Stop, held: Held, account: Account) -> None:
        self.folder = folder
        self.stop = stop
        self.held = held
        self.account = account

    @daft.method(return_dtype=STORED)
    def __call__(self, jpeg: bytes | None, key: str | None, index: int | None) -> dict[str, Any] | None:
        """The crop's path within the run's folder."""
        if jpeg is None:
            return None
        began = self.account.store.begin()
        self.held.stored(len(jpeg))
        path = Path("crops", f"{key}-{index}.jpg")
        stored: dict[str, Any] = {"path": str(path)}
        try:
            (self.folder / path).write_bytes(jpeg)
        except OSError as error:
            # No row is to blame for a full disk, and no later one will do better.
            self.stop.pull(f"cannot write {self.folder / path}: {error.strerror or error}: make room, then run again")
            stored = {"failure": failure("store", f"{path}: {error.strerror or error}")}
        self.account.finish(
            self.account.store,
            began,
            self.account.collect,
            key=key,
            index=index,
            failed="failure" in stored,
            bytes_in=len(jpeg),
            bytes_out=len(jpeg),
        )
        return stored


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


def listed(sources: list[Source]) -> daft.DataFrame:
    """`path` (bytes, as the file system has it), `version`, `row` (of a Parquet file, or null), `size`: the sources."""
    return daft.from_pydict(
        {
            "path": Series.from_pylist([source.path for source in sources], dtype=DataType.binary()),
            "version": Series.from_pylist([source.version for source in sources], dtype=DataType.string()),
            "row": Series.from_pylist([source.row and as_value(source.row) for source in sources], dtype=ROW),
            "size": Series.from_pylist([source.size for source in sources], dtype=DataType.int64()),
        }
    )


def as_value(row: Row) -> dict[str, Any]:
    """A row of a Parquet file as ROW has it: the file's path need not be text."""
    return {"table": os.fsencode(row.table), "column": row.column, "number": row.number}


def read(
    paths: daft.DataFrame, reader: Reader, known: Keys, held: Held, account: Account, batch: int = BATCH
) -> daft.DataFrame:
    """`path`, `row`, `size` -> + `image`. What is `known` is read, and no more; `held` opens the gate to each batch.

    Objects are fetched by Daft, a batch side by side. What it did not get, or was not asked for, the reader asks for
    once more, and then tells why there is none. The rows of a Parquet file are read as they are wanted: Daft's own
    reader held all of a file's pictures before a slow stage had taken them, 1.9 GB for 0.9 GB in one row group.
    """
    address = when_fetched(col("path"), col("row"), col("size"))
    fetched = download(address, on_error="null", io_config=reader.objects.config())
    admit = daft.cls(Admit, max_concurrency=1)(held)
    stage = daft.cls(ReadImage, use_process=False)(reader, known, held, account)
    admitted = paths.into_batches(batch).with_column("path", admit(col("path"), col("size")))
    images = admitted.with_column("fetched", fetched)
    image = stage(col("path"), col("row"), col("size"), col("fetched"))
    return images.with_column("image", image).exclude("row", "size", "fetched")


@daft.func(return_dtype=DataType.string())
def when_fetched(path: bytes, row: dict[str, Any] | None, size: int | None) -> str | None:
    """The address of an object that may be an image; null for all else, which the reader knows what to say of."""
    address = os.fsdecode(path)
    return address if row is None and is_object(address) and is_utf8(address) and not too_large(size) else None


def detect(
    images: daft.DataFrame, client: DetectorClient, held: Held, account: Account, batch: int = BATCH
) -> daft.DataFrame:
    """`image`, in batches of so many -> + `detected`: boxes in pixels of the upright image.

    What was sent to the detector is dropped.
    """
    batches = in_flight_batches(client.http.limits.concurrency, batch)
    stage = daft.cls(Detect, max_concurrency=batches)(client, held, account)
    image = col("image")
    return images.with_column("detected", stage(col("path"), image["upload"], image["width"], image["key"]))


def crop(detected: daft.DataFrame, job: Job, held: Held, account: Account) -> daft.DataFrame:
    """`image`, `detected` -> one row a `detection` (where and JPEG); an image without one keeps a row.

    The image's bytes are dropped before the explode, which would copy them to each detection.
    """
    stage = daft.cls(CropBoxes, use_process=False)(job.crop, held, account)
    cropped = detected.with_column(
        "cropped", stage(col("path"), col("image")["data"], col("detected")["boxes"], col("image")["key"])
    )
    image, found, cut_out = col("image"), col("detected"), col("cropped")
    slim = cropped.select(
        col("path"),
        col("version"),
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


def ask(
    crops: daft.DataFrame, client: ModelClient, account: Account | None = None, kept: KeptAnswers | None = None
) -> daft.DataFrame:
    """`detection` -> + `answer`. With an account, `key` and the detection's index name the rows in it.

    With an account, detections that have an answer among those `kept` are not asked about.
    """
    concurrency = client.http.limits.concurrency
    batch = ask_batch(concurrency)
    asking = daft.cls(Ask, max_concurrency=in_flight_batches(concurrency, batch))
    stage = asking(client, account or Account.nowhere(), kept or KeptAnswers())
    detection = col("detection")
    named = [col("key"), detection["at"]["index"]] if account else []
    named += [detection["at"]["box"]] if account and kept else []
    return crops.into_batches(batch).with_column("answer", stage(detection["jpeg"], *named))


def store(answered: daft.DataFrame, folder: Path, stop: Stop, held: Held, account: Account) -> daft.DataFrame:
    """`detection` -> the crop as a file in `folder`/crops, with `at` and `stored`; its bytes are dropped."""
    stage = daft.cls(StoreCrop, use_process=False)(folder, stop, held, account)
    at, jpeg, uncut = (col("detection")[name] for name in ("at", "jpeg", "failure"))
    stored = stage(jpeg, col("key"), at["index"])
    return answered.with_columns({"at": at, "uncut": uncut, "stored": stored}).exclude("detection")
