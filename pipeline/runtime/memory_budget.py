"""The memory budget: images wait before the first stage while the run holds too many bytes.

Stages bound rows, and for photographs of a few megabytes that is enough. It is not for a folder of large scans: 40
images of 100 MB in flight, each held twice (as read and as sent), take 8 GB.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.in_process import InProcess

# How often a waiting batch looks again. Reading a batch of files takes longer.
LOOK_S = 0.01

# Above the budget one batch is admitted when nothing was released for so long and no question is open: crops may wait
# for a full batch, and Daft (0.7.26) hands a finished batch of an asynchronous stage on when the next one arrives.
PATIENCE_S = 1.0


class MemoryBudget(InProcess):
    """Counts the encoded bytes of images and crops between reading and storing; safe from several threads.

    An image counts from its admission until it is cropped, then its crops count until they are stored. Pixels are not
    counted: they live within one call of a stage, so there are as many images of them as cores.
    """

    def __init__(self, limit: int, cancellation: CancellationToken) -> None:
        self.limit = limit
        self.cancellation = cancellation
        self.total = self.peak = 0
        self._questions = 0
        """Rows that the model is being asked about: their crops are not released before."""
        self._images: dict[bytes, int] = {}
        self._undetected: set[bytes] = set()
        self._loaded = self._loaded_bytes = 0
        self._released = time.monotonic()
        self._lock = threading.Lock()

    def admission_batch(self, sizes: Iterable[int], most: int) -> int:
        """How many images may enter together, at most `most`: so many that the largest of them fit the budget.

        `sizes`: the bytes that each image is expected to take.
        """
        largest = heapq.nlargest(most, sizes)
        together = itertools.accumulate(largest)
        return max(1, next((fit for fit, size in enumerate(together) if size > self.limit), most))

    async def admit(self, sizes: dict[bytes, int | None]) -> None:
        """Wait until a batch of images fits the budget, then count it; returns at once when the run is ending.

        `sizes`: the bytes that each image is expected to take, by path; None where unknown: it counts as the average
        of those loaded so far. A batch larger than the budget enters alone, and one batch enters after PATIENCE_S in
        which nothing was released while no image is at the detector and no crop at the model.
        """
        while not self._take(sizes) and self.cancellation.reason is None:  # noqa: ASYNC110 released from threads
            await asyncio.sleep(LOOK_S)

    def _take(self, sizes: dict[bytes, int | None]) -> bool:
        with self._lock:
            average = self._loaded_bytes // max(self._loaded, 1)
            coming = {path: average if size is None else size for path, size in sizes.items()}
            more = sum(coming.values())
            if self.total and self.total + more > self.limit:
                now = time.monotonic()
                if self._undetected or self._questions:
                    self._released = now  # these will be released: patience begins after them
                    return False
                if now - self._released < PATIENCE_S:
                    return False
                self._released = now  # one batch, and then patience again
            self._images |= coming
            self._undetected |= coming.keys()
            self._add(more)
            return True

    def _add(self, size: int) -> None:
        self.total += size
        self.peak = max(self.peak, self.total)

    def loaded(self, path: bytes, size: int) -> None:
        """An image was read and takes `size` bytes."""
        with self._lock:
            self._add(size - self._images.get(path, 0))
            self._images[path] = size
            self._loaded += 1
            self._loaded_bytes += size

    def detected(self, path: bytes) -> None:
        """The detector has answered about an image, or will not be asked."""
        with self._lock:
            self._undetected.discard(path)

    def cropped(self, path: bytes, size: int) -> None:
        """An image was released; its crops take `size` bytes."""
        with self._lock:
            self._undetected.discard(path)
            self._add(size - self._images.pop(path, 0))
            self._released = time.monotonic()

    @contextmanager
    def asking(self, rows: int) -> Iterator[None]:
        """So many crops are at the model until the block ends."""
        with self._lock:
            self._questions += rows
        try:
            yield
        finally:
            with self._lock:
                self._questions -= rows

    def stored(self, size: int) -> None:
        """A crop of `size` bytes was released."""
        with self._lock:
            self._add(-size)
            self._released = time.monotonic()
