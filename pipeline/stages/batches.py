"""How many rows a batch has, and how many batches an asynchronous stage holds."""

from __future__ import annotations

from collections.abc import Sequence

# Rows of a batch of images. Small before decoding: 600 images of 1080p then take 0.5-0.7 GB instead of 2.7-3.0.
BATCH = 8
# Of photographs fewer: the pixels of a file of 3 MB take 12 MB until it is cropped.
BATCH_BYTES = 8 * 1024**2


def image_batch(sizes: Sequence[int]) -> int:
    """Rows of a batch of images whose files have `sizes` bytes; 0 stands for an unknown one."""
    known = [size for size in sizes if size]
    return min(max(BATCH_BYTES * len(known) // sum(known), 1), BATCH) if known else BATCH


def in_flight_batches(concurrency: int, batch: int) -> int:
    """How many batches an asynchronous stage may hold so that `concurrency` rows are always in flight.

    The clients bound the rows. Twice the batches keep them busy while a batch waits for its slowest row.
    """
    return max(2, 2 * concurrency // batch)


def ask_batch(concurrency: int) -> int:
    """Rows of a batch of questions: a share of those in flight, so that a batch ends soon, and at most 32.

    Batches cost: of a bare client's rows per second at concurrency 256, batches of 1 / 8 / 32 reached 0.4 / 0.75 / 0.9.
    """
    return min(max(concurrency // 8, 1), 32)
