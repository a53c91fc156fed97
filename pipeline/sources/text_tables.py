"""Tables of text: CSV and JSON Lines."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.locations import is_object
from pipeline.sources.columns import descend, likeness, path_in
from pipeline.sources.objects import Objects

CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = CSV_SUFFIXES + JSON_SUFFIXES

# The types of the fields of JSON Lines are told by so many lines.
TYPED_BY = 1000
# A cell of a CSV file may hold a picture as a data URL.
csv.field_size_limit(2**31 - 1)


class TextTable:
    """A CSV or JSON Lines file; it is read from its start, a row at a time."""

    def __init__(self, place: str, objects: Objects) -> None:
        self.starts = [0]
        self.place = place
        self.content = objects.read(place) if is_object(place) else None
        records = itertools.islice(self.records(), TYPED_BY)
        columns_found: dict[str, list[Any]] = {}
        for number, record in enumerate(records):
            for name, value in record.items():
                columns_found.setdefault(name, [None] * number).append(value)
            for values in columns_found.values():
                values.extend([None] * (number + 1 - len(values)))
        self.schema = pa.schema([(name, type_of(values)) for name, values in columns_found.items()])

    def lines(self) -> Iterator[str]:
        """The file's lines. It is UTF-8, or UTF-16 with a BOM; bytes that are neither are kept, as in a path."""
        with io.BytesIO(self.content) if self.content is not None else Path(self.place).open("rb") as binary:
            wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            binary.seek(0)
            encoding = "utf-16" if wide else "utf-8-sig"
            with io.TextIOWrapper(binary, encoding, "strict" if wide else "surrogateescape", newline="") as text:
                yield from text

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows, as column and value.

        Raises:
            ValueError, csv.Error: a row cannot be read.
        """
        return self.of_json() if self.place.lower().endswith(JSON_SUFFIXES) else self.of_csv()

    def of_json(self) -> Iterator[dict[str, Any]]:
        """The objects of the lines, or of one array; blank lines are ignored."""
        lines = enumerate(self.lines(), 1)
        for number, line in lines:
            if number == 1 and line.lstrip().startswith("["):
                array = json.loads(line + "".join(more for _, more in lines))
                if (strange := next((n for n, value in enumerate(array, 1) if not isinstance(value, dict)), 0)) > 0:
                    raise ValueError(f'element {strange} of the list is no object such as {{"path": "a.jpg"}}')
                yield from array
                return
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(value, dict):
                    raise ValueError(f'line {number} is no object such as {{"path": "a.jpg"}}')
                yield value

    def of_csv(self) -> Iterator[dict[str, Any]]:
        """The rows under the header; without a header, when the first row names an image, columns have numbers.

        Raises:
            ValueError: a cell has no column, or two columns have one name.
        """
        lines = self.lines()
        head = next(lines, "")
        outside_quotes = re.sub(r'"[^"]*"', "", head)
        delimiter = "\t" if self.place.lower().endswith(".tsv") else max(",;\t|", key=outside_quotes.count)
        rows: Iterator[list[str]] = csv.reader(itertools.chain([head], lines), delimiter=delimiter)
        names = [name.strip() for name in next(rows, [])]
        if any(likeness(name) for name in names):
            rows = itertools.chain([names], rows)
            names = [f"column{number}" for number in range(1, len(names) + 1)]
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise ValueError(f"two of its columns are called {twice!r}")
        for number, row in enumerate(rows, 1):
            if any(row[len(names) :]):
                raise ValueError(f"row {number} has more cells than the first: quote each that holds {delimiter!r}")
            if row:  # Nameless columns are indices that pandas writes.
                yield {name: value for name, value in zip(names, row, strict=False) if name}

    def count(self) -> int:
        """The number of rows."""
        return sum(1 for _ in self.records())

    def values(self, column: str, group: int = 0) -> Iterator[list[Any]]:
        """A column's values; text has one group."""
        path = path_in(self.schema, column)
        return ([descend(record, path)] for record in self.records())

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows, with all of their columns."""
        return self.records()

    def is_null(self, column: str) -> bool:
        """Whether a column has no values among the rows that its type is told by."""
        return False

    def close(self) -> None:
        """Nothing stays open."""


def type_of(values: list[Any]) -> pa.DataType:
    """The Arrow type of some values of JSON; text when they are of several types."""
    try:
        return pa.infer_type(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.string()
