"""A run's rows as the report's page loads them: columns, in chunks that are files beside the page.

A chunk is a script with one call, because a page from the disk may load scripts and nothing else. Its argument is JSON
text: the page parses it, and nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables import DETECTION_COLUMNS, FAILED, confidences_in

CHUNK_IMAGES = 5000
# A column of texts with no more values is a choice to filter by; a job on breeds has some hundred.
CHOICES = 500
# The largest integer that JavaScript holds exactly.
EXACT = 2**53

# Of a float: more say nothing of a score, and make the page larger.
DIGITS = 4
# Longer sides are no pixels of an image.
LONGEST = 2**31

CHOICE, NUMBER, TEXT = "choice", "number", "text"

# Columns of the detections that the page shows, beside the fields of the answers.
FILTERS = ("outcome", "label", "stage", "score")
LOWEST = "lowest confidence"
TEXTS = ("reason", "raw_answer")
OF_IMAGES = ("key", "width", "height", "duplicate_of", "inputs", "time_s")


@dataclass
class Column:
    """A column of the rows."""

    name: str
    kind: str
    """CHOICE, NUMBER or TEXT."""
    values: list[str]
    """Of a CHOICE, sorted."""
    rows: list[Any]
    """Numbers of `values`, -1 for none; numbers; or texts."""
    ranks: list[int] = field(default_factory=list)
    """Of a TEXT: its place in the order, -1 for none."""

    def about(self) -> dict[str, Any]:
        """What the page must know of it before its rows."""
        return {"name": self.name, "kind": self.kind, "values": self.values}


def column(name: str, content: pa.ChunkedArray, kind: str | None = None) -> Column:
    """One column of a table for the page; its kind is seen from its type and its values, unless it is given."""
    if pa.types.is_integer(content.type):
        bounds = pc.min_max(content).as_py()
        if max(abs(bounds["min"] or 0), abs(bounds["max"] or 0)) > EXACT:
            content = content.cast(pa.string())
    if pa.types.is_floating(content.type) or pa.types.is_integer(content.type):
        exact = pa.types.is_integer(content.type)
        return Column(name, NUMBER, [], [value if exact else short(value) for value in content.to_pylist()])
    texts = content.cast(pa.string())
    values = sorted(value for value in pc.unique(texts).to_pylist() if value is not None)
    if kind is None:
        kind = CHOICE if len(values) <= CHOICES else TEXT
    codes = pc.fill_null(pc.index_in(texts, pa.array(values, pa.string())), -1).to_pylist()
    if kind == CHOICE:
        return Column(name, CHOICE, values, codes)
    return Column(name, TEXT, [], texts.to_pylist(), codes)


def rows_of(tables: dict[str, pa.Table]) -> pa.Table:
    """The detections, and a row for each image that has none, sorted by image; `image` is its number in the table."""
    images, detections = tables["images"], tables["detections"]
    number = pc.index_in(detections["path"], images["path"].combine_chunks())
    found = detections.append_column("image", number)
    every = pa.array(range(images.num_rows), pa.int32())
    alone = pc.filter(every, pc.invert(pc.is_in(every, number.combine_chunks())))
    without = images.select(["outcome", "stage", "reason"]).take(alone).append_column("image", alone)
    return pa.concat_tables([found, without], promote_options="default").sort_by(
        [("image", "ascending"), ("index", "ascending")]
    )


def answers(detections: pa.Table, first: str | None) -> list[str]:
    """The fields of the answers, `first` before the others."""
    others = {*DETECTION_COLUMNS, *confidences_in(detections.schema)}
    fields = [name for name in detections.column_names if name not in others]
    return sorted(fields, key=lambda name: name != first)


def doubts(rows: pa.Table, confidences: list[str]) -> list[Column]:
    """The confidences, and the lowest of each row where there are several; none where none is known."""
    known = {name: rows[name] for name in confidences if rows[name].null_count < rows.num_rows}
    found = [column(name, values) for name, values in known.items()]
    if len(known) > 1:
        found.insert(0, column(LOWEST, pc.min_element_wise(*known.values())))
    return found


def crops(rows: pa.Table) -> list[Any]:
    """Of each row: 1 for a crop that has the usual name, which the page knows; another name; or 0 for none."""
    index = rows["index"].cast(pa.string())
    usual = pc.binary_join_element_wise("crops/", rows["key"], "-", index, ".jpg", "")
    same = pc.fill_null(pc.equal(usual, rows["crop"]), False).to_pylist()
    return [1 if known else name or 0 for known, name in zip(same, rows["crop"].to_pylist(), strict=True)]


class PageRows:
    """The rows of a run, ready to be written in chunks."""

    def __init__(self, tables: dict[str, pa.Table], copies: dict[str, str], summary: str | None) -> None:
        self.images = tables["images"]
        self.copies = copies
        rows = rows_of(tables)
        self.count = rows.num_rows
        self.fields = answers(tables["detections"], summary)
        self.columns = [column(name, rows[name]) for name in (*FILTERS, *self.fields)]
        self.columns += doubts(rows, confidences_in(tables["detections"].schema))
        failed = pc.equal(rows["outcome"], FAILED)
        # The model's own words tell more than the answer's fields only where these are missing.
        self.columns += [column(name, pc.if_else(failed, rows[name], None), TEXT) for name in TEXTS]
        self.crops = crops(rows)
        self.index = rows["index"].to_pylist()
        self.boxes = [side for box in rows["box"].to_pylist() for side in sides(box)]
        self.per_image = [0] * self.images.num_rows
        for number in rows["image"].to_pylist():
            self.per_image[number] += 1

    def about(self) -> dict[str, Any]:
        """What the page must know before the chunks."""
        return {
            "images": self.images.num_rows,
            "rows": self.count,
            "chunks": -(-self.images.num_rows // CHUNK_IMAGES),
            "fields": self.fields,
            "columns": [each.about() for each in self.columns],
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chunks, one after the other: each has some images, and their rows."""
        first_row = 0
        for first in range(0, self.images.num_rows, CHUNK_IMAGES):
            part = self.images.slice(first, CHUNK_IMAGES)
            counts = self.per_image[first : first + CHUNK_IMAGES]
            rows = slice(first_row, first_row + sum(counts))
            paths = part["path"].to_pylist()
            yield {
                "first_image": first,
                "first_row": first_row,
                "counts": counts,
                "paths": paths,
                "copies": sparse([self.copies.get(path) for path in paths]),
                "images": {name: sparse(part[name].to_pylist()) for name in OF_IMAGES if name in part.column_names},
                "index": sparse(self.index[rows]),
                "boxes": self.boxes[4 * rows.start : 4 * rows.stop],
                "crops": self.crops[rows],
                "columns": [sparse(each.rows[rows]) for each in self.columns],
                "ranks": {each.name: each.ranks[rows] for each in self.columns if each.ranks},
            }
            first_row = rows.stop


def short(value: float | None) -> float | None:
    """A number as people read it; None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def sides(box: list[float] | None) -> list[int]:
    """A box in whole pixels; zeros for none, or one that cannot be drawn."""
    return [round(side) for side in box] if box and all(abs(side) < LONGEST for side in box) else [0, 0, 0, 0]


def sparse(values: list[Any]) -> list[Any] | dict[int, Any]:
    """A list, as a dictionary of what it holds if most of it is None."""
    held = {number: value for number, value in enumerate(values) if value is not None}
    return held if 2 * len(held) < len(values) else values


def quoted(content: dict[str, Any]) -> bytes:
    """A content as JSON text, within a literal string of JavaScript."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark, escaped in (("\\", "\\\\"), ("'", "\\'"), ("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(mark, escaped)
    return f"'{text}'".encode(errors="backslashreplace")


def digest(contents: Iterable[bytes]) -> str:
    """A name for these contents: a page that was written with others does not mix them."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()[:16]
