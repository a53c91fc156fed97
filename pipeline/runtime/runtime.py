"""What every stage of a run shares, and one row's step in a stage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.errors import RowError
from pipeline.metrics.stage import COLLECT, CPU_BOUND, RunMetrics
from pipeline.metrics.traces import TracedStep, row_name
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.in_process import InProcess
from pipeline.runtime.memory_budget import MemoryBudget

LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Runtime(InProcess):
    """One run's memory budget, cancellation token and metrics."""

    budget: MemoryBudget
    cancellation: CancellationToken
    metrics: RunMetrics

    @classmethod
    def alone(cls) -> Runtime:
        """For a stage that is used outside a run: no bound on memory, nothing measured."""
        token = CancellationToken()
        return cls(MemoryBudget(2**63, token), token, RunMetrics.disabled())

    def step(self, stage: str, key: str | None = None, index: int | None = None) -> Step:
        """One row's work on a thread: `key` is the image's content key, `index` the detection's number in it."""
        return Step(self.metrics, stage, key, index)

    def request(self, stage: str, key: str | None = None, index: int | None = None) -> RequestStep:
        """One row's request to a service; the client measures each try by itself."""
        return RequestStep(self.metrics, stage, key, index)


class Step:
    """One row's work in one stage, as a `with` block.

    The block measures the work, tells the next stage that a row is coming, and turns an exception into the row's
    `failure`: no stage raises, so that no row takes its batch along.
    """

    def __init__(self, metrics: RunMetrics, stage: str, key: str | None, index: int | None) -> None:
        self.metrics = metrics
        self.stage = metrics.stages[stage]
        self.key = key
        self.index = index
        self.failure: dict[str, Any] | None = None
        """`stage`, `reason`, `attempts` of a row that failed; None otherwise."""
        self.seconds = 0.0
        """Of the whole step, when it has ended."""
        self.bytes_in = self.bytes_out = 0
        self._next, self._rows = COLLECT, 1
        self._began = self._cpu_began = 0.0

    def hand_on(self, stage: str, rows: int = 1) -> None:
        """So many rows go to this stage next, unless the step fails; without a call one row goes to COLLECT."""
        self._next, self._rows = stage, rows

    def __enter__(self) -> Step:
        self._began = self.stage.begin()
        if self.stage.name in CPU_BOUND:
            self._cpu_began = time.thread_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        ended = self.stage.end(self._began, self.bytes_in, self.bytes_out)
        cpu_s = time.thread_time() - self._cpu_began if self.stage.name in CPU_BOUND else 0.0
        if error is not None:
            self._fail(error)
        if self.failure or cpu_s:
            self.stage.count(0, int(self.failure is not None), cpu_s=cpu_s)
        self.metrics.stages[self._next].arrive(ended, self._rows)
        self._trace(self._began, ended)
        self.seconds = ended - self._began
        return isinstance(error, Exception)

    @property
    def traced(self) -> bool:
        """Whether the trace keeps this row's steps."""
        return self.key is not None and self.metrics.traces.samples(self.key)

    def _fail(self, error: BaseException) -> None:
        self.failure = failure(self.stage.name, error)
        self._next, self._rows = COLLECT, 1

    def _trace(self, began: float, ended: float, waited_s: float = 0.0, size: tuple[int, int] | None = None) -> None:
        if self.key is not None and self.traced:
            name = row_name(self.key, self.index)
            self.metrics.traces.add(self.key, TracedStep(self.stage.name, name, began, ended, waited_s, size))


class RequestStep(Step):
    """One row's request to a service; the client measures the work, try by try, so the stage counts rows alone."""

    latency_s: float | None = None
    """Of the request that was answered."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the picture that was sent, for the trace."""

    def __enter__(self) -> RequestStep:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        ended = time.perf_counter()
        if error is not None:
            self._fail(error)
        elif self.latency_s is not None:
            sent = max(ended - self.latency_s, self._began)
            self._trace(sent, ended, sent - self._began, self.size)
        self.seconds = ended - self._began
        return isinstance(error, Exception)

    def count(self) -> None:
        """Count the row and hand it on; a stage that works in batches counts its rows by itself."""
        self.stage.count(failed=int(self.failure is not None))
        self.metrics.stages[self._next].arrive(time.perf_counter(), self._rows)


def failure(stage: str, error: BaseException) -> dict[str, Any]:
    """What went wrong with a row, as one line; bytes of a path that are not UTF-8 are shown as escapes."""
    if isinstance(error, RowError):
        stage, reason, attempts = error.stage or stage, str(error), error.attempts
    elif isinstance(error, OSError):
        reason, attempts = f"cannot be read: {error.strerror or error}", 1
    else:
        reason, attempts = f"{type(error).__name__}: {error}", 1
    text = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    return {"stage": stage, "reason": text[:LONGEST_REASON], "attempts": attempts}
