"""Decoded pixels between reading and cutting: an image is decoded once if the detector answers soon."""

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
        self._images: dict[bytes, Upright] = {}
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether there is no room for another image of the size that is usual now."""
        with self._lock:
            return self.total + self.total // max(len(self._images), 1) > self.limit

    def keep(self, path: bytes, upright: Upright) -> None:
        """Hold an image's pixels if there is room."""
        size = bytes_of(upright)
        with self._lock:
            if self.total + size <= self.limit and path not in self._images:
                self.total += size
                self._images[path] = upright

    def take(self, path: bytes) -> Upright | None:
        """An image's pixels, which are not held any more; None where they were not."""
        with self._lock:
            upright = self._images.pop(path, None)
            self.total -= bytes_of(upright) if upright else 0
            return upright


def bytes_of(upright: Upright) -> int:
    """The memory of an image's pixels."""
    return upright.pixels.width * upright.pixels.height * BYTES_PER_PIXEL
