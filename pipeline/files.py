"""Files that appear whole or not at all, and that survive a power cut."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def partial(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def whole(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A handle to write a file that is there completely or not at all; if `durable`, also after a power cut.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    fresh = partial(path)
    try:
        with fresh.open("wb") as handle:
            yield handle
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def write_anew(path: Path, content: bytes) -> None:
    """Write a file in place of the one that is there, whose content other links keep."""
    try:
        handle = path.open("xb")
    except FileExistsError:
        path.unlink()
        handle = path.open("xb")
    with handle:
        handle.write(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there completely or not at all."""
    with whole(path) as handle:
        handle.write(content)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is there completely or not at all."""
    with whole(path) as handle:
        pq.write_table(table, handle, compression="zstd")


@contextlib.contextmanager
def descriptor(folder: Path) -> Iterator[int]:
    """An open folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        yield opened
    finally:
        os.close(opened)


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk: what was renamed or removed in it stays so after a power cut."""
    with descriptor(folder) as opened:
        os.fsync(opened)


def sync_disk(folder: Path) -> None:
    """Have all on the disk that was written to the folder's file system: thousands of crops at the price of one.

    Linux can do that for one file system. `os.sync`, for the rest, waits for all of them, also for a server's that is
    gone.

    Raises:
        OSError: something could not be written.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    with descriptor(folder) as opened:
        if syncfs(opened):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
