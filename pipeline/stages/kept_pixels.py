"""Decoded pixels between reading and cutting: an image is decoded once if the detector answers soon.

The file's bytes wait beside them and not in the row: Daft copies a row's bytes to and from Python, each time with the
interpreter's lock, which took 37 ms for a photograph of 3 MB and held up the event loop.
"""

from __future__ import annotations

import threading

from pipeline.runtime.in_process import InProcess
from pipeline.sources.images import Upright

BYTES_PER_PIXEL = 4  # Pillow pads RGB


class KeptPixels(InProcess):
    """Holds the pixels of some images, at most `limit` bytes; safe from several threads.

    When there is no room, the next image is not kept, and the crop stage decodes it again. The images that were read
    first are cropped first, so none of them is dropped for a later one.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._images: dict[bytes, tuple[Upright, bytes]] = {}
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether there is no room for another image of the size that is usual now."""
        with self._lock:
            return self.total + self.total // max(len(self._images), 1) > self.limit

    def keep(self, path: bytes, upright: Upright, data: bytes) -> bool:
        """Hold an image's pixels and its file, if there is room; whether there is."""
        size = bytes_of(upright)
        with self._lock:
            fits = self.total + size <= self.limit and path not in self._images
            if fits:
                self.total += size
                self._images[path] = upright, data
            return fits

    def take(self, path: bytes) -> tuple[Upright | None, bytes | None]:
        """An image's pixels and file, which are not held any more; None where they were not."""
        with self._lock:
            upright, data = self._images.pop(path, (None, None))
            self.total -= bytes_of(upright) if upright else 0
            return upright, data


def bytes_of(upright: Upright) -> int:
    """The memory of an image's pixels."""
    return upright.pixels.width * upright.pixels.height * BYTES_PER_PIXEL
