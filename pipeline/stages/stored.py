"""In the place of reading, detecting and cropping: the detections and crops of an earlier run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
import pyarrow.compute as pc
from daft import DataType, col, lit

from pipeline.errors import RowError
from pipeline.metrics.stage import ASK, CROP, READ
from pipeline.runtime.runtime import Runtime, failure
from pipeline.sources.earlier_run import AskedAgain
from pipeline.sources.listing import Source
from pipeline.stages.batches import BATCH
from pipeline.stages.read import SeenContent
from pipeline.stages.schema import BOX, DETECTION, FAILURE
from pipeline.tables import FAILED

# What the flow knows of a detection before its crop is read.
STORED_DETECTION = pa.struct(
    [
        *(pa.field(name, kind.to_arrow_dtype()) for name, kind in BOX.items()),
        pa.field("crop", pa.string()),
        pa.field("failure", FAILURE.to_arrow_dtype()),
    ]
)
ROW = pa.schema(
    [
        pa.field("path", pa.binary()),
        pa.field("version", pa.string()),
        pa.field("inputs", pa.string()),
        pa.field("video", pa.string()),
        pa.field("frame", pa.int64()),
        pa.field("time_s", pa.float64()),
        pa.field("key", pa.string()),
        pa.field("duplicate", pa.bool_()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("file_bytes", pa.int64()),
        pa.field("detect_attempts", pa.int32()),
        pa.field("image_failure", FAILURE.to_arrow_dtype()),
        pa.field("detections", pa.uint64()),
        pa.field("stored", STORED_DETECTION),
    ]
)


class AdmitCrops:
    """Lets a batch of crops into the flow when the memory budget has room for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.budget = runtime.budget

    @daft.method.batch(return_dtype=DataType.string())
    async def __call__(self, names: daft.Series) -> daft.Series:
        """The names of their files, when they may pass; null for a detection without a crop."""
        await self.budget.admit({name.encode(): None for name in names.to_pylist() if name is not None})
        return names


class ReadCrop:
    """Reads the crops of an earlier run."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder = folder
        self.runtime = runtime

    @daft.method(return_dtype=DETECTION)
    def __call__(self, stored: dict[str, Any] | None, key: str | None, name: str | None) -> dict[str, Any] | None:
        """The detection with its JPEG, the file `name`, or why it has none."""
        if stored is None or name is None:
            return stored
        jpeg = None
        with self.runtime.step(CROP, key, stored["index"]) as step:
            jpeg = self.read(name)
            step.bytes_in = step.bytes_out = len(jpeg)
            step.hand_on(ASK)
        self.runtime.budget.loaded(name.encode(), len(jpeg or b""))
        self.runtime.budget.cropped(name.encode(), len(jpeg or b""))
        return stored | {"jpeg": jpeg, "failure": step.failure}

    def read(self, name: str) -> bytes:
        """A crop.

        Raises:
            RowError: it is not there any more.
        """
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise RowError(f"{self.folder / name}: {error.strerror}") from error


def stored_rows(earlier: AskedAgain, sources: list[Source], seen: SeenContent) -> Iterator[pa.RecordBatch]:
    """The rows of these images as ROW has them. An image that failed in the earlier run has failed here, too.

    Of images with the same content one is asked about, as in a run that reads them.
    """
    faults = {source.shown: source.inputs.fault for source in sources if source.inputs}
    for images in earlier.rows(sources):
        rows: list[dict[str, Any]] = []
        for image, detections in images:
            duplicate = image["key"] is not None and not seen.add(image["key"], os.fsencode(image["path"]))
            failed = None
            if not duplicate:
                failed = failure_of(image) if image["outcome"] == FAILED else fault(faults.get(image["path"]))
            own = [] if duplicate or failed else detections
            shared = {name: image[name] for name in ROW.names if name in image} | {
                "path": os.fsencode(image["path"]),
                "duplicate": duplicate,
                "detections": len(own),
                "detect_attempts": image["attempts"],
                "image_failure": failed,
            }
            rows += [shared | {"stored": stored_detection(each)} for each in own]
            if not own:
                rows.append(shared)
        yield pa.RecordBatch.from_pylist(rows, ROW)


def stored_detection(row: dict[str, Any]) -> dict[str, Any]:
    """A detection as STORED_DETECTION has it; one without a crop has failed for the reason of the earlier run."""
    cut = row["crop"] is not None
    return {name: row[name] for name in BOX} | {"crop": row["crop"], "failure": None if cut else failure_of(row)}


def failure_of(row: dict[str, Any]) -> dict[str, Any]:
    """Why a row failed."""
    return {name: row[name] for name in ("stage", "reason", "attempts")}


def fault(reason: str | None) -> dict[str, Any] | None:
    """The failure of an image whose row lacks an input of the job."""
    return None if reason is None else failure(READ, RowError(reason))


def stored_crops(earlier: AskedAgain, sources: list[Source], seen: SeenContent, runtime: Runtime) -> daft.DataFrame:
    """The columns that `stages.crop.crop` makes, for these images of an earlier run and their wanted detections."""
    rows = pa.Table.from_batches(stored_rows(earlier, sources, seen), ROW)
    crops = rows.num_rows - pc.sum(pc.is_null(pc.struct_field(rows["stored"], "crop"))).as_py()
    runtime.metrics.stages[CROP].arrive(time.perf_counter(), crops)
    admission = daft.cls(AdmitCrops, max_concurrency=1)(runtime)
    stage = daft.cls(ReadCrop, use_process=False)(earlier.run.folder, runtime)
    frame = daft.from_arrow(rows).into_batches(BATCH)
    admitted = frame.with_column("admitted", admission(col("stored")["crop"]))
    seconds = lit(None).cast(DataType.float32())
    detection = stage(col("stored"), col("key"), col("admitted"))
    columns = {"detection": detection, "read_s": seconds, "detect_s": seconds, "crop_s": seconds}
    return admitted.with_columns(columns).exclude("stored", "admitted")
