"""A run's folder as it is read afterwards: its tables and its run.json."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.errors import NotFound, Unreadable
from pipeline.locations import is_object
from pipeline.output.annotate import place
from pipeline.output.run_folder import MANIFEST, read_manifest
from pipeline.stages.boxes import BadBox, check_box

# As rows of Python, at once: a run may have a million images.
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Detection:
    """A detection whose box lies in its image."""

    box: tuple[float, float, float, float]
    """xyxy, pixels of the upright image, clipped to it."""
    label: str
    score: float
    answer: dict[str, Any]
    """The answer's fields; None for those that were not asked or not answered."""
    outcome: str
    """One of tables.DETECTION_OUTCOMES."""
    crop: str | None
    """The crop's path within the run's folder."""
    confidence: float | None = None
    """The lowest of its answer's; None where none is known."""

    @property
    def known(self) -> dict[str, Any]:
        """The fields of the answer that have a value."""
        return {name: value for name, value in self.answer.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that was searched to its end, and what was found in it."""

    path: str
    """As in the tables."""
    name: str
    """Its own among the run's images, also where folders hold equal names: fit for a file, without an ending."""
    width: int
    height: int
    format: str
    key: str
    duplicate_of: str | None
    of_video: dict[str, Any]
    """`video`, `frame` and `time_s` of a frame of a video; empty for other images."""
    detections: list[Detection] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """What is handed on of a run, and what is left out."""

    images: int = 0
    detections: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of images or detections by reason."""

    def leave_out(self, picture: Picture, reason: str) -> None:
        """Leave an image out that was counted before."""
        self.images -= 1
        self.detections -= len(picture.detections)
        self.left_out[reason] += 1


@dataclass(frozen=True)
class FinishedRun:
    """A run that can be read."""

    folder: Path
    manifest: dict[str, Any]
    images: pa.Table
    detections: pa.Table

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The JSON Schema of each field of an answer that is a column of the detections."""
        job = self.manifest["job"]
        schemas = [question["schema"] for question in job.get("questions") or [job]]
        columns = set(self.detections.column_names)
        return {
            name: schema
            for each in schemas
            for name, schema in each.get("properties", {}).items()
            if name in columns and name not in tables.DETECTION_COLUMNS
        }

    @cached_property
    def confidences(self) -> list[str]:
        """The columns of the detections that say how sure the model was."""
        return tables.confidences_in(self.detections.schema)

    @property
    def labels(self) -> list[str]:
        """The labels of the detections, in alphabetical order."""
        return sorted(self.detections["label"].drop_null().unique().to_pylist())

    def pictures(self, tally: Tally) -> Iterator[Picture]:
        """The images in the order of the table, those without a detection too; each is counted.

        Images that failed are left out, since what is in them is not known, and detections whose box does not lie in
        the image.
        """
        rows_of: dict[str, list[int]] = defaultdict(list)
        for number, path in enumerate(self.detections["path"].to_pylist()):
            rows_of[path].append(number)
        names: set[str] = set()
        for batch in self.images.to_batches(max_chunksize=BATCH):
            images = batch.to_pylist()
            numbers = [number for row in images for number in rows_of.get(row["path"], ())]
            found = iter(self.detections.take(pa.array(numbers, pa.int64())).to_pylist())
            for row in images:
                detections = [next(found) for _ in rows_of.get(row["path"], ())]
                if row["outcome"] == tables.FAILED:
                    tally.left_out["images that failed"] += 1
                    continue
                picture = self.picture(row, detections, unused(row["path"], names), tally)
                tally.images += 1
                tally.detections += len(picture.detections)
                yield picture

    def picture(self, image: dict[str, Any], rows: list[dict[str, Any]], name: str, tally: Tally) -> Picture:
        """An image from its row and the rows of its detections."""
        size = image["width"], image["height"]
        of_video = {each.name: image[each.name] for each in tables.FRAME} if image.get("video") else {}
        picture = Picture(
            image["path"], name, *size, image["format"] or "", image["key"], image["duplicate_of"], of_video
        )
        for row in rows:
            try:
                check_box(row["box"], size)
            except BadBox:
                tally.left_out["detections whose box lies outside the image"] += 1
                continue
            x1, y1, x2, y2 = row["box"]
            box = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
            answer = {property_: row[property_] for property_ in self.properties}
            known = [row[name] for name in self.confidences if row[name] is not None]
            picture.detections.append(
                Detection(
                    box, row["label"], row["score"], answer, row["outcome"], row["crop"], min(known, default=None)
                )
            )
        return picture


def unused(path: str, names: set[str]) -> str:
    """A name for an image that none of `names` equals, also where capitals do not count; it is added to them."""
    first = name = place(path).stem
    number = 1
    while name.casefold() in names:
        number += 1
        name = f"{first}-{number}"
    names.add(name.casefold())
    return name


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        NotFound: the folder holds no run, or one without tables.
        Unreadable: a table cannot be read, or another version of Spotter made them.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise NotFound(f"{folder} holds no run ({MANIFEST} is missing or cannot be read): give a run's folder")
    made_by = manifest.get("identity", {}).get("table_format", tables.FORMAT)
    if made_by != tables.FORMAT:
        raise Unreadable(
            f"run {folder} was made by another version of Spotter (table format {made_by}, expected {tables.FORMAT}): "
            "read it with that version, or run it anew"
        )
    read = {}
    for name in ("images", "detections"):
        path = folder / f"{name}.parquet"
        try:
            read[name] = pq.read_table(path)
        except FileNotFoundError:
            status = manifest.get("status")
            raise NotFound(f"run {folder} is {status} and has no {path.name} yet: let it end, then try again") from None
        except (OSError, pa.ArrowException) as error:
            raise Unreadable(f"run {folder}: {path.name} cannot be read: {error}") from error
    return FinishedRun(folder, manifest, read["images"], read["detections"])


def local_file(path: str) -> Path | None:
    """The file of an image, absolute, if this host has it; None for an object's address or a row of a table.

    `path`: as in the tables, where bytes that are not UTF-8 are escapes.
    """
    if is_object(path):
        return None
    # The reverse of tables.shown_path; a name may also hold such an escape as it stands.
    as_bytes = re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), path)
    for written in dict.fromkeys((path, as_bytes)):
        file = Path(written).absolute()
        if file.is_file():
            return file
    return None
