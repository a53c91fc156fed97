"""Tables of images in files: Parquet, Arrow (Feather), CSV and JSON Lines. Each gives its columns' values in order."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Unreadable, UsageError
from pipeline.locations import is_object
from pipeline.sources import columns, text_tables
from pipeline.sources.objects import Objects, StoreError, refuse

PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
# Tables that a folder is searched for; the others lie beside images for many reasons, and have to be named.
BINARY_SUFFIXES = PARQUET_SUFFIXES + ARROW_SUFFIXES
SUFFIXES = BINARY_SUFFIXES + text_tables.SUFFIXES

# Bytes that are read at once, instead of a whole column of pictures. Arrow holds a page or two of the column beside:
# 3,000 pictures of 0.3 MB in one row group were read at 1.0 GB with it, and 1.8 GB without.
BUFFER_BYTES = 8 * 1024**2
ROWS_AT_ONCE = 8
# Of columns without pictures.
SMALL_ROWS_AT_ONCE = 1000


class Table(Protocol):
    """An open table."""

    schema: pa.Schema
    starts: list[int]
    """The first row of each group of rows, at which reading can begin; at least one entry."""

    def count(self) -> int:
        """The number of rows."""

    def values(self, column: str, group: int = 0) -> Iterator[list[Any]]:
        """A column's values as Python has them, a few rows at a time, from a group of rows to the end."""

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows with these columns, or fields in them, as Python has them."""

    def is_null(self, column: str) -> bool:
        """Whether a column, or a field in one, is known to have no values."""

    def close(self) -> None:
        """Close the file."""


def is_table(place: str, suffixes: tuple[str, ...] = BINARY_SUFFIXES) -> bool:
    """Whether a place is a table by its name."""
    return place.lower().endswith(suffixes)


def open_table(place: str, objects: Objects) -> Table:
    """Open a table, wherever it is.

    Raises:
        StoreError: its store does not give it.
        OSError, pa.ArrowException, ValueError: it cannot be read.
    """
    if is_table(place, text_tables.SUFFIXES):
        return text_tables.TextTable(place, objects)
    # A path as bytes: that of a file need not be text.
    if is_object(place):
        source = pa.PythonFile(objects.open(place), mode="r")
    elif is_table(place, PARQUET_SUFFIXES):
        source = pa.OSFile(os.fsencode(place))
    else:
        source = pa.memory_map(os.fsencode(place))
    return ParquetTable(source) if is_table(place, PARQUET_SUFFIXES) else ArrowTable(source)


def examine(place: str, column: str | None, objects: Objects) -> tuple[Table, str]:
    """An open table and the name of its column of images, see `columns.choose`.

    Raises:
        Unreadable, BucketUnusable: it cannot be read.
        NotFound, InvalidSetting: it has no such column, or several.
    """
    with refused(place):
        table = open_table(place, objects)
        usable = columns.usable_columns(table.schema)
        if twice := next((name for name in [*usable, column] if table.schema.names.count(name) > 1), None):
            raise ValueError(f"two of its columns are called {twice!r}")
        # A single column needs no look; with a column that is given there is nothing to choose.
        looked_at = usable if column is None and len(usable) > 1 else []
        samples = {name: first(table, name) for name in looked_at}
    name = columns.choose(place, table.schema, column, samples)
    kind = columns.column_type(table.schema, name)
    fields = columns.leaves(name, kind)
    if len(fields) > 1 and table.is_null(fields[0]):
        name = fields[-1]  # Hugging Face's datasets leave the bytes null when they know the file's path
    return table, name


def first(table: Table, column: str) -> list[Any]:
    """The values of a table's first rows."""
    values = itertools.chain.from_iterable(table.values(column))
    return list(itertools.islice(values, columns.ROWS_LOOKED_AT))


@contextmanager
def refused(place: str) -> Iterator[None]:
    """Turn an error while a table is read in the block into one line.

    Raises:
        Unreadable, BucketUnusable: the table cannot be read.
    """
    try:
        yield
    except UsageError:
        raise
    except StoreError as error:
        raise refuse("images", place, error) from error
    except (OSError, pa.ArrowException, ValueError, csv.Error) as error:
        kinds = {PARQUET_SUFFIXES: "Parquet", ARROW_SUFFIXES: "Arrow", text_tables.JSON_SUFFIXES: "JSON Lines"}
        kind = next((name for suffixes, name in kinds.items() if is_table(place, suffixes)), "CSV")
        reason = " ".join(str(error).split())[:200]
        raise Unreadable(f"images: {place} cannot be read as {kind}: {reason}: write it anew") from error


