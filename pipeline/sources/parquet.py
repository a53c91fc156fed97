"""Images in Parquet files: find the column they are in, and read a row's value when it is wanted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.locations import is_object
from pipeline.sources.objects import Objects, StoreError, refuse

SUFFIXES = (".parquet", ".pq")

# Bytes that are asked for at once, so that not a whole column of pictures is. What Arrow holds beside it is a page or
# two of the column: 3,000 pictures of 0.3 MB in one row group were read at 1.0 GB with it, and 1.8 GB without.
BUFFER_BYTES = 8 * 1024**2
ROWS_AT_ONCE = 8

# Rows are asked for nearly in order: Daft has a thread a core, each with a batch of 8 rows at a time. So many values
# that were passed by are kept, twice what is needed; a row that is asked for later still is read once more.
KEPT_ROWS = 16 * max(os.cpu_count() or 1, 4)


def is_parquet(place: str) -> bool:
    """Whether a place is named as a Parquet file."""
    return place.lower().endswith(SUFFIXES)


def is_text(kind: pa.DataType) -> bool:
    """A column of paths or addresses."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """A column of files' bytes; also the form that Hugging Face's datasets have, a struct with `bytes` in it."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def open_parquet(place: str, objects: Objects) -> pq.ParquetFile:
    """Open a Parquet file, wherever it is, so that little of it is in memory at a time.

    Raises:
        StoreError: its store does not give it.
        OSError, pa.ArrowException: it cannot be read, or is no Parquet file.
    """
    # A path as bytes: that of a file need not be text.
    source = pa.PythonFile(objects.open(place), mode="r") if is_object(place) else pa.OSFile(os.fsencode(place))
    return pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)


def examine(place: str, column: str | None, objects: Objects) -> tuple[str, bool, int]:
    """The name of a Parquet file's column of images, whether it holds their bytes, and the number of rows.

    Without a `column` it is the only one with bytes, or, where none has, the only one with text.

    Raises:
        UsageError: the file cannot be read, or which column it is cannot be told.
    """
    try:
        with open_parquet(place, objects) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except StoreError as error:
        raise refuse("images", place, error) from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"images: {place} cannot be read as Parquet: {reason}: write it anew") from error
    usable = [field.name for field in schema if holds_bytes(field.type) or is_text(field.type)]
    if column is not None:
        if column not in usable:
            raise UsageError(
                f"images: {place} has no column {column!r} of bytes or text, but {', '.join(usable) or 'none at all'}: "
                "correct SPOTTER_COLUMN"
            )
        return column, holds_bytes(schema.field(column).type), rows
    with_bytes = [name for name in usable if holds_bytes(schema.field(name).type)]
    candidates = with_bytes or usable
    if len(candidates) != 1:
        which = f"several columns that may hold images ({', '.join(candidates)})" if candidates else "no column of them"
        raise UsageError(f"images: {place} has {which}: name one of bytes or text with SPOTTER_COLUMN")
    return candidates[0], bool(with_bytes), rows


def texts(place: str, column: str, objects: Objects) -> Iterator[str | None]:
    """A text column's values, in order.

    Raises:
        UsageError: the file cannot be read to its end.
    """
    try:
        with open_parquet(place, objects) as file:
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    except (StoreError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"images: {place} cannot be read to its end: {reason}: write it anew") from error


class Cursor:
    """Reads one column of one file from front to back, and gives the rows that are asked for nearly in that order."""

    def __init__(self, place: str, column: str, objects: Objects) -> None:
        self.file = open_parquet(place, objects)
        field = self.file.schema_arrow.field(column)
        self.column = f"{column}.bytes" if pa.types.is_struct(field.type) else column
        self.starts = [0]
        for group in range(self.file.metadata.num_row_groups):
            self.starts.append(self.starts[-1] + self.file.metadata.row_group(group).num_rows)
        self.kept: OrderedDict[int, bytes | None] = OrderedDict()
        self.next = 0
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.seek(0)

    def seek(self, row: int) -> None:
        """Go on from the row group that a row is in."""
        group = max(number for number, start in enumerate(self.starts[:-1] or [0]) if start <= row)
        self.next = self.starts[group]
        self.batches = self.file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            row_groups=range(group, self.file.metadata.num_row_groups),
            columns=[self.column],
            use_threads=False,
        )

    def get(self, row: int) -> bytes | None:
        """A row's value."""
        if row in self.kept:
            return self.kept.pop(row)
        group = max(number for number, start in enumerate(self.starts[:-1]) if start <= row)
        # A row group is passed over only where none of its rows can be wanted still: threads that are at both sides of
        # a group's start must not send the cursor to and fro, which would read a whole group each time.
        if row < self.next or (self.next < self.starts[group] and row - self.next >= KEPT_ROWS):
            self.seek(row)
        while self.next <= row:
            values = next(self.batches).column(0)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            for at, value in enumerate(values, self.next):
                self.kept[at] = value.as_py()
            self.next += len(values)
            while len(self.kept) > KEPT_ROWS:
                self.kept.popitem(last=False)
        return self.kept.pop(row)

    def close(self) -> None:
        """Close the file."""
        self.file.close(force=True)


class Rows:
    """The values of rows in Parquet files, a file at a time; safe from several threads."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], Cursor] = OrderedDict()

    def __reduce__(self) -> tuple[type[Rows], tuple[Objects]]:
        """A copy elsewhere opens its own files."""
        return Rows, (self.objects,)

    def get(self, place: str, column: str, row: int) -> bytes | None:
        """The bytes in a row, or None where there are none.

        Raises:
            StoreError: the file's store does not give it.
            OSError, pa.ArrowException: the file cannot be read.
        """
        with self._lock:
            cursor = self._open.pop((place, column), None) or Cursor(place, column, self.objects)
            self._open[place, column] = cursor
            while len(self._open) > 2:  # threads are at the end of one file and at the start of the next
                self._open.popitem(last=False)[1].close()
            try:
                return cursor.get(row)
            except BaseException:
                self._open.pop((place, column)).close()
                raise


def row_name(place: str, row: int) -> str:
    """What a row of a Parquet file is called; with zeros, so that names sort as rows do."""
    return f"{place}#{row:08}"
