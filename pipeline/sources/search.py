"""Search a folder for images, and count all that is left out."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from imaging.kinds import HEAD_BYTES, IMAGE_SUFFIXES, OTHER_SUFFIXES, VIDEO_SUFFIXES, image_format, suffix_of
from pipeline.sources.table_files import is_table

# Files of unknown endings are opened side by side: on a network's file system each takes a millisecond.
LOOKED_AT_ONCE = 16
SHOWN_KINDS = 8


class LeftOut(dict[str, int]):
    """What a search has left out: the number of files or folders by kind, such as `.md` or `unreadable folder`."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a file or folder."""
        self[kind] = self.get(kind, 0) + 1
        self.examples.setdefault(kind, os.fsencode(name).decode("utf-8", "backslashreplace"))

    def add_file(self, name: str) -> None:
        """Count a file by its ending."""
        self.add(suffix_of(name) or "extensionless file", name)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`kind`, `number` and `example` of each kind; endings come last, and frequent kinds first."""
        kinds = sorted(self, key=lambda kind: (kind.startswith("."), -self[kind], kind))
        return [{"kind": kind, "number": self[kind], "example": self.examples[kind]} for kind in kinds]

    def summary(self) -> str | None:
        """One line, such as `left out: 1 unreadable folder (/photos/private), 3 .md`; None when nothing was."""
        said = []
        for row in self.rows[:SHOWN_KINDS]:
            more = "" if row["kind"].startswith(".") else "s" * (row["number"] > 1) + f" ({row['example']})"
            more = " (set EVERY=1s to take frames)" if row["kind"] in VIDEO_SUFFIXES else more
            said.append(f"{row['number']} {row['kind']}{more}")
        if others := sum(row["number"] for row in self.rows[SHOWN_KINDS:]):
            said.append(f"{others} others")
        return "left out: " + ", ".join(said) if said else None


def walk(folder: str | Path, left_out: LeftOut) -> Iterator[str]:
    """All files below a folder. Hidden ones, linked folders and the folders of runs are left out.

    A link to a folder is not followed: it may lead above itself.
    """

    def unreadable(error: OSError) -> None:
        left_out.add("unreadable folder", str(error.filename))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not left_out_folder(os.path.join(parent, name), left_out)]  # noqa: PTH118 100,000 of them
        for name in names:
            if name.startswith("."):
                left_out.add("hidden file", os.path.join(parent, name))  # noqa: PTH118
            else:
                yield os.path.join(parent, name)  # noqa: PTH118


def left_out_folder(path: str, left_out: LeftOut) -> bool:
    """Whether a folder is not searched; counts it then. A link to a run, `latest`, is no loss and not counted."""
    kind = None
    if os.path.basename(path).startswith("."):  # noqa: PTH119
        kind = "hidden folder"
    elif is_run(path):
        if os.path.islink(path):  # noqa: PTH114
            return True
        kind = "run folder"
    elif os.path.islink(path):  # noqa: PTH114
        kind = "linked folder"
    if kind:
        left_out.add(kind, path)
    return kind is not None


def is_run(folder: str) -> bool:
    """Whether a folder is that of a run: its crops and annotated images are no input."""
    there = partial(os.path.join, folder)
    return os.path.isdir(there(".parts")) and (os.path.exists(there("run.json")) or os.path.exists(there(".lock")))  # noqa: PTH110 PTH112


def may_be_image(name: str) -> bool:
    """Whether a file's name leaves it open that it is an image."""
    return suffix_of(name) not in OTHER_SUFFIXES


def in_folder(folder: Path, left_out: LeftOut, *, videos: bool) -> list[str]:
    """The images (and `videos`) below a folder, sorted, or, where there are none, the tables that hold images."""
    return chosen(walk(folder, left_out), left_out, look, videos=videos)


def chosen(
    names: Iterable[str],
    left_out: LeftOut,
    look: Callable[[str], str | None] | None = None,
    *,
    videos: bool = False,
) -> list[str]:
    """Of some files the images, or, where there are none, the tables; the others are counted.

    A file of unknown ending is an image when `look` finds one in it, by returning None; without `look` it is none.
    """
    images, tables, unknown = [], [], []
    for name in names:
        suffix = suffix_of(name)
        if suffix in IMAGE_SUFFIXES or (videos and suffix in VIDEO_SUFFIXES):
            images.append(name)
        elif is_table(name):
            tables.append(name)
        elif look is None and suffix in VIDEO_SUFFIXES:
            left_out.add("video in a bucket", name)
        elif look is None or not may_be_image(name):
            left_out.add_file(name)
        else:
            unknown.append(name)
    if look is not None and unknown:
        with ThreadPoolExecutor(LOOKED_AT_ONCE) as pool:
            for name, kind in zip(unknown, pool.map(look, unknown), strict=True):
                if kind is None:
                    images.append(name)
                elif kind == "":
                    left_out.add_file(name)
                else:
                    left_out.add(kind, name)
    if images:
        for name in tables:
            left_out.add("table", name)
    return sorted(images or tables)


def look(path: str) -> str | None:
    """What a file is by its first bytes: None for an image, a kind in LeftOut, or nothing for any other file."""
    try:
        return None if image_format(head(path)) else ""
    except OSError:
        return "unreadable file" if os.path.exists(path) else "broken link"  # noqa: PTH110


def head(path: str) -> bytes:
    """A regular file's first bytes; none of a pipe or a device.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, HEAD_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def without_runs(names: list[str], root: str, left_out: LeftOut, is_run: Callable[[str], bool] = is_run) -> list[str]:
    """Some files below `root` without those in folders of runs; all of them when there are no others."""
    known: dict[str, str | None] = {root: None}

    def run_around(folder: str) -> str | None:
        if folder not in known:
            above = os.path.dirname(folder)  # noqa: PTH120
            known[folder] = (run_around(above) if above != folder else None) or (folder if is_run(folder) else None)
        return known[folder]

    others = [name for name in names if not run_around(os.path.dirname(name))]  # noqa: PTH120
    if not others:
        return names
    for run in sorted(set(filter(None, known.values()))):
        left_out.add("run folder", run)
    return others


def unreadable_of(pattern: str, left_out: LeftOut) -> None:
    """Count the folders that a glob has to search and may not: `glob` itself passes over them without a word."""
    parts = Path(pattern).parts
    for number in range(1, len(parts)):
        part = Path(*parts[:number])
        if parts[number] == "**":
            for folder in glob.glob(str(part)):  # noqa: PTH207 absolute globs too
                for _ in os.walk(folder, onerror=lambda error: left_out.add("unreadable folder", str(error.filename))):
                    pass
            return
        if glob.has_magic(parts[number]):
            for folder in glob.glob(str(part)):  # noqa: PTH207
                if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):  # noqa: PTH112
                    left_out.add("unreadable folder", folder)
