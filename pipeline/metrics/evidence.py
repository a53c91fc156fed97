"""What a run measured, as diagnosis and advice read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.metrics.bottleneck import FULL
from pipeline.metrics.profile import Machine, Stage
from pipeline.metrics.stage import POOLED, STAGES
from pipeline.metrics.traces import TracedStep

# Less than this share of the wall time is not worth a change.
WORTH = 0.05

# A server is full when it lets this share of its running requests wait as well.
SERVER_FULL = 0.1
# The pool of threads computes when it takes this share of the cores; below, it waits for files.
COMPUTES = 0.6
# The host is busy when all programs together take this share of the cores: the pipeline may be waiting for one.
BUSY_HOST = 0.85


@dataclass(frozen=True)
class Evidence:
    """What a run measured."""

    wall_s: float
    cost_s: Mapping[str, float]
    stages: Mapping[str, Stage]
    services: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, str | int | float | bool | None]
    machine: Machine
    steps: Sequence[TracedStep]
    pipeline_cpu: float
    """Cores that the pipeline took, mean over the flow."""
    host_cpu: float
    """Cores that all programs took."""
    servers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """What each address of the services did, by the service's name: `Address.served` of pipeline/clients/address.py."""

    @property
    def flow_s(self) -> float:
        """The flow's time that is attributed to stages."""
        return sum(self.cost_s.get(name, 0.0) for name in STAGES)

    def needs_s(self, name: str) -> float:
        """The least time in which a stage, or the pool that it shares, does its work within its limit."""
        if name in POOLED:
            return sum(self.stages[it].work_s for it in POOLED) / self.stages[name].concurrency.room
        return self.stages[name].work_s / self.stages[name].concurrency.room

    def floor_s(self, name: str, cpus: int | None = None) -> float:
        """The flow's least time if a stage took no time: what the others need, and the pipeline's CPU time."""
        others = [it for it in STAGES if it != name and not (name in POOLED and it in POOLED)]
        return max(*(self.needs_s(it) for it in others), self.pipeline_cpu * self.flow_s / (cpus or self.machine.cpus))

    def saved_s(self, name: str, factor: float, least_s: float = 0.0) -> float:
        """The time saved when a stage is `factor` times as fast, but no row of it faster than `least_s`."""
        cost = self.cost_s.get(name, 0.0)
        faster = max(cost / factor, min(least_s, cost))
        return max(self.flow_s - max(self.flow_s - cost + faster, self.floor_s(name)), 0.0)

    def worth(self, seconds: float) -> bool:
        """Whether so much time is worth a change."""
        return seconds >= WORTH * self.wall_s

    def full(self, name: str) -> bool:
        """Whether a stage mostly had all the requests in flight that it may have."""
        return self.stages[name].concurrency.mean >= FULL * self.stages[name].concurrency.limit

    def server_full(self) -> bool:
        """Whether the model server kept requests waiting that the pipeline had sent."""
        model = self.services.get("model", {})
        return model.get("waiting_mean", 0.0) > SERVER_FULL * max(model.get("running_mean", 0.0), 1.0)

    def crowded(self) -> bool:
        """Whether the host's cores were busy, and mostly with others than the pipeline."""
        cpus = self.machine.cpus
        return self.host_cpu >= BUSY_HOST * cpus and self.pipeline_cpu < COMPUTES * cpus
