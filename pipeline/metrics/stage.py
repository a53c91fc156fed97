"""Stage accounting: what each stage of the flow does, while it does it.

A stage notes when it begins a row's work and when that has ended: an `append` to a queue, which takes no lock. The
sampler draws the notes several times a second and adds them up; memory does not grow with the rows.
"""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.metrics.profile import Concurrency, Percentiles, Stage

READ, DETECT, CROP, ASK, STORE, COLLECT = STAGES = ("read", "detect", "crop", "ask", "store", "collect")
# Of one image, and so before the explode; the others work on detections.
IMAGE_STAGES = (READ, DETECT, CROP)
# Their work is requests.
ASKING = (DETECT, ASK)
# Daft runs synchronous functions of all operators on one pool of threads, one a core: what one of these stages takes,
# the others lack. (Two such stages of 10 and 20 ms over 200 rows took 3.1 s on two cores, never more than two at once.)
POOLED = (READ, CROP, STORE)

# Latencies are counted in buckets, each this much wider than the one before: percentiles are right to 2.5%.
BUCKET_GROWTH = 1.05
COUNTED_AT_ONCE = 64

# Steps of rows that are kept, for the trace. When there are more, those of half the images are dropped. 4,096 are about
# 0.5 MB of profile.json.
KEPT_STEPS = 4096


@dataclass(frozen=True, slots=True)
class Traced:
    """One step of a kept row."""

    stage: str
    row: str
    began: float
    ended: float
    waited_s: float = 0.0
    size: tuple[int, int] | None = None
    """Width and height of the crop that the model was asked about, in pixels; None for other stages."""


class Selection:
    """An even choice of images whose steps are kept, `most` of them, the same in all stages.

    The choice is by content key, a hash: an image is kept when its key is below a bound, and the bound is halved
    whenever there are too many. So no stage has to be told what another has chosen.
    """

    def __init__(self, most: int = KEPT_STEPS) -> None:
        self.most = most
        self.bound = "g"  # above every hexadecimal key
        self._share = 1.0
        self._noted: deque[tuple[str, Traced]] = deque()
        self._kept: dict[str, list[Traced]] = {}
        self._steps = 0

    def has(self, key: str) -> bool:
        """Whether steps of this image are kept."""
        return key < self.bound

    def note(self, key: str, step: Traced) -> None:
        """Keep a step of an image that `has` said yes to; safe from any thread."""
        self._noted.append((key, step))

    def draw(self) -> None:
        """Sort in what was noted, and choose less when that is too much. From one thread."""
        for _ in range(len(self._noted)):
            key, step = self._noted.popleft()
            if key < self.bound:
                self._kept.setdefault(key, []).append(step)
                self._steps += 1
        while self._steps > self.most:
            self._share /= 2
            self.bound = f"{int(self._share * 2**64):016x}"
            self._kept = {key: steps for key, steps in self._kept.items() if key < self.bound}
            self._steps = sum(map(len, self._kept.values()))

    def steps(self) -> list[Traced]:
        """The kept steps, by their beginning."""
        return sorted((step for steps in self._kept.values() for step in steps), key=lambda step: step.began)


