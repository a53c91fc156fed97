"""Read boxes from a column of the input table: a list of boxes in each row."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from pipeline.errors import InvalidSetting, NotFound, Unreadable
from pipeline.sources import columns, table_files
from pipeline.sources.annotations import BOXES, Annotation, numbers, score_of
from pipeline.sources.listing import Source, listed, table_suffixes
from pipeline.sources.objects import Objects
from pipeline.sources.rows import row_name
from pipeline.sources.table_files import is_table

COLUMN = "column:"
EXPECTED = "a list of boxes, each [x1, y1, x2, y2] in pixels or {box, label, score}"


def read_column(
    images: str, name: str, image_column: str | None, sources: Iterable[Source], objects: Objects
) -> dict[bytes, list[Annotation]]:
    """The boxes of each image of a table, or of the tables whose rows hold the images, by the image's path.

    An image that several rows name has the boxes of all of them.

    Raises:
        InvalidSetting: there is no table.
        NotFound: the table has no such column.
        Unreadable: it cannot be read, or a row holds something else; names the row.
    """
    # Of each row: several images where the job makes a row of each element of a list (`each`).
    of_rows: dict[tuple[str, int], list[bytes]] = defaultdict(list)
    for source in sources:
        if source.row and not source.row.is_frame:
            of_rows[source.row.table, source.row.number].append(source.path)
    places = {place for place, _ in of_rows} | ({images} if is_table(images, table_suffixes(images)) else set())
    if not places:
        raise InvalidSetting(
            f"boxes: {COLUMN}{name} is a column of a table, and {images} is no table: give a table as IMAGES"
        )
    found: dict[bytes, list[Annotation]] = {}
    for place in sorted(places):
        table, column = table_files.examine(place, image_column, objects)
        with table_files.refused(place), closing(table):
            if columns.column_type(table.schema, name) is None:
                raise NotFound(f"boxes: {place} has no column {name!r}: {columns.listed(table.schema)}")
            entries, lists = (itertools.chain.from_iterable(table.values(each)) for each in (column, name))
            for number, (entry, value) in enumerate(zip(entries, lists, strict=True)):
                held = boxes(value, row_name(place, number))
                paths = of_rows.get((place, number), ())
                if not paths and (named := columns.named(entry)):
                    paths = [listed(named, place).path]
                for path in paths:
                    found.setdefault(path, []).extend(held)
    return found


def boxes(value: Any, row: str) -> list[Annotation]:
    """The boxes in a value of the column.

    Raises:
        Unreadable: it is something else; names the row.
    """
    try:
        entries = json.loads(value) if isinstance(value, str) and value.strip() else value or []
        if not isinstance(entries, list):
            raise TypeError
        return [one(entry) for entry in entries]
    except (ValueError, TypeError, LookupError):
        raise Unreadable(f"boxes: row {row} holds {str(value)[:80]!r}: expected {EXPECTED}") from None


def one(entry: Any) -> Annotation:
    """A box of numbers, or of a struct.

    Raises:
        ValueError, TypeError, LookupError: it is neither.
    """
    fields = entry if isinstance(entry, dict) else {BOXES[0]: entry}
    x1, y1, x2, y2 = numbers(next(fields[name] for name in BOXES if name in fields))
    label = fields.get("label")
    if label is not None and not isinstance(label, str):
        raise TypeError
    return Annotation(label, (x1, y1, x2, y2), score_of(fields.get("score")))
