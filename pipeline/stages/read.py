"""The first stage: admit images to the memory budget, read them, and find broken ones and duplicates."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

import daft
from daft import DataType, Series, col
from daft.functions import download

from pipeline.locations import is_object, is_utf8
from pipeline.metrics.stage import DETECT, READ
from pipeline.runtime.in_process import InProcess
from pipeline.runtime.runtime import Runtime
from pipeline.sources.images import (
    COPY_BYTES,
    CROP_SIDE,
    UNKNOWN_INPUT,
    BadImage,
    content_key,
    copy_for_detector,
    decode_for_detector,
    frames,
)
from pipeline.sources.listing import Row, Source
from pipeline.sources.reader import Reader, too_large
from pipeline.stages.batches import BATCH
from pipeline.stages.kept_pixels import KeptPixels
from pipeline.stages.schema import IMAGE, ROW
from pipeline.tables import shown_path


class SeenContent(InProcess):
    """The content keys that were seen; safe from several threads."""

    def __init__(self, seen: Iterable[str] = ()) -> None:
        self._seen = set(seen)
        self._lock = threading.Lock()

    @property
    def keys(self) -> set[str]:
        """Those that were seen."""
        return self._seen

    def add(self, key: str, path: bytes) -> bool:
        """Note the key of an image, the one at this path; whether it is new."""
        with self._lock:
            new = key not in self._seen
            self._seen.add(key)
        return new


def held_bytes(size: int | None) -> int | None:
    """The memory that a file of this size will take, with the detector's copy of it; none if it is too large."""
    return size if size is None else 0 if too_large(size) else size + min(size, COPY_BYTES)


class Admission:
    """Lets a batch of images into the flow when the memory budget has room for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.budget = runtime.budget

    @daft.method.batch(return_dtype=DataType.binary())
    async def __call__(self, paths: daft.Series, sizes: daft.Series) -> daft.Series:
        """The paths, when they may pass."""
        await self.budget.admit(dict(zip(paths.to_pylist(), map(held_bytes, sizes.to_pylist()), strict=True)))
        return paths


class ReadImage:
    """Reads and checks images."""

    def __init__(
        self,
        reader: Reader,
        seen: SeenContent,
        runtime: Runtime,
        takes: tuple[int, int] | None,
        kept: KeptPixels,
    ) -> None:
        """`takes`: pixels across and down that the detector's model makes use of; None: no detector gets the image."""
        self.reader = reader
        self.seen = seen
        self.runtime = runtime
        self.takes = takes
        self.kept = kept

    @daft.method(return_dtype=IMAGE)
    def __call__(
        self,
        path: bytes,
        row: dict[str, Any] | None,
        size: int | None,
        fetched: bytes | None,
        inputs: str | None = None,
        fault: str | None = None,
    ) -> dict[str, Any]:
        """Read an image, unless it was `fetched`; check all of it, and prepare what the detector gets.

        `fault`: why nothing can be asked about it.
        """
        image: dict[str, Any] = {"duplicate": False}
        held = 0
        with self.runtime.step(READ) as step:
            if fault is not None:
                raise BadImage(fault)
            place = from_value(row) if row else None
            data = self.reader.read(path, place, size, fetched)
            step.key, step.bytes_in = content_key(data, inputs), len(data)
            image |= {"key": step.key, "file_bytes": len(data)}
            # Also at its smallest a decode reads all of the data, and so finds every fault.
            upright = decode_for_detector(data, self.takes or (1, 1), 1 if self.kept.full else CROP_SIDE)
            image |= {"width": upright.width, "height": upright.height, "format": upright.format}
            image["frames"] = frames(data, upright.format)
            image["duplicate"] = not self.seen.add(step.key, path)
            if not image["duplicate"]:
                copy = copy_for_detector(data, upright, self.takes) if self.takes else None
                kept = self.kept.keep(path, upright, data) and copy is not None
                image |= {"data": None if kept else data, "copy": copy}
                held = len(data) + len(copy or b"")
                step.bytes_out = len(copy or data)
                step.hand_on(DETECT)
        self.runtime.budget.loaded(path, held)
        return image | {"seconds": step.seconds, "failure": step.failure}


