"""The rows are made in this process, by all of its cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pipeline.flow import Flow, Work
from pipeline.metrics.profile import WorkerProfile
from pipeline.output.resume import ResumePlan
from pipeline.runtime.runtime import Runtime
from pipeline.sources.reader import Reader


class Native:
    """One flow over all sources; see `Runner`."""

    def __init__(self, work: Work, plan: ResumePlan, reader: Reader, runtime: Runtime) -> None:
        clients = work.clients(runtime)
        self.plan, self.flow = plan, Flow(work, reader, clients, runtime)
        self.load, self.allowed = clients.load, clients.allowed
        self.held_up, self.waiting_for, self.tasks = clients.held_up, clients.waiting_for, clients.tasks
        self.served, self.close = clients.served, clients.close
        self.clock = time.perf_counter

    def usage(self) -> tuple[float, int]:
        """No other processes."""
        return 0.0, 0

    def workers(self, zero: float) -> list[WorkerProfile]:
        """None."""
        return []

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Runner.rows`."""
        return self.flow.rows(self.plan.sources, self.plan.seen)


start = Native
