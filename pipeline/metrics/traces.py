"""The trace: every step of some rows, an even sample of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# The steps that a trace holds at most; above that, the steps of half the images are dropped. 4,096 steps take about
# 0.5 MB of profile.json.
MOST_STEPS = 4096


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One row's step in one stage; times are of `time.perf_counter`."""

    stage: str
    row: str
    began: float
    ended: float
    waited_s: float = 0.0
    size: tuple[int, int] | None = None
    """Width and height in pixels of the crop that the model was asked about; None for other stages."""


class TraceSampler:
    """Samples the steps of whole images, the same images in all stages, at most `most` steps.

    An image is sampled when its content key, a hash, is below a bound; the bound is halved whenever there are too many
    steps. So stages need not agree on anything.
    """

    def __init__(self, most: int = MOST_STEPS) -> None:
        self.most = most
        self.bound = "g" if most else ""  # "g" is above every hexadecimal key, "" below
        self._share = 1.0
        self._added: deque[tuple[str, TracedStep]] = deque()
        self._kept: dict[str, list[TracedStep]] = {}
        self._steps = 0

    def samples(self, key: str) -> bool:
        """Whether the steps of this image are kept."""
        return key < self.bound

    def add(self, key: str, step: TracedStep) -> None:
        """Keep a step of an image that is sampled; safe from any thread."""
        self._added.append((key, step))

    def drain(self) -> list[tuple[str, TracedStep]]:
        """Take the steps out that were added, for another process' sampler."""
        return [self._added.popleft() for _ in range(len(self._added))]

    def aggregate(self) -> None:
        """Sort in the steps that were added, and sample fewer images when there are too many. From one thread."""
        for _ in range(len(self._added)):
            key, step = self._added.popleft()
            if key < self.bound:
                self._kept.setdefault(key, []).append(step)
                self._steps += 1
        while self._steps > self.most:
            self._share /= 2
            self.bound = f"{int(self._share * 2**64):016x}"
            self._kept = {key: steps for key, steps in self._kept.items() if key < self.bound}
            self._steps = sum(map(len, self._kept.values()))

    def steps(self) -> list[TracedStep]:
        """The sampled steps, by their beginning."""
        return sorted((step for steps in self._kept.values() for step in steps), key=lambda step: step.began)


def row_name(key: str, index: int | None) -> str:
    """A row's name in the trace: the image's key, and for a detection its number, as in its crop's file."""
    return key if index is None else f"{key}-{index}"