def listed(sources: list[Source]) -> daft.DataFrame:
    """The sources as `path` (bytes, as the file system has it), `version`, `row` (of a table, or null), `size`,
    `inputs` (JSON, or null), `fault` (why nothing can be asked, or null), and of frames `video`, `frame`, `time_s`."""
    inputs = [source.inputs for source in sources]
    frames = [source.row if source.row and source.row.is_frame else None for source in sources]
    return daft.from_pydict(
        {
            "path": Series.from_pylist([source.path for source in sources], dtype=DataType.binary()),
            "version": Series.from_pylist([source.version for source in sources], dtype=DataType.string()),
            "row": Series.from_pylist([source.row and as_value(source.row) for source in sources], dtype=ROW),
            "size": Series.from_pylist([source.size for source in sources], dtype=DataType.int64()),
            "inputs": Series.from_pylist([each and each.text for each in inputs], dtype=DataType.string()),
            "fault": Series.from_pylist(
                [source.fault or (source.inputs and source.inputs.fault) for source in sources],
                dtype=DataType.string(),
            ),
            "video": Series.from_pylist(
                [each and shown_path(os.fsencode(each.table)) for each in frames], dtype=DataType.string()
            ),
            "frame": Series.from_pylist([each and each.number for each in frames], dtype=DataType.int64()),
            "time_s": Series.from_pylist([source.time_s for source in sources], dtype=DataType.float64()),
        }
    )


def as_value(row: Row) -> dict[str, Any]:
    """A table's row as ROW has it: the table's path need not be text."""
    return {"table": os.fsencode(row.table), "column": row.column, "number": row.number, "is_frame": row.is_frame}


def from_value(value: dict[str, Any]) -> Row:
    """The reverse."""
    return Row(os.fsdecode(value["table"]), value["column"], value["number"], value["is_frame"])


def read(
    paths: daft.DataFrame,
    reader: Reader,
    seen: SeenContent,
    runtime: Runtime,
    batch: int = BATCH,
    takes: tuple[int, int] | None = UNKNOWN_INPUT,
    kept: KeptPixels | None = None,
) -> daft.DataFrame:
    """`path`, `row`, `size`, `inputs`, `fault` -> `path`, `inputs`, `image`.

    `takes`: pixels across and down that the detector's model makes use of; None: no detector gets the images.
    `kept` takes pixels for the crop stage.

    Daft fetches objects, those of a batch at once, from hosts that answered before. The reader fetches the first one of
    each host, since Daft tries 24 times in 100 s and no setting bounds that. The reader also asks once more for those
    that Daft did not get, and then says why. It reads the rows of tables when they are wanted: Daft's own reader held
    all pictures of a Parquet file before a slow stage had taken them, 1.9 GB for 0.9 GB in one row group.
    """
    address = daft.cls(AddressToFetch, use_process=False)(reader)(col("path"), col("row"), col("size"))
    fetched = download(address, on_error="null", io_config=reader.objects.config())
    admission = daft.cls(Admission, max_concurrency=1)(runtime)
    stage = daft.cls(ReadImage, use_process=False)(reader, seen, runtime, takes, kept or KeptPixels(0))
    admitted = paths.into_batches(batch).with_column("path", admission(col("path"), col("size")))
    images = admitted.with_column("fetched", fetched)
    image = stage(*(col(name) for name in ("path", "row", "size", "fetched", "inputs", "fault")))
    return images.with_column("image", image).exclude("row", "size", "fetched", "fault")


class AddressToFetch:
    """Tells what Daft fetches."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @daft.method(return_dtype=DataType.string())
    def __call__(self, path: bytes, row: dict[str, Any] | None, size: int | None) -> str | None:
        """The address of an object that may be an image; null for everything else, which the reader handles."""
        address = os.fsdecode(path)
        if row is not None or not is_object(address) or not is_utf8(address) or too_large(size):
            return None
        return address if self.reader.hosts.answers(address) else None
