"""Stage metrics: how many rows each stage works on, lets wait and finishes, while the run goes on.

A stage records when it begins and ends a row's work: an `append` to a queue, which takes no lock. The sampler
aggregates the records several times a second; memory does not grow with the rows.
"""

from __future__ import annotations

import itertools
import operator
import time
from collections import deque
from typing import Any, NamedTuple

from pipeline.metrics.histogram import Histogram
from pipeline.metrics.profile import Concurrency, Stage
from pipeline.metrics.traces import TraceSampler

READ, DETECT, CROP, ASK, STORE, COLLECT = STAGES = ("read", "detect", "crop", "ask", "store", "collect")
# Their work is requests.
ASKING = (DETECT, ASK)
# Daft runs synchronous functions of all operators on one pool of threads, one a core: what one of these stages takes,
# the others lack. (Two such stages of 10 and 20 ms over 200 rows took 3.1 s on two cores, never more than two at once.)
POOLED = (READ, CROP, STORE)

# Stages that compute on the thread of their step, whose CPU time the step records.
CPU_BOUND = (READ, CROP)


class Records(NamedTuple):
    """What a stage has recorded and nobody has aggregated; times are of one process' `time.perf_counter`."""

    worked: list[float | tuple[float, float, int, int]]
    rows: list[tuple[int, int, int, int, float]]
    arrived: list[tuple[float, int]]


