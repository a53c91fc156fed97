"""Which sources are still to do, where they are, and which may have killed a worker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.metrics.stage import READ
from pipeline.sources.listing import Source

# Shards of a worker at once: one begins while the last rows of the other end.
AT_ONCE = 2
# Sources of a shard. To begin one costs 20 ms of CPU. The last ones are small, so that all workers end together: with
# 64 images of 50 ms each, one worker worked for 2 s while the others had nothing to do.
LEAST, MOST = 16, 500
# After so many deaths of its workers an image has failed. Its shards get smaller: after the first death it is in one of
# SUSPECTS, after the second alone, so that at the third it is clear which image it was.
DEATHS = 3
SUSPECTS = 16


@dataclass
class Shard:
    """Sources that a worker does together."""

    worker: str
    suspect: bool
    """An earlier worker died of one of them, perhaps: no other shard is beside it."""
    sources: dict[bytes, Source]
    """By path; those that have not ended."""
    rows: dict[bytes, list[dict[str, Any]]] = field(default_factory=dict)
    """Of images whose rows have not all come."""


class Shards:
    """The sources of a run, each of which ends once."""

    def __init__(self, sources: list[Source]) -> None:
        self.todo = deque(sources)
        self.suspects: tuple[deque[Source], ...] = tuple(deque[Source]() for _ in range(DEATHS - 1))
        """By the deaths that they may have caused, less one."""
        self.deaths: Counter[bytes] = Counter()
        self.begun: dict[int, Shard] = {}
        self._numbers = 0

    @property
    def left(self) -> bool:
        """Whether there are sources that have not ended."""
        return bool(self.waiting or self.begun)

    @property
    def waiting(self) -> bool:
        """Whether there are sources that no worker has."""
        return bool(self.todo or any(self.suspects))

    def at(self, worker: str) -> list[Shard]:
        """What a worker has."""
        return [shard for shard in self.begun.values() if shard.worker == worker]

    def next(self, worker: str, workers: int) -> tuple[int, list[Source]] | None:
        """The number and the sources of a worker's next shard; None when it has enough, or there are no more."""
        beside = self.at(worker)
        if any(shard.suspect for shard in beside) or len(beside) >= AT_ONCE:
            return None
        if not beside and (fault := next((each for each in reversed(self.suspects) if each), None)) is not None:
            together = SUSPECTS if fault is self.suspects[0] else 1
            sources = [fault.popleft() for _ in range(min(together, len(fault)))]
            return self._begin(worker, sources, suspect=True)
        if not self.todo or (any(self.suspects) and beside):
            return None  # it becomes free for a suspect
        size = min(max(len(self.todo) // (AT_ONCE * 2 * workers), LEAST), MOST, len(self.todo))
        return self._begin(worker, [self.todo.popleft() for _ in range(size)], suspect=False)

    def _begin(self, worker: str, sources: list[Source], *, suspect: bool) -> tuple[int, list[Source]]:
        self._numbers += 1
        self.begun[self._numbers] = Shard(worker, suspect, {source.path: source for source in sources})
        return self._numbers, sources

    def add(self, number: int, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Take rows of a shard; gives those of images that have ended with them, an image's together."""
        shard = self.begun[number]
        for row in rows:
            own = shard.rows.setdefault(row["path"], [])
            own.append(row)
            if len(own) >= (row["detections"] or 0):
                del shard.sources[row["path"]], shard.rows[row["path"]]
                yield from own

    def end(self, number: int) -> int:
        """A shard has ended; gives the number of its images that have no rows, or too few."""
        return len(self.begun.pop(number).sources)

    def lost(self, worker: str, *, suspect: bool) -> Iterator[dict[str, Any]]:
        """A worker is gone, and others do what had not ended there; gives the rows of images that have failed by that.

        `suspect`: one of its images may be the reason.
        """
        numbers = [number for number, shard in self.begun.items() if shard.worker == worker]
        for source in [source for number in numbers for source in self.begun.pop(number).sources.values()]:
            if not suspect:
                self.todo.appendleft(source)
                continue
            self.deaths[source.path] += 1
            if self.deaths[source.path] < DEATHS:
                self.suspects[self.deaths[source.path] - 1].append(source)
            else:
                yield died(source)


def died(source: Source) -> dict[str, Any]:
    """The row of an image that no worker outlives."""
    reason = f"{DEATHS} workers died at this image, the last at it alone: see memory and the nodes' logs"
    nothing = dict.fromkeys(
        ("key", "width", "height", "format", "frames", "file_bytes", "read_s", "detect_s", "crop_s")
    )
    return nothing | {
        "path": source.path,
        "version": source.version,
        "inputs": source.inputs and source.inputs.text,
        "duplicate": False,
        "index": None,
        "detections": None,
        "detect_attempts": None,
        "image_failure": {"stage": READ, "reason": reason, "attempts": DEATHS},
    }


def alone(sources: Sequence[Source]) -> set[bytes]:
    """The paths of the files whose size no other file has."""
    sizes = Counter(source.size for source in sources)
    return {source.path for source in sources if source.size is not None and sizes[source.size] == 1}
