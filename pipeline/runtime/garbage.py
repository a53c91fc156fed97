"""The garbage collector of a process that makes rows."""

from __future__ import annotations

import gc

# Allocations between two looks of the garbage collector; Python's own 700 cost a fifth of the CPU of 256 requests in
# flight, whose objects form no cycles.
COLLECT_EVERY = 10_000


def collect_rarely() -> None:
    """Let the garbage collector pass by what is loaded, and look less often at the rest."""
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)
