"""Read the bytes of images: of files, objects in a store, and rows of tables."""

from __future__ import annotations

import os
import stat

from pipeline.locations import is_object, is_utf8, located
from pipeline.runtime.in_process import InProcess
from pipeline.sources.columns import inline
from pipeline.sources.frames import Frames
from pipeline.sources.hosts import Hosts
from pipeline.sources.images import BadImage
from pipeline.sources.listing import Row
from pipeline.sources.objects import Objects
from pipeline.sources.rows import Rows

# Twice the pixels that are decoded at most, as 8-bit RGB without compression. No camera's file comes near, and a disk
# image or an endless device with a picture's name does not fill the memory.
MAX_FILE_BYTES = 512 * 1024**2


class Reader(InProcess):
    """Reads the bytes of sources; safe from several threads."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.rows = Rows(objects)
        self.frames = Frames()
        self.hosts = Hosts()

    def read(self, path: bytes, row: Row | None, size: int | None = None, fetched: bytes | None = None) -> bytes:
        """An encoded image, unless what was `fetched` is it; one whose `size` is known to be too large is not read.

        Raises:
            BadImage: what is there can be no image.
            StoreError: its store does not give it.
            OSError, pyarrow.ArrowException: it cannot be read.
        """
        data = fetched
        if data is None and not too_large(size):
            data = self._row(row) if row is not None else self._file(os.fsdecode(path))
        if data is None or too_large(len(data)):
            raise BadImage(f"the file has more than {MAX_FILE_BYTES // 1024**2} MiB")
        return data

    def _row(self, row: Row) -> bytes:
        """The image in a row of a table, or the one that it names; or a frame of a video."""
        if row.is_frame:
            return self.frames.get(row.table, row.column, row.number)
        value = self.rows.get(row.table, row.column, row.number)
        if value is None:
            raise BadImage(f"column {row.column} is empty in this row")
        if isinstance(value, bytes):
            return value
        data = inline(value)
        return self._file(located(value, row.table)) if data is None else data

    def _file(self, name: str) -> bytes:
        """A file or an object; of one that is too large the beginning."""
        if not is_object(name):
            return read_file(name)
        if not is_utf8(name):
            raise BadImage("the address is no UTF-8")
        with self.hosts.asked(name):
            return self.objects.read(name, MAX_FILE_BYTES + 1)


def too_large(size: int | None) -> bool:
    """Whether a file of this many bytes is no image that anybody took; one of unknown size may be."""
    return size is not None and size > MAX_FILE_BYTES


def read_file(path: str) -> bytes:
    """A regular file's content, of one that is too large the beginning; a pipe or a device is not waited for.

    Raises:
        BadImage: it is no regular file.
        OSError: it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as handle:  # noqa: PTH123 a descriptor
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise BadImage("not a regular file")
        return handle.read(MAX_FILE_BYTES + 1)
