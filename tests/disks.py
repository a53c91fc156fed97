"""Disks that are full or cannot be written, for real: mounted for a test, where this user may mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A folder with something mounted on it; the test is left out, with the reason, where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of a few KiB."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs"):
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder on a file system that cannot be written, with what is in the folder."""
    with mounted(folder, "--bind", "-o", "ro", str(folder)):
        yield folder
