"""The run's folder: rows go in as they come, tables appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.errors import UsageError

# Complete images of one part file: at 3 detections each about 2 MB of rows in memory.
PART_IMAGES = 1000


@dataclass
class Progress:
    """How far a run is. Images count when all of their detections have ended."""

    total: int
    images: Counter[str] = field(default_factory=Counter)
    """Of tables.IMAGE_OUTCOMES."""
    detections: Counter[str] = field(default_factory=Counter)
    """Of tables.DETECTION_OUTCOMES."""

    @property
    def done(self) -> int:
        """Images that have ended."""
        return self.images.total()

    @property
    def failures(self) -> int:
        """Images and detections that failed."""
        return self.images[tables.FAILED] + self.detections[tables.FAILED]

    def counts(self) -> dict[str, dict[str, int]]:
        """The counts of run.json; each group's entries add up to its `total`."""
        return {
            "images": {
                "total": self.total,
                **{outcome: self.images[outcome] for outcome in tables.IMAGE_OUTCOMES},
                "not_reached": self.total - self.done,
            },
            "detections": {
                "total": self.detections.total(),
                **{outcome: self.detections[outcome] for outcome in tables.DETECTION_OUTCOMES},
            },
        }


def make_run_folder(output: Path, name: str) -> Path:
    """Make the folder of a new run, with `crops` in it.

    Raises:
        UsageError: the folder cannot be written, or holds another run.
    """
    folder = output.expanduser() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"output: {folder} is not empty: give another --run-name, or remove the folder")
        (folder / "crops").mkdir()
    except OSError as error:
        raise UsageError(
            f"output: {folder} cannot be written: {error.strerror}: give a folder of yours with OUTPUT=... or --output"
        ) from error
    return folder


def point_latest_at(folder: Path) -> None:
    """Let `latest` beside the run's folder lead to it, where the file system has links."""
    link, fresh = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    try:
        fresh.symlink_to(folder.name)
        fresh.replace(link)
    except OSError:
        fresh.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there completely or not at all, also after a power cut."""
    fresh = path.with_name(f".{path.name}.partial")
    with fresh.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is there completely or not at all."""
    fresh = path.with_name(f".{path.name}.partial")
    pq.write_table(table, fresh, compression="zstd")
    fresh.replace(path)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write run.json."""
    write_atomically(folder / "run.json", (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


class TableWriter:
    """Collects the flow's rows, which come in any order, into images.parquet and detections.parquet.

    Rows wait in memory until their image is complete, and complete images until there are PART_IMAGES of them; then
    they become a part file. So memory does not grow with the run.
    """

    def __init__(self, folder: Path, properties: dict[str, dict[str, Any]], progress: Progress) -> None:
        self.folder = folder
        self.parts = folder / ".parts"
        self.parts.mkdir()
        self.schemas = {"images": tables.IMAGES, "detections": tables.detections_schema(properties)}
        self.progress = progress
        self.part = 0
        self.open: dict[bytes, list[dict[str, Any]]] = {}
        self.complete: dict[str, list[dict[str, Any]]] = {"images": [], "detections": []}

    def add(self, row: dict[str, Any]) -> None:
        """Take one row of the flow: a detection, or an image that has none."""
        rows = self.open.setdefault(row["path"], [])
        if row["at"] is not None:
            rows.append(tables.detection_row(row, self.schemas["detections"]))
        if len(rows) < (row["detections"] or 0):
            return
        image = tables.image_row(row)
        self.complete["images"].append(image)
        self.complete["detections"] += self.open.pop(row["path"])
        self.progress.images[image["outcome"]] += 1
        self.progress.detections.update(found["outcome"] for found in rows)
        if len(self.complete["images"]) >= PART_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Write the complete images as a part."""
        for name, rows in self.complete.items():
            table = pa.Table.from_pylist(rows, schema=self.schemas[name])
            write_table(table, self.parts / f"{name}-{self.part:06}.parquet")
            rows.clear()
        self.part += 1

    def finish(self) -> dict[str, pa.Table]:
        """Write the two tables, sorted by path, and return them; rows of images that did not end are left out."""
        self.flush()
        written = {}
        for name, order in (("images", ["path"]), ("detections", ["path", "index"])):
            parts = sorted(self.parts.glob(f"{name}-*.parquet"))
            table = pa.concat_tables(pq.read_table(part, schema=self.schemas[name]) for part in parts)
            written[name] = table.sort_by([(column, "ascending") for column in order])
            write_table(written[name], self.folder / f"{name}.parquet")
        shutil.rmtree(self.parts)
        return written
