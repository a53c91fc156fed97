"""Read the values of rows in tables, when they are wanted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from pipeline.runtime.in_process import InProcess
from pipeline.sources.columns import pick
from pipeline.sources.objects import Objects
from pipeline.sources.table_files import open_table

# Rows are asked for nearly in order: Daft has one thread for each core, each with a batch of 8 rows. So many skipped
# values are kept, twice what is needed; a row that is asked for later still is read once more.
KEPT_ROWS = 16 * max(os.cpu_count() or 1, 4)


class Cursor:
    """Reads one column of a table from front to back, and gives the rows that are asked for nearly in that order."""

    def __init__(self, place: str, column: str, objects: Objects) -> None:
        self.table = open_table(place, objects)
        self.column = column
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.given: deque[int] = deque(maxlen=KEPT_ROWS)
        self.repeats = False
        """Whether rows are asked for several times, as with a job's `each`; then values that were given stay."""
        self.next = 0
        self.batches: Iterator[list[Any]] = iter(())
        self.seek(0)

    def group(self, row: int) -> int:
        """The group of rows that a row is in."""
        return max(number for number, start in enumerate(self.table.starts) if start <= row)

    def seek(self, row: int) -> None:
        """Go on from the group of rows that a row is in."""
        group = self.group(row)
        self.next = self.table.starts[group]
        self.batches = self.table.values(self.column, group)

    def get(self, row: int) -> Any:
        """A row's value."""
        if row in self.kept:
            return self.give(row)
        if row in self.given:
            self.repeats = True
        # A group is skipped only when none of its rows can be wanted any more: threads on both sides of a group's start
        # must not send the cursor to and fro, which would read a whole group each time.
        if row < self.next or (self.next < self.table.starts[self.group(row)] and row - self.next >= KEPT_ROWS):
            self.seek(row)
        while self.next <= row:
            values = next(self.batches)
            self.kept.update(enumerate(values, self.next))
            self.next += len(values)
            while len(self.kept) > KEPT_ROWS:
                self.kept.popitem(last=False)
        return self.give(row)

    def give(self, row: int) -> Any:
        """The value of a row that was read."""
        self.given.append(row)
        return self.kept[row] if self.repeats else self.kept.pop(row)

    def close(self) -> None:
        """Close the file."""
        self.table.close()


class Rows(InProcess):
    """The values of rows in tables, two files at a time; safe from several threads."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], Cursor] = OrderedDict()

    def get(self, place: str, column: str, row: int) -> bytes | str | None:
        """The bytes in a row, or the text about them; None: neither.

        Raises:
            StoreError: the file's store does not give it.
            BadImage: the row holds several images.
            OSError, pa.ArrowException, ValueError: the file cannot be read.
        """
        with self._lock:
            cursor = self._open.pop((place, column), None) or Cursor(place, column, self.objects)
            self._open[place, column] = cursor
            while len(self._open) > 2:  # threads are at the end of one file and at the start of the next
                self._open.popitem(last=False)[1].close()
            try:
                value = cursor.get(row)
            except BaseException:
                self._open.pop((place, column)).close()
                raise
        return pick(value)


def row_name(place: str, row: int) -> str:
    """The name of a row of a table; with zeros, so that names sort as rows do."""
    return f"{place}#{row:08}"
