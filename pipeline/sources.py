"""Where images come from."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError

# What a folder is searched for. A file named otherwise can still be given by a glob.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".ppm", ".mpo"})


@dataclass(frozen=True, slots=True)
class Source:
    """One image file as the file system knows it."""

    path: Path
    file_bytes: int
    modified_ns: int


def list_images(source: str) -> list[Source]:
    """The image files of a folder (searched through, by SUFFIXES), of a glob such as `photos/**/*.jpg`, or one file.

    Sorted by path, so that two runs see the same order. Hidden files and folders of a folder are passed over.

    Raises:
        UsageError: there is nothing there.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        if not os.access(place, os.R_OK | os.X_OK):
            raise UsageError(f"images: no permission to list the folder {source!r}")
        found = sorted(path for path in walk(place) if path.suffix.lower() in SUFFIXES)
        expected = f"no image in the folder {source!r} (searched for {', '.join(sorted(SUFFIXES))})"
    elif place.exists():
        found, expected = [place], ""
    else:
        matches = (Path(match) for match in glob.glob(str(place), recursive=True))  # noqa: PTH207 absolute globs too
        found = sorted(path for path in matches if path.is_file())
        expected = f"{source!r} is no file, no folder and matches nothing as a glob"
    if not found:
        raise UsageError(f"images: {expected}: give a folder, a glob or a file with IMAGES=... or --images")
    return [describe(path) for path in found]


def describe(path: Path) -> Source:
    """A file's size and time, without opening it."""
    try:
        status = path.stat()
    except OSError:  # a dangling link, or gone since: reading it will tell
        return Source(path, 0, 0)
    return Source(path, status.st_size, status.st_mtime_ns)


def walk(folder: Path) -> list[Path]:
    """All files below a folder, but for hidden ones."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return files
