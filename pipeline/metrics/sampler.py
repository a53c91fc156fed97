"""Looks at a run some times a second: aggregates stage metrics, attributes the bottleneck, keeps bounded series."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import psutil

from pipeline.metrics.bottleneck import Attribution, Moment
from pipeline.metrics.gpu import Gpus
from pipeline.metrics.profile import Samples
from pipeline.metrics.services import ServerSeries
from pipeline.metrics.stage import STAGES, RunMetrics, StageMetrics

# How often the stages are read: after a 25th of the time since the beginning, within these bounds. A run of seconds is
# resolved to 0.05 s, and a long run is read four times a second, at some 0.1 ms of CPU each.
SHORTEST_TICK_S, LONGEST_TICK_S = 0.05, 0.25
TICKS = 25
# How often a sample is kept at first. A long run halves its samples whenever there are `MOST_SAMPLES`, and keeps them
# half as often from then on: a run of any length has between 600 and 1,200 of them, in some 200 kB.
SAMPLE_S = 0.25
MOST_SAMPLES = 1200
# CPU use is not calculated over a shorter time: the kernel counts the host's in hundredths of a second, and two of them
# between readings that are milliseconds apart, as the last ones may be, look like several cores.
LEAST_USAGE_S = 0.1


@dataclass
class Series:
    """Samples of many values at the same moments, at most `most`: each a mean over the time since the sample before."""

    most: int = MOST_SAMPLES
    every_s: float = SAMPLE_S
    t_s: list[float] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, at: float, values: Mapping[str, float | None]) -> None:
        """Keep a sample; when there are too many, merge pairs of neighbours."""
        for name in {*self.values, *values}:
            column = self.values.setdefault(name, [None] * len(self.t_s))
            column.append(values.get(name))
        self.t_s.append(at)
        if len(self.t_s) >= self.most:
            self.every_s *= 2
            self.t_s = self.t_s[1::2]
            self.values = {name: merge(column) for name, column in self.values.items()}

    def result(self) -> Samples:
        """The samples as the profile has them, to a thousandth."""
        rounded = {
            name: [value if value is None else round(value, 3) for value in column]
            for name, column in self.values.items()
        }
        return Samples(t_s=[round(at, 3) for at in self.t_s], series=rounded)


def merge(column: list[float | None]) -> list[float | None]:
    """Means of pairs of neighbours; where one is missing, the other."""
    merged: list[float | None] = []
    for pair in zip(column[::2], column[1::2], strict=False):
        known = [value for value in pair if value is not None]
        merged.append(sum(known) / len(known) if known else None)
    return merged


@dataclass
class Integrals:
    """What a stage had done up to a moment."""

    at: float
    work_s: float = 0.0
    waiting_s: float = 0.0
    busy_s: float = 0.0

    @classmethod
    def of(cls, stage: StageMetrics, at: float) -> Integrals:
        """As of the last aggregate, at `at`."""
        return cls(at, stage.work_s, stage.waiting_s, stage.busy_s)

    def since(self, before: Integrals) -> Moment:
        """The means between two moments."""
        passed = self.at - before.at
        return Moment(
            working=(self.work_s - before.work_s) / passed,
            waiting=(self.waiting_s - before.waiting_s) / passed,
            active=(self.busy_s - before.busy_s) / passed,
        )


class Usage:
    """CPU and memory of a run's processes and of the host."""

    def __init__(self, others: Callable[[], tuple[float, int]] = lambda: (0.0, 0)) -> None:
        """`others`: CPU seconds and bytes of memory of the processes beside this one."""
        self._others = others
        self._process = psutil.Process()
        self._before = self._cpu()

    def _cpu(self) -> tuple[float, float, float]:
        """Now; CPU seconds of this process and of the host until now."""
        host = psutil.cpu_times()
        idle = host.idle + getattr(host, "iowait", 0.0)
        # Linux counts a guest's time in user's as well.
        busy = sum(host) - idle - getattr(host, "guest", 0.0) - getattr(host, "guest_nice", 0.0)
        return time.perf_counter(), time.process_time() + self._others()[0], busy

    def now(self) -> dict[str, float | None]:
        """Memory in bytes, and the cores in use since the last call if that was LEAST_USAGE_S ago."""
        memory = psutil.virtual_memory()
        usage: dict[str, float | None] = {
            "pipeline.memory_bytes": float(self._process.memory_info().rss + self._others()[1]),
            "host.memory_bytes": float(memory.total - memory.available),
        }
        before, now = self._before, self._cpu()
        passed = now[0] - before[0]
        if passed < LEAST_USAGE_S:
            return usage
        self._before = now
        return usage | {
            "pipeline.cpu": (now[1] - before[1]) / passed,
            "host.cpu": max(now[2] - before[2], 0.0) / passed,
        }


