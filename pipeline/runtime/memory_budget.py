"""The bytes that a run holds: a gate in front of the flow keeps those of its images and crops below a bound.

Rows are bounded by the stages themselves, and for photos of a few megabytes that is enough. It is not for a folder of
large scans: 40 images in flight of 100 MB each, and each twice, as read and as sent, are 8 GB.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable

from pipeline.runtime.cancellation import Stop
from pipeline.sources.listing import too_large

# How often a closed gate looks again. It stands before a batch of files, whose reading alone takes longer.
LOOK_S = 0.01

# Above the bound the gate opens when nothing has been let go for so long and nothing is being asked: crops may wait for
# a full batch, and Daft (0.7.26) hands the finished batches of an asynchronous stage on when the next one comes.
PATIENCE_S = 1.0


class Held:
    """How many bytes images and crops take between reading and storing; safe from several threads.

    An image counts from the gate until it is cut up, then its crops count until they are stored. What counts is encoded
    bytes: the pixels of an image live within one call of a stage, so there are as many as there are cores.
    """

    def __init__(self, most: int, stop: Stop) -> None:
        self.most = most
        self.stop = stop
        self.pending: Callable[[], int] = lambda: 0
        """How many questions about crops have not come to an end: what is held for them is not let go before."""
        self.total = self.peak = 0
        self._images: dict[bytes, int] = {}
        self._under_way: set[bytes] = set()
        self._read = self._read_bytes = 0
        self._let_go = time.monotonic()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Held], tuple[int, Stop]]:
        """A copy elsewhere counts by itself."""
        return Held, (self.most, self.stop)

    def batch(self, sizes: Iterable[int | None], most: int) -> int:
        """How many images of these file sizes may enter together, at most `most`: a batch waits at the gate as one.

        So many that the largest of them would fit below the bound, if they came together.
        """
        largest = heapq.nlargest(most, (expected(size or 0) for size in sizes))
        together = itertools.accumulate(largest)
        return max(1, next((fit for fit, size in enumerate(together) if size > self.most), most))

    async def enter(self, sizes: dict[bytes, int | None]) -> None:
        """Wait until images of these file sizes (by path; None: not known) fit below the bound, and count them.

        One that is larger than the bound goes alone; a gate opens after PATIENCE_S where nothing moves and nothing is
        asked about: not for a model server that is slow, or away. Returns at once when the run is ending.
        """
        while not self._take(sizes) and self.stop.reason is None:  # noqa: ASYNC110 it is opened from threads
            await asyncio.sleep(LOOK_S)

    def _take(self, sizes: dict[bytes, int | None]) -> bool:
        with self._lock:
            usual = self._read_bytes // max(self._read, 1)
            coming = {path: usual if size is None else expected(size) for path, size in sizes.items()}
            more = sum(coming.values())
            if self.total and self.total + more > self.most:
                now = time.monotonic()
                if self._under_way or self.pending():
                    self._let_go = now  # nothing waits for good: patience begins when that has ended
                    return False
                if now - self._let_go < PATIENCE_S:
                    return False
                self._let_go = now  # one batch, and then patience again
            self._images |= coming
            self._under_way |= coming.keys()
            self._add(more)
            return True

    def _add(self, size: int) -> None:
        self.total += size
        self.peak = max(self.peak, self.total)

    def read(self, path: bytes, size: int) -> None:
        """An image was read, and takes `size` bytes."""
        with self._lock:
            self._add(size - self._images.get(path, 0))
            self._images[path] = size
            self._read += 1
            self._read_bytes += size

    def detected(self, path: bytes) -> None:
        """The detector has answered about an image, or will not be asked."""
        with self._lock:
            self._under_way.discard(path)

    def cut(self, path: bytes, size: int) -> None:
        """An image was let go; its crops take `size` bytes."""
        with self._lock:
            self._under_way.discard(path)
            self._add(size - self._images.pop(path, 0))
            self._let_go = time.monotonic()

    def stored(self, size: int) -> None:
        """A crop of `size` bytes was let go."""
        with self._lock:
            self._add(-size)
            self._let_go = time.monotonic()


def expected(size: int) -> int:
    """What a file of this size will take: twice that, as it was read and as it is sent; nothing if it is not read."""
    return 0 if too_large(size) else 2 * size