def arrow_values(array: pa.Array, path: list[str]) -> list[Any]:
    """An array's values as Python has them."""
    kind = columns.plain(array.type)
    if columns.is_byte_list(kind) and not path:  # an integer object for each byte would take 30 ms for 1 MB
        return [list_bytes(value) for value in array]
    return [columns.descend(value.as_py(), path) for value in array]


def list_bytes(value: Any) -> bytes | None:
    """A scalar that is a list of bytes."""
    if not value.is_valid:
        return None
    numbers = value.values
    if not len(numbers):
        return b""
    return bytes(memoryview(numbers.buffers()[1])[numbers.offset : numbers.offset + len(numbers)])


class ParquetTable:
    """A Parquet file; little of it is in memory at a time."""

    def __init__(self, source: pa.NativeFile) -> None:
        self.file = pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
        self.schema: pa.Schema = self.file.schema_arrow
        meta = self.file.metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self.starts = list(itertools.accumulate(sizes, initial=0))[:-1] or [0]

    def count(self) -> int:
        """The number of rows."""
        return int(self.file.metadata.num_rows)

    def values(self, column: str, group: int = 0) -> Iterator[list[Any]]:
        """A column's values, from a group of rows on."""
        path = columns.path_in(self.schema, column)
        batches = self.file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            row_groups=range(group, self.file.metadata.num_row_groups),
            columns=columns.leaves(column, columns.column_type(self.schema, column)),
            use_threads=False,
        )
        return (arrow_values(batch.column(0), path[1:]) for batch in batches)

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows, of structs the fields that are asked for."""
        for batch in self.file.iter_batches(batch_size=SMALL_ROWS_AT_ONCE, columns=columns, use_threads=False):
            yield from batch.to_pylist()

    def is_null(self, column: str) -> bool:
        """Whether the file's statistics say that a column has no values."""
        meta = self.file.metadata
        at = next((n for n in range(meta.num_columns) if meta.schema.column(n).path == column), None)
        if at is None:
            return False
        chunks = [meta.row_group(group).column(at) for group in range(meta.num_row_groups)]
        return all(
            chunk.statistics is not None
            and chunk.statistics.has_null_count
            and chunk.statistics.null_count == chunk.num_values
            for chunk in chunks
        )

    def close(self) -> None:
        """Close the file."""
        self.file.close(force=True)


class ArrowTable:
    """An Arrow file (Feather) or stream; it is read from its start, a record batch at a time."""

    def __init__(self, source: pa.NativeFile) -> None:
        self.source = source
        self.starts = [0]
        self.is_file = source.read(6) == b"ARROW1"
        self.schema: pa.Schema = self.open().schema

    def open(self) -> Any:
        """A reader at the table's start."""
        self.source.seek(0)
        return pa.ipc.open_file(self.source) if self.is_file else pa.ipc.open_stream(self.source)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All record batches."""
        reader = self.open()
        if self.is_file:
            return (reader.get_batch(number) for number in range(reader.num_record_batches))
        return iter(reader)

    def count(self) -> int:
        """The number of rows."""
        return sum(batch.num_rows for batch in self.batches())

    def values(self, column: str, group: int = 0) -> Iterator[list[Any]]:
        """A column's values; Arrow has one group."""
        path = columns.path_in(self.schema, column)
        for batch in self.batches():
            whole = batch.column(path[0])
            for start in range(0, len(whole), ROWS_AT_ONCE):
                yield arrow_values(whole.slice(start, ROWS_AT_ONCE), path[1:])

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows; structs come whole."""
        names = list(
            dict.fromkeys(column if column in self.schema.names else column.partition(".")[0] for column in columns)
        )
        for batch in self.batches():
            some = batch.select(names)
            for start in range(0, some.num_rows, ROWS_AT_ONCE):
                yield from some.slice(start, ROWS_AT_ONCE).to_pylist()

    def is_null(self, column: str) -> bool:
        """Whether a column has no values."""
        name, *fields = columns.path_in(self.schema, column)
        for batch in self.batches():
            array = batch.column(name)
            for field in fields:
                array = array.field(field)
            if array.null_count < len(array):
                return False
        return True

    def close(self) -> None:
        """Close the file."""
        self.source.close()
