"""A run's rows on disk: committed in parts while they come, merged into two tables at the end.

A part is two Parquet files and a line in `.parts/committed.jsonl`. Only parts with a line count, so a crash at any
moment leaves each image committed or not, never half. The rows of an image in a later part replace earlier ones, unless
a retry failed where there were answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.files import sync_disk, sync_folder, write_atomically, write_table
from pipeline.output.run_folder import COMMITTED

# A part is committed when it has this many images or detections, or is this old: a crash costs at most that, and until
# then it is in memory (100,000 detections took 300 MB).
PART_IMAGES = 1000
PART_DETECTIONS = 10_000
PART_S = 30.0

NAMES = ("images", "detections")

# The columns that a duplicate does not share with the image of the same bytes.
FRAME = tuple(field.name for field in tables.FRAME)
OWN = ("path", "version", "read_s", *FRAME)


class Parts:
    """The parts in a run's folder, and the rows that will be the next part."""

    def __init__(self, folder: Path, properties: dict[str, dict[str, Any]]) -> None:
        self.committed = folder / COMMITTED
        self.folder = self.committed.parent
        self.schemas = {"images": tables.IMAGES, "detections": tables.detections_schema(properties)}
        self.names = self._read_committed()
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        self.begun = time.monotonic()

    def _read_committed(self) -> list[str]:
        """The committed parts, in order, up to a line that cannot be read."""
        if not self.committed.exists():
            return []
        names, text = [], self.committed.read_text()
        for line in text.splitlines():
            try:
                names.append(json.loads(line)["part"])
            except (ValueError, LookupError):
                break
        return names

    def add(self, image: dict[str, Any], detections: Iterable[dict[str, Any]]) -> None:
        """Take all rows of one image; commit when a part is full or old.

        Raises:
            OSError: the part cannot be written.
        """
        added = list(detections)
        self.rows["images"].append(image)
        self.rows["detections"].extend(added)
        full = len(self.rows["images"]) >= PART_IMAGES or len(self.rows["detections"]) >= PART_DETECTIONS
        if full or time.monotonic() - self.begun > PART_S:
            self.commit()

    def commit(self) -> None:
        """Commit the rows that were added.

        Raises:
            OSError: the part cannot be written; none of it counts.
        """
        self.begun = time.monotonic()
        if not self.rows["images"]:
            return
        self.write({name: pa.Table.from_pylist(rows, self.schemas[name]) for name, rows in self.rows.items()})
        for rows in self.rows.values():
            rows.clear()

    def write(self, rows: dict[str, pa.Table]) -> None:
        """Commit rows of both tables as the next part.

        Raises:
            OSError: the part cannot be written; none of it counts.
        """
        part = f"{len(self.names):06}"
        for name, table in rows.items():
            write_table(table, self.folder / f"{name}-{part}.parquet")
        sync_disk(self.folder)  # the crops that the rows name, and the folders' entries, before the line says so
        # As a whole, for half a line on a full disk would hide those that follow it.
        lines = "".join(json.dumps({"part": name}) + "\n" for name in (*self.names, part))
        write_atomically(self.committed, lines.encode())
        sync_folder(self.folder)
        self.names.append(part)

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of all parts, with the number of its `part` on each."""
        schema = self.schemas[name]
        if columns is not None:
            schema = pa.schema([schema.field(column) for column in columns])
        read = [schema.append(pa.field("part", pa.int32())).empty_table()]
        for number, part in enumerate(self.names):
            table = pq.read_table(self.folder / f"{name}-{part}.parquet", columns=columns)
            read.append(table.append_column("part", pa.array([number] * table.num_rows, pa.int32())))
        # A part of a version without confidences has none of their columns.
        return pa.concat_tables(read, promote_options="default")

    def latest(self) -> dict[str, dict[str, Any]]:
        """The row of each image that counts, by its path: the last one, unless that failed where it had not before."""
        rows: dict[str, dict[str, Any]] = {}
        for row in self.read("images", ["path", "key", "outcome", "version"]).to_pylist():
            before = rows.get(row["path"])
            if before is None or not is_worse(row, before):
                rows[row["path"]] = row
        return rows

    def current(self, name: str, latest: dict[str, dict[str, Any]], columns: list[str] | None = None) -> pa.Table:
        """The rows of a table that count: those of the part in which their image has its `latest` row."""
        table = self.read(name, columns)
        counts = [latest[path]["part"] == part for path, part in both(table)]
        return table.filter(pa.array(counts, pa.bool_())).drop_columns("part")

    def merge(self, listed: set[str]) -> dict[str, pa.Table]:
        """The two tables: every image of `listed` that has ended, once, sorted by path.

        Duplicates get the rows of the image with the same bytes; the first path in order counts as the original.
        """
        latest = self.latest()
        images, detections = self.current("images", latest), self.current("detections", latest)
        resolved = resolve_duplicates(latest, listed)
        # Row numbers, not rows: a hundred thousand of them as Python's dictionaries are gigabytes.
        row_of = {path: number for number, path in enumerate(images["path"].to_pylist())}
        found: dict[str, list[int]] = {}
        for number, path in enumerate(detections["path"].to_pylist()):
            found.setdefault(path, []).append(number)
        merged = take(images, [row_of[each.original] for each in resolved])
        own = take(images.select(OWN), [row_of[each.path] for each in resolved])
        for name in OWN:
            merged = replaced(merged, name, own[name])
        merged = replaced(merged, "duplicate_of", pa.array([each.duplicate_of for each in resolved], pa.string()))
        shared = take(detections, [number for each in resolved for number in found.get(each.original, ())])
        paths = [each.path for each in resolved for _ in found.get(each.original, ())]
        shared = replaced(shared, "path", pa.array(paths, pa.string()))
        frames = take(images.select(FRAME), [row_of[path] for path in paths])
        for name in FRAME:
            shared = replaced(shared, name, frames[name])
        return {
            "images": merged.cast(self.schemas["images"]),
            "detections": shared.cast(self.schemas["detections"]).sort_by(
                [("path", "ascending"), ("index", "ascending")]
            ),
        }


def take(table: pa.Table, rows: list[int]) -> pa.Table:
    """These rows of a table, in this order."""
    return table.take(pa.array(rows, pa.int64()))


def replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """A table with another column of this name."""
    return table.set_column(table.schema.get_field_index(name), name, column)


def is_worse(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether an image's new row failed and the row before, of the same content, did not.

    This happens when a service is away while other detections of the image are done again: the answers stay.
    """
    if row["outcome"] != tables.FAILED or before["outcome"] not in (tables.DETECTED, tables.NO_OBJECT):
        return False
    if row["key"] is None:  # it could not even be read
        return row["version"] is not None and bool(row["version"] == before["version"])
    return bool(row["key"] == before["key"])