class Sampler:
    """A thread beside a run's flow that reads its stages; nothing that it does changes the run."""

    def __init__(
        self,
        metrics: RunMetrics,
        servers: Mapping[str, ServerSeries],
        allowed: Mapping[str, Callable[[], float]],
        zero: float,
        gpus: Gpus,
        clock: Callable[[], float] = time.perf_counter,
        others: Callable[[], tuple[float, int]] = lambda: (0.0, 0),
    ) -> None:
        """`allowed`: how many rows each stage that asks a service may send now; `zero`: when the run began; `clock`:
        the moment up to which the stages know all; `others`: see `Usage`."""
        self.stages = metrics.stages
        self.traces = metrics.traces
        self.servers = servers
        self.allowed = allowed
        self.zero = zero
        self.clock = clock
        self.gpus = gpus
        self.series = Series()
        self.attribution = Attribution({name: stage.limit for name, stage in self.stages.items()})
        self.cpu_s = 0.0
        """CPU time that looking took."""
        self._usage = Usage(others)
        self._stop = threading.Event()
        self._began = now = time.perf_counter()
        self._tick = {name: Integrals.of(stage, now) for name, stage in self.stages.items()}
        self._sample = dict(self._tick)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look a last time."""
        self._stop.set()
        self._thread.join()
        self._look(keep=True)

    def _run(self) -> None:
        while not self._stop.wait(min(max(self._elapsed_s() / TICKS, SHORTEST_TICK_S), LONGEST_TICK_S)):
            began = time.thread_time()
            due = time.perf_counter() - self._sample[STAGES[0]].at >= self.series.every_s
            self._look(keep=due)
            self.cpu_s += time.thread_time() - began

    def _elapsed_s(self) -> float:
        """Since the sampler was made."""
        return time.perf_counter() - self._began

    def _look(self, keep: bool) -> None:
        now = self.clock()
        for name, stage in self.stages.items():
            stage.aggregate(now, self.allowed[name]() if name in self.allowed else None)
        self.traces.aggregate()
        integrals = {name: Integrals.of(stage, now) for name, stage in self.stages.items()}
        # Until the first row the flow only starts, which is a phase of its own and no stage's doing.
        first = min((stage.first for stage in self.stages.values() if stage.first is not None), default=now)
        since = max(self._tick[STAGES[0]].at, first)
        if now > since:
            self.attribution.limits = {name: stage.allowed for name, stage in self.stages.items()}
            before = {name: replace(it, at=since) for name, it in self._tick.items()}
            self.attribution.add(now - since, {name: it.since(before[name]) for name, it in integrals.items()})
        self._tick = integrals
        if keep and now > self._sample[STAGES[0]].at:
            values: dict[str, float | None] = {}
            for name, it in integrals.items():
                moment = it.since(self._sample[name])
                values |= {f"{name}.working": moment.working, f"{name}.waiting": moment.waiting}
            self._sample = integrals
            with suppress(OSError, psutil.Error):  # the kernel does not tell: no reason to end a run
                values |= self._usage.now()
            if (gpu := self.gpus.now()) is not None:
                values |= {"gpu.utilisation": gpu[0], "gpu.memory_bytes": gpu[1]}
            for server in self.servers.values():
                values |= {series: server.now.get(series) for series in server.gauges} if server.readings else {}
            self.series.add(now - self.zero, values)
