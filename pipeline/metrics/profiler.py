"""A run measures itself: its phases, its stages while they work, and at the end `profile/profile.json`.

Measuring is meant to go on in every run. The phases are a clock reading each; the stages' notes and the sampler cost
what `scripts/bench/accounting.py` measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipeline.job import Job
from pipeline.metrics import services as service_metrics
from pipeline.metrics.advice import Evidence
from pipeline.metrics.diagnosis import diagnose
from pipeline.metrics.gpu import Gpus
from pipeline.metrics.profile import FILE, Machine, Phase, Profile, Span
from pipeline.metrics.sampler import Sampler
from pipeline.metrics.stage import Account
from pipeline.output.run_folder import write_atomically
from pipeline.settings import Settings

# The phases of a run, in order. "start" lasts from the flow's beginning to its first row.
LIST, PROBE, PREPARE, START, FLOW = "list", "probe", "prepare", "start", "flow"
# "finish" is the last look at the services, and the end of the connections to them.
WRITE, FINISH, REPORT = "write", "finish", "report"


def cores() -> int:
    """The cores that this process may use: Daft runs as many threads."""
    return len(os.sched_getaffinity(0))


class Profiler:
    """Measures one run, from its construction to `write`."""

    def __init__(self) -> None:
        self.zero = time.perf_counter()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.account = Account.nowhere()
        self._phases: list[tuple[str, float]] = []
        self._sampler: Sampler | None = None
        self._settings: dict[str, str | int | float | bool | None] = {}
        self._main_cpu_s = 0.0

    def phase(self, name: str) -> None:
        """A phase begins, and the one before ends."""
        self._phases.append((name, time.perf_counter()))

    def flow_begins(self, settings: Settings, job: Job, images: int) -> Account:
        """The account for the stages of the flow over so many images; they are watched until `flow_ended`."""
        self.phase(START)
        self._settings = {
            "SPOTTER_DETECTOR_CONCURRENCY": settings.detector_concurrency,
            "SPOTTER_MODEL_CONCURRENCY": settings.model_concurrency,
            "crop.max_side": job.crop.max_side,
            "max_tokens": job.max_tokens,
        }
        services = {
            "model": service_metrics.model_server(str(settings.model_url)),
            "detector": service_metrics.detector(str(settings.detector_url)),
        }
        self.account = Account(settings.detector_concurrency, settings.model_concurrency, cores())
        self._sampler = Sampler(self.account.stages, self.account.selection, services, self.zero, Gpus())
        self._sampler.start()
        self.account.read.arrive(time.perf_counter(), images)
        self._main_cpu_s = time.thread_time()
        return self.account

    def tell_queue(self, hear: Callable[[float, float], None]) -> None:
        """From now on tell `hear` how many requests the model server runs, and how many wait there, at each reading.

        Both are 0 where its metrics could not be read.
        """
        if self._sampler is not None:
            self._sampler.services["model"].tell = lambda now: hear(
                now.get(service_metrics.RUNNING, 0.0), now.get(service_metrics.WAITING, 0.0)
            )

    def flow_ended(self) -> None:
        """The flow has come to its end, or was cut short. Call it where `flow_begins` was: rows are collected there."""
        if self._sampler is not None:
            self.account.collect.count(0, cpu_s=time.thread_time() - self._main_cpu_s)
            self._sampler.stop()
        self.phase(WRITE)

    def finish(self) -> None:
        """What was done is written: wait for the last that the services say of themselves."""
        if self._sampler is not None:
            self.phase(FINISH)
            self._sampler.finish()

    @property
    def cpu_s(self) -> float:
        """CPU time that watching took; the stages' notes, which are taken in their own threads, are not in it."""
        return self._sampler.cpu_s + self._sampler.services_cpu_s if self._sampler else 0.0

    def profile(self, run: str) -> Profile | None:
        """What was measured until now; None when there was no flow."""
        if self._sampler is None:
            return None
        ended = time.perf_counter()
        wall_s = ended - self.zero
        stages = [stage.result(self.zero) for stage in self.account.stages.values()]
        first = min((stage.first_s for stage in stages if stage.rows), default=wall_s)
        phases = list(self._split(ended, first))
        cost_s = {phase.name: phase.end_s - phase.start_s for phase in phases if phase.name != FLOW}
        memory = psutil.virtual_memory().total
        machine = Machine(cpus=cores(), memory_bytes=memory, gpus=self._sampler.gpus.names)
        services = {
            "model": service_metrics.of_model(self._sampler.services["model"], self.account.ask.busy_s or wall_s),
            "detector": service_metrics.of_detector(self._sampler.services["detector"]),
        }
        samples = self._sampler.series.result()
        steps = self.account.selection.steps()
        evidence = Evidence(
            wall_s=wall_s,
            cost_s=cost_s | self._sampler.blame.cost_s,
            stages={stage.name: stage for stage in stages},
            services=services,
            settings=self._settings,
            machine=machine,
            steps=steps,
            pipeline_cpu=samples.mean("pipeline.cpu") or 0.0,
            host_cpu=samples.mean("host.cpu") or 0.0,
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
            services={name: values for name, values in services.items() if values},
            samples=samples,
            spans=spans,
            diagnosis=diagnose(evidence),
        )

    def write(self, folder: Path) -> None:
        """Write the profile into a run's folder; a run that had nothing to do leaves an earlier one's.

        Raises:
            OSError: it cannot be written.
        """
        profile = self.profile(folder.name)
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
