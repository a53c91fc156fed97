"""Small copies of the images that have objects: the report draws on them and reads no source again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.runtime.in_process import InProcess
from pipeline.sources.images import COPY_BYTES, COPY_SIDE, PASSED_ON_PIXELS, Upright, reduced_jpeg

FOLDER = "annotated"
SUFFIX = ".plain"
# Images end in another order than they are listed in, and the first ones of the list are annotated.
IN_FLIGHT = 200


def plain(key: str) -> Path:
    """The small copy of the image with this content key, within the run's folder; the report removes it."""
    return Path(FOLDER, key + SUFFIX)


class Copies(InProcess):
    """Writes small copies into the run's folder; safe from several threads."""

    def __init__(self, folder: Path, limit: int | None, write: Callable[[Path, bytes], object]) -> None:
        """`limit`: how many annotated copies the run may have; None: any number."""
        self.folder = folder
        self.most = limit + IN_FLIGHT if limit else limit
        self.write = write
        self._number = itertools.count(sum(1 for _ in (folder / FOLDER).glob("*")))

    def keep(self, image: dict[str, Any], upright: Upright) -> None:
        """Write the copy of an image (a value of `IMAGE`, and its decoded pixels), unless there are enough copies."""
        if self.most is not None and next(self._number) >= self.most:
            return
        # The report reads the source where this fails; the store stage ends the run when the disk is full.
        with suppress(OSError):
            self.write(self.folder / plain(image["key"]), small(image, upright))


def small(image: dict[str, Any], upright: Upright) -> bytes:
    """An encoded image of few bytes and pixels: the detector's copy, the file, or a new one."""
    copy = image["copy"]
    if copy and len(copy) <= COPY_BYTES:
        return bytes(copy)
    if image["width"] * image["height"] <= PASSED_ON_PIXELS:
        return bytes(image["data"])
    return reduced_jpeg(upright, COPY_SIDE / max(upright.width, upright.height))