class StageMetrics:
    """What one stage has done so far.

    The stage calls `begin`, `end`, `count` and `arrive`, from any thread; everything else belongs to the thread that
    aggregates.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.asks = name in ASKING
        # Beginnings, and ends with their beginnings and bytes, in one queue: a thread's records keep their order, so
        # that an aggregate never shows more work at once than there was.
        self._worked: deque[float | tuple[float, float, int, int]] = deque()
        self._rows: deque[tuple[int, int, int, int, float]] = deque()
        self._arrived: deque[tuple[float, int]] = deque()
        self.rows = self.failed = self.bytes_in = self.bytes_out = self.prompt_tokens = self.completion_tokens = 0
        self.cpu_s = self.busy_s = self.work_s = self.waiting_s = 0.0
        self.working = self.waiting = self.peak = self.queue_peak = 0
        self.first: float | None = None
        self.last = 0.0
        self.latency = Histogram()
        self._until = self._allowed_s = 0.0
        self.allowed: float = limit

    def begin(self) -> float:
        """A piece of work begins; returns the moment, which `end` wants."""
        at = time.perf_counter()
        self._worked.append(at)
        return at

    def end(self, began: float, bytes_in: int = 0, bytes_out: int = 0) -> float:
        """It has ended, having turned so many bytes into so many; returns the moment."""
        at = time.perf_counter()
        self._worked.append((began, at, bytes_in, bytes_out))
        return at

    def count(
        self, rows: int = 1, failed: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0, cpu_s: float = 0.0
    ) -> None:
        """Note more of rows that have ended.

        In a stage that asks a service this is what tells how many have: a row may be several requests, where one was
        tried again. In the others each piece of work is a row, and `rows` is 0.
        """
        self._rows.append((rows, failed, prompt_tokens, completion_tokens, cpu_s))

    def arrive(self, at: float, rows: int = 1) -> None:
        """Rows have come to the stage: the one before has ended with them."""
        self._arrived.append((at, rows))

    def drain(self) -> Records:
        """Take the records out, to be aggregated in another process; instead of `aggregate`."""
        queues: tuple[deque[Any], ...] = (self._worked, self._rows, self._arrived)
        return Records(*([each.popleft() for _ in range(len(each))] for each in queues))

    def extend(self, records: Records) -> None:
        """Put in records of another process, in the order of time, as if they were this one's."""
        self._arrived.extend(records.arrived)
        self._worked.extend(records.worked)
        self._rows.extend(records.rows)

    def aggregate(self, now: float, allowed: float | None = None) -> None:
        """Add up the records, as of `now` (of `time.perf_counter`).

        A thread may be held up between reading the clock and recording it: until its record comes, its work counts as
        going on. The past is never recounted, for that needs what else was going on then.

        `allowed`: how many rows the stage's service may be sent now, where that can be less than the limit.
        """
        self.allowed = self.limit if allowed is None else allowed
        # Both queues are counted before either is read, because other threads go on meanwhile; work before arrivals, so
        # that work which begins meanwhile has its own arrival.
        notes, arrivals = len(self._worked), len(self._arrived)
        recorded = [self._worked.popleft() for _ in range(notes)]
        arrived = [self._arrived.popleft() for _ in range(arrivals)]
        begun = [note for note in recorded if isinstance(note, float)]
        ended = [note for note in recorded if not isinstance(note, float)]
        counted = [self._rows.popleft() for _ in range(len(self._rows))]
        now = max(now, *begun, *(at for _, at, _, _ in ended)) if recorded else now  # some came after the caller's look
        if counted:
            rows, failed, prompt_tokens, completion_tokens, cpu_s = zip(*counted, strict=True)
            self.rows += sum(rows)
            self.failed += sum(failed)
            self.prompt_tokens += sum(prompt_tokens)
            self.completion_tokens += sum(completion_tokens)
            self.cpu_s += sum(cpu_s)
        if begun and self.first is None:
            self.first = min(begun)
        if ended:
            began, ends, bytes_in, bytes_out = zip(*ended, strict=True)
            self.latency.add(list(map(operator.sub, ends, began)))
            self.last = max(self.last, *ends)
            self.bytes_in += sum(bytes_in)
            self.bytes_out += sum(bytes_out)
            self.rows += 0 if self.asks else len(ended)
        passed = max(now - (self._until or now), 0.0)
        self.waiting_s += self.waiting * passed
        if arrived:
            self.waiting_s += sum((now - at) * number for at, number in arrived)
            self.waiting += sum(number for _, number in arrived)
        self.waiting_s -= now * len(begun) - sum(begun)
        self.waiting -= len(begun)
        self.queue_peak = max(self.queue_peak, self.waiting)
        busy_s = self.busy_s
        self._work(begun, [at for _, at, _, _ in ended], now)
        self._allowed_s += self.allowed * (self.busy_s - busy_s)

    def _work(self, begun: list[float], ended: list[float], now: float) -> None:
        """Move through beginnings and ends up to `now`; in C as far as it goes: most of accounting is spent here."""
        since = self._until or min(begun, default=now)
        events = [(max(at, since), 1) for at in begun] + [(max(at, since), -1) for at in ended]
        events.sort()
        times = [since, *(at for at, _ in events), now]
        working = list(itertools.accumulate((step for _, step in events), initial=self.working))
        lasted = list(map(operator.sub, times[1:], times))
        self.busy_s += sum(itertools.compress(lasted, working))
        self.work_s += sum(map(operator.mul, lasted, working))
        self.peak = max(self.peak, *working)
        self.working, self._until = working[-1], now

    def result(self, zero: float) -> Stage:
        """The stage as the profile has it, with times since `zero`."""
        return Stage(
            name=self.name,
            rows=self.rows,
            failed=self.failed,
            first_s=max((self.first or zero) - zero, 0.0),
            last_s=max(self.last - zero, 0.0),
            busy_s=self.busy_s,
            work_s=self.work_s,
            waiting_s=self.waiting_s,
            queue_peak=self.queue_peak,
            concurrency=Concurrency(
                limit=self.limit,
                mean=self.work_s / self.busy_s if self.busy_s else 0.0,
                peak=self.peak,
                allowed=self._allowed_s / self.busy_s if self.busy_s else None,
            ),
            latency_s=self.latency.percentiles(),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cpu_s=self.cpu_s if self.name in (*CPU_BOUND, COLLECT) else None,
        )


class NoStageMetrics(StageMetrics):
    """Records nothing: for stages and clients that are used outside a run."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name, 1)

    def begin(self) -> float:
        """The moment."""
        return time.perf_counter()

    def end(self, began: float, bytes_in: int = 0, bytes_out: int = 0) -> float:
        """The moment."""
        return time.perf_counter()

    def count(
        self, rows: int = 1, failed: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0, cpu_s: float = 0.0
    ) -> None:
        """Nothing."""

    def arrive(self, at: float, rows: int = 1) -> None:
        """Nothing."""


class RunMetrics:
    """The metrics of a run's stages, by the stages' names, and the trace."""

    def __init__(self, stages: list[StageMetrics], traces: TraceSampler) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.traces = traces

    @classmethod
    def of(cls, detector_concurrency: int, model_concurrency: int, threads: int) -> RunMetrics:
        """The metrics of a run with these bounds."""
        limits = {DETECT: detector_concurrency, ASK: model_concurrency, COLLECT: 1}
        return cls([StageMetrics(name, limits.get(name, threads)) for name in STAGES], TraceSampler())

    @classmethod
    def disabled(cls) -> RunMetrics:
        """Metrics that record nothing."""
        return cls([NoStageMetrics(name) for name in STAGES], TraceSampler(most=0))
