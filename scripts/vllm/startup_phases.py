"""The phases of a service's start, read from its log, and their durations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FIRST_PHASE = "imports"
LAST_PHASE = "first request"

# The phases of vLLM 0.32 in their order, each with the log lines that open it. Lines about an earlier phase do not
# count.
OPENED_BY: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("configuration", re.compile(r"non-default args|█▄█▀")),
    ("engine process", re.compile(r"Multi-modal warmup completed|Final IR op priority|Asynchronous scheduling is")),
    ("model set-up", re.compile(r"Initializing a V1 LLM engine|Starting to load model")),
    ("weights", re.compile(r"Loading safetensors checkpoint shards|Loading weights took|Auto-prefetch is")),
    ("profile", re.compile(r"Model loading took|Profiling|Encoder cache will be initialized")),
    ("compile", re.compile(r"torch_compile_cache|Dynamo bytecode transform|Compiling a graph|compiled graph")),
    ("KV cache", re.compile(r"Available KV cache memory|KV cache size")),
    ("capture", re.compile(r"Capturing CUDA graphs|Graph capturing")),
    ("API", re.compile(r"init engine \(|Starting vLLM server")),
)


@dataclass(slots=True)
class Phases:
    """The phases of one start, with the time when each began."""

    opened: list[tuple[str, float]] = field(default_factory=lambda: [(FIRST_PHASE, 0.0)])
    """Names, and seconds since the wait began; ascending."""
    _next: int = 0

    @property
    def current(self) -> str:
        """The phase that is running."""
        return self.opened[-1][0]

    def read(self, log: str, elapsed_s: float) -> None:
        """Open the latest phase that a log names."""
        for index in range(len(OPENED_BY) - 1, self._next - 1, -1):
            name, marks = OPENED_BY[index]
            if marks.search(log):
                self.open(name, elapsed_s)
                self._next = index + 1
                return

    def open(self, name: str, elapsed_s: float) -> None:
        """Begin a phase."""
        if name != self.current:
            self.opened.append((name, elapsed_s))

    def seconds(self, end_s: float) -> dict[str, float]:
        """Seconds of each phase; the last one ended at `end_s`."""
        ends = [begin for _, begin in self.opened[1:]] + [end_s]
        return {name: max(end - begin, 0.0) for (name, begin), end in zip(self.opened, ends, strict=True)}


def summary(seconds: dict[str, float], shortest_s: float = 0.5) -> str:
    """The phases and the slowest of them, for people; empty with a single phase."""
    if len(seconds) < 2:
        return ""
    shown = ", ".join(f"{name} {duration:.0f} s" for name, duration in seconds.items() if duration >= shortest_s)
    return f"{shown}; slowest: {max(seconds, key=seconds.__getitem__)}" if shown else ""