class Histogram:
    """Durations in seconds, counted in logarithmic buckets."""

    _SCALE = 1 / math.log(BUCKET_GROWTH)
    _LEAST_S = 1e-9

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.max = 0.0

    def add(self, seconds: list[float]) -> None:
        """Count durations; of very many at once an even selection, each for those that are passed by."""
        step = 1 + len(seconds) // COUNTED_AT_ONCE
        scale, least, log = self._SCALE, self._LEAST_S, math.log
        for value in seconds[::step]:
            self.buckets[int(log(max(value, least)) * scale // 1)] += step
        self.max = max(self.max, *seconds) if seconds else self.max

    def quantile(self, share: float) -> float:
        """The duration that this share of all stays below: the middle of its bucket; 0 when there are none."""
        left = share * self.buckets.total()
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(math.exp((bucket + 0.5) / self._SCALE), self.max)
        return self.max

    def percentiles(self) -> Percentiles:
        """What a profile shows of it."""
        return Percentiles(p50=self.quantile(0.5), p90=self.quantile(0.9), p99=self.quantile(0.99), max=self.max)


class StageAccount:
    """What one stage has done so far.

    `begin`, `end`, `count` and `arrive` are for the stage, from any thread; all else is for the one thread that draws.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.allowed: Callable[[], float] | None = None
        """Tells how many rows a service has room for now, where that can be less than the limit."""
        self.asks = name in ASKING
        # Beginnings, and ends with their beginnings and bytes, in one queue: as a thread's notes keep their order, what
        # is drawn is never more work at once than there was.
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

    def draw(self, now: float) -> None:
        """Add up what was noted, as of `now` (of `time.perf_counter`).

        A thread may be held up between reading the clock and noting it: until its note comes, its work counts as going
        on. The past is never recounted, for that needs what else was going on then.
        """
        # Both are counted before any is drawn: other threads do much while that lasts. Work before arrivals: what comes
        # in meanwhile has its own arrival.
        notes, arrivals = len(self._worked), len(self._arrived)
        drawn = [self._worked.popleft() for _ in range(notes)]
        arrived = [self._arrived.popleft() for _ in range(arrivals)]
        begun = [note for note in drawn if isinstance(note, float)]
        ended = [note for note in drawn if not isinstance(note, float)]
        counted = [self._rows.popleft() for _ in range(len(self._rows))]
        now = max(now, *begun, *(at for _, at, _, _ in ended)) if drawn else now  # some came after the caller's look
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
        self._allowed_s += self.room * (self.busy_s - busy_s)

    @property
    def room(self) -> float:
        """How many rows may be worked on now."""
        return self.limit if self.allowed is None else self.allowed()

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
            cpu_s=self.cpu_s if self.name in (READ, CROP, COLLECT) else None,
        )


class Unaccounted(StageAccount):
    """Takes notes of nothing: for stages and clients that are used outside of a run."""

    def __init__(self) -> None:
        super().__init__("", 1)

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


class Account:
    """The accounts of a run's stages, and the images whose steps are kept."""

    def __init__(self, detector_concurrency: int, model_concurrency: int, threads: int) -> None:
        limits = {DETECT: detector_concurrency, ASK: model_concurrency, COLLECT: 1}
        self.stages = {name: StageAccount(name, limits.get(name, threads)) for name in STAGES}
        self.read, self.detect, self.crop, self.ask, self.store, self.collect = self.stages.values()
        self.selection = Selection()

    @classmethod
    def nowhere(cls) -> Account:
        """An account that takes notes of nothing."""
        account = cls(1, 1, 1)
        account.stages = {name: Unaccounted() for name in STAGES}
        account.read, account.detect, account.crop, account.ask, account.store, account.collect = (
            account.stages.values()
        )
        account.selection = Selection(most=0)
        account.selection.bound = ""
        return account

    def __reduce__(self) -> tuple[Callable[[], Account], tuple[()]]:
        """A copy elsewhere is drawn by nobody."""
        return Account.nowhere, ()

    def finish(
        self,
        stage: StageAccount,
        began: float,
        onward: StageAccount | None = None,
        rows: int = 1,
        *,
        key: str | None = None,
        index: int | None = None,
        failed: bool = False,
        bytes_in: int = 0,
        bytes_out: int = 0,
        cpu_s: float = 0.0,
    ) -> float:
        """A row of a synchronous stage has ended, and so many `rows` go `onward`; returns the seconds that it took.

        `key` is the image's; `index` the detection's in it, where the row is one.
        """
        ended = stage.end(began, bytes_in, bytes_out)
        if failed or cpu_s:
            stage.count(0, int(failed), cpu_s=cpu_s)
        if onward is not None:
            onward.arrive(ended, rows)
        if key is not None and self.selection.has(key):
            self.selection.note(key, Traced(stage.name, named(key, index), began, ended))
        return ended - began

    def asked(
        self,
        stage: StageAccount,
        came: float,
        latency_s: float,
        key: str,
        index: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Keep the step of a row that a service has answered just now, for an image that the selection has.

        `came` is when the row was handed to the client, `latency_s` that of the request that was answered, and `size`
        the width and height of the picture that was sent.
        """
        ended = time.perf_counter()
        began = max(ended - latency_s, came)
        self.selection.note(key, Traced(stage.name, named(key, index), began, ended, began - came, size))


def named(key: str, index: int | None) -> str:
    """A row's name: the image's key, and for a detection its number in the image, as its crop's file has it."""
    return key if index is None else f"{key}-{index}"
