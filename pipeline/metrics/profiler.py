"""A run measures itself: its phases, its stages while they work, and at the end `profile/profile.json`.

Every run is measured; `scripts/bench/accounting.py` measures what that costs. Measuring never steers a run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.files import write_atomically
from pipeline.job import Job
from pipeline.metrics import services
from pipeline.metrics.diagnosis import diagnose
from pipeline.metrics.evidence import Evidence
from pipeline.metrics.gpu import Gpus
from pipeline.metrics.profile import FILE, Machine, Phase, Profile, Span, WorkerProfile
from pipeline.metrics.sampler import Sampler
from pipeline.metrics.stage import ASK, COLLECT, READ, RunMetrics
from pipeline.settings import Settings

# The phases of a run, in order. "start" lasts from the flow's beginning to its first row.
LIST, PROBE, PREPARE, START, FLOW = "list", "probe", "prepare", "start", "flow"
# "finish" is the last look at the services, and the end of the connections to them.
WRITE, FINISH, REPORT = "write", "finish", "report"


def cores() -> int:
    """The cores that this process may use: Daft runs as many threads."""
    return len(os.sched_getaffinity(0))


class Profiler:
    """Measures one run, from its construction to `write`; `enabled=False` measures nothing but the phases."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.zero = time.perf_counter()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.metrics = RunMetrics.disabled()
        self.servers = {"model": services.model_server(), "detector": services.detector()}
        """Take the readings of the servers' metrics, of all addresses of a service together."""
        self.addresses: dict[str, dict[str, services.ServerSeries]] = {name: {} for name in self.servers}
        """The same by service and address, of those that have several."""
        self.workers: Callable[[float], list[WorkerProfile]] = lambda zero: []
        """What each worker of a cluster did, with times since the beginning."""
        self._phases: list[tuple[str, float]] = []
        self._sampler: Sampler | None = None
        self._settings: dict[str, str | int | float | bool | None] = {}
        self._main_cpu_s = 0.0

    def phase(self, name: str) -> None:
        """A phase begins, and the one before ends."""
        self._phases.append((name, time.perf_counter()))

    def measure(self, settings: dict[str, str | int | float | bool | None], limits: tuple[int, int]) -> RunMetrics:
        """The metrics for the stages of a flow; `limits`: most requests at the detector and at the model.

        `settings`: those that tuning advice may name.
        """
        self._settings = settings
        if self.enabled:
            self.metrics = RunMetrics.of(*limits, cores())
        return self.metrics

    def flow_begins(
        self,
        images: int,
        allowed: Mapping[str, Callable[[], float]],
        clock: Callable[[], float] = time.perf_counter,
        others: Callable[[], tuple[float, int]] = lambda: (0.0, 0),
    ) -> None:
        """The flow over so many images begins; see `Sampler` for `allowed`, `clock` and `others`."""
        if not self.enabled:
            return
        self._sampler = Sampler(self.metrics, self.servers, allowed, self.zero, Gpus(), clock, others)
        self._sampler.start()
        self._flowing(True)
        self.metrics.stages[READ].arrive(time.perf_counter(), images)
        self._main_cpu_s = time.thread_time()

    def flow_ended(self) -> None:
        """The flow has ended or was cut short. Call it in the thread of `flow_begins`: rows are collected there."""
        if self._sampler is not None:
            self.metrics.stages[COLLECT].count(0, cpu_s=time.thread_time() - self._main_cpu_s)
            self._sampler.stop()
            self._flowing(False)
        self.phase(WRITE)

    def _flowing(self, flowing: bool) -> None:
        for name, server in self.servers.items():
            for series in (server, *self.addresses[name].values()):
                series.flowing = flowing

    def heard(self, service: str, url: str) -> Callable[[services.Reading], None]:
        """Takes the readings of one address of a service that has several."""
        series = self.addresses[service][url] = services.ServerSeries(self.servers[service].gauges)
        return series.add

    def finish(self) -> None:
        """The rows are written."""
        if self._sampler is not None:
            self.phase(FINISH)
            self._sampler.gpus.close()

    @property
    def cpu_s(self) -> float:
        """CPU time that the sampler took; the stages' own records are not in it."""
        return self._sampler.cpu_s if self._sampler else 0.0

    def profile(self, run: str, servers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Profile | None:
        """What was measured until now; None when there was no flow. `servers`: what each address did."""
        if self._sampler is None:
            return None
        ended = time.perf_counter()
        wall_s = ended - self.zero
        stages = [stage.result(self.zero) for stage in self.metrics.stages.values()]
        first = min((stage.first_s for stage in stages if stage.rows), default=wall_s)
        phases = list(self._split(ended, first))
        cost_s = {phase.name: phase.end_s - phase.start_s for phase in phases if phase.name != FLOW}
        memory = psutil.virtual_memory().total
        machine = Machine(cpus=cores(), memory_bytes=memory, gpus=self._sampler.gpus.names)
        asked_s = self.metrics.stages[ASK].busy_s or wall_s
        report = {"model": lambda series: services.of_model(series, asked_s), "detector": services.of_detector}
        reports = {name: report[name](server) for name, server in self.servers.items()}
        samples = self._sampler.series.result()
        steps = self.metrics.traces.steps()
        evidence = Evidence(
            wall_s=wall_s,
            cost_s=cost_s | self._sampler.attribution.cost_s,
            stages={stage.name: stage for stage in stages},
            services=reports,
            settings=self._settings,
            machine=machine,
            steps=steps,
            pipeline_cpu=samples.mean("pipeline.cpu") or 0.0,
            host_cpu=samples.mean("host.cpu") or 0.0,
            servers=servers,
        )
        spans = [
            Span(
                stage=step.stage,
                row=step.row,
                start_s=round(step.began - self.zero, 6),
                end_s=round(step.ended - self.zero, 6),
                waited_s=round(step.waited_s, 6),
            )
            for step in steps
        ]
        return Profile(
            run=run,
            started=self.started,
            wall_s=wall_s,
            machine=machine,
            settings=self._settings,
            phases=phases,
            stages=stages,
            workers=self.workers(self.zero),
            services={name: values for name, values in reports.items() if values},
            addresses={
                name: {url: report[name](series) for url, series in several.items()}
                for name, several in self.addresses.items()
                if several
            },
            samples=samples,
            spans=spans,
            diagnosis=diagnose(evidence),
        )

    def write(self, folder: Path, servers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write the profile into a run's folder; a run that had nothing to do leaves an earlier one's.

        Raises:
            OSError: it cannot be written.
        """
        profile = self.profile(folder.name, servers)
        if profile is None:
            return
        (folder / FILE).parent.mkdir(exist_ok=True)
        write_atomically(folder / FILE, profile.model_dump_json(indent=1).encode())

    def _split(self, ended: float, first_s: float) -> list[Phase]:
        """The phases in seconds since the run began; the flow begins with its first row, `first_s`."""
        phases: list[Phase] = []
        ends = [at for _, at in self._phases[1:]] + [ended]
        for (name, began), end in zip(self._phases, ends, strict=True):
            start_s, end_s = began - self.zero, end - self.zero
            if name == START:
                moment = min(max(first_s, start_s), end_s)
                phases += [
                    Phase(name=START, start_s=start_s, end_s=moment),
                    Phase(name=FLOW, start_s=moment, end_s=end_s),
                ]
            else:
                phases.append(Phase(name=name, start_s=start_s, end_s=end_s))
        return phases


def tunable(settings: Settings, job: Job, *, detector: bool) -> dict[str, str | int | float | bool | None]:
    """What a user may change to make a run faster; `detector`: whether it is asked."""
    return {
        **({"SPOTTER_DETECTOR_CONCURRENCY": settings.detector_concurrency} if detector else {}),
        "SPOTTER_MODEL_CONCURRENCY": settings.model_concurrency,
        "crop.max_side": job.crop.max_side,
        "max_tokens": max(question.max_tokens for question in job.questions),
    }