def both(table: pa.Table) -> Iterable[tuple[str, int]]:
    """Path and part of each row."""
    return zip(table["path"].to_pylist(), table["part"].to_pylist(), strict=True)


class Resolved(NamedTuple):
    """An image of the tables, and the image that its rows are copied from."""

    path: str
    original: str
    """The image with the same bytes that was asked about; often itself."""
    duplicate_of: str | None
    """The first path in order with the same bytes; None for that one."""


def resolve_duplicates(latest: dict[str, dict[str, Any]], listed: set[str]) -> list[Resolved]:
    """The images that are `listed` and have a row that counts (`latest`, by path), sorted by path.

    A duplicate is dropped while the image whose content it shares has not ended.
    """
    asked = {row["key"]: path for path, row in latest.items() if row["outcome"] in tables.IMAGE_OUTCOMES and row["key"]}
    paths = sorted(listed & latest.keys())
    first: dict[str, str] = {}
    for path in paths:
        if latest[path]["key"] in asked:
            first.setdefault(latest[path]["key"], path)
    resolved = []
    for path in paths:
        original = asked.get(latest[path]["key"], path)
        if latest[original]["outcome"] == tables.DUPLICATE:
            continue  # its original is still to be asked
        canonical = first.get(latest[path]["key"], path)
        resolved.append(Resolved(path, original, None if canonical == path else canonical))
    return resolved
