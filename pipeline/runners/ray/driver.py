"""The runner of a Ray cluster: hands shards out, takes rows in, and shares the bounds."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.clients.address import Served, add_served
from pipeline.clients.finders import Stored
from pipeline.flow import Work
from pipeline.locations import is_object
from pipeline.metrics.stage import ASK, DETECT, POOLED, RunMetrics
from pipeline.output.resume import ResumePlan
from pipeline.runners.ray import cluster
from pipeline.runners.ray.contents import Book
from pipeline.runners.ray.crew import LEASE_S, Crew, Member
from pipeline.runners.ray.measures import Measures
from pipeline.runners.ray.shards import Shards, alone
from pipeline.runners.ray.shares import Bound
from pipeline.runners.ray.worker import Needs, Reply
from pipeline.runtime.runtime import Runtime
from pipeline.sources.listing import Source
from pipeline.sources.reader import Reader

log = logging.getLogger(__name__)

# How long the driver waits for a worker's word at a time.
WAIT_S = 0.2
# How long the workers have to end at the end of the run.
END_S = 1.5
TOKEN = ".parts/token"


class WorkerFailed(Exception):
    """A worker's flow ended with an error."""


class Cluster:
    """See `Runner`. The rows of an image come together, when all are there, and once, whatever dies."""

    def __init__(self, work: Work, plan: ResumePlan, reader: Reader, runtime: Runtime) -> None:
        clients = work.clients(runtime)
        self.load = clients.load
        self.work, self.plan, self.runtime = work, plan, runtime
        self.shards = Shards(plan.sources)
        # With contents of an earlier start, whose files may have had any size, all are asked about.
        self.alone = alone(plan.sources) if not plan.seen.keys else set()
        self.measures = Measures(runtime.metrics)
        self.clock, self.usage, self.workers = self.measures.clock, self.measures.usage, self.measures.profiles
        self.allowed = {name: (lambda name=name: self._allowed(name)) for name in (DETECT, ASK)}
        bounds = {http.name: Bound(http.limits.concurrency) for http in clients.http}
        self.connected = bool(plan.sources)
        if not self.connected:
            return
        services = [(http.name, url) for http in clients.http for url in http.urls]
        needs = Needs(str(Path.cwd()), places(work, plan.sources), services)
        cluster.connect()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.book = ray.remote(Book).options(num_cpus=0, scheduling_strategy=here).remote(plan.seen.keys)
        token = (str((work.folder / TOKEN).absolute()), uuid.uuid4().hex)
        (work.folder / TOKEN).write_text(token[1])
        parts = ray.put((work, reader.objects, self.book, token))
        measured = runtime.metrics.traces.most > 0
        self.crew = Crew(needs, lambda actor: actor.open.remote(parts, measured), bounds)
        try:
            self.crew.first()
        except BaseException:
            self.close()
            raise
        cores = sum(member.facts.cores for member in self.crew.members.values() if member.facts)
        for name in POOLED:
            runtime.metrics.stages[name].limit = cores

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Runner.rows`.

        Raises:
            WorkerFailed: a flow ended with an error.
            OSError: a crop cannot be written.
        """
        looked = time.monotonic()
        while self.shards.left and self.runtime.cancellation.reason is None:
            before, looked = looked, time.monotonic()
            stopped = looked - before > LEASE_S / 2  # this process: workers that are gone now ended for that
            self.crew.bound = self.runtime.metrics.traces.bound
            self.crew.tend()
            self._hand_out()
            for member, reply in self.crew.replies(WAIT_S):
                if reply is None:
                    yield from self.shards.lost(member.name, suspect=not stopped)
                else:
                    yield from self._taken(member, reply)
            if why := self.crew.nobody():
                self.runtime.cancellation.cancel(why)
        self.measures.end()

    def _hand_out(self) -> None:
        up = self.crew.up
        working = [member.name for member in up if self.shards.waiting or self.shards.at(member.name)]
        self.crew.share(working)
        for member in up:
            if all(bound.held.get(member.name, 0) for bound in self.crew.bounds.values()):
                while (shard := self.shards.next(member.name, len(up))) is not None:
                    number, sources = shard
                    member.actor.begin.remote(number, sources, self.alone & {source.path for source in sources})

    def _taken(self, member: Member, reply: Reply) -> Iterator[dict[str, Any]]:
        """What a worker sent: records before rows, crops before the rows that name them."""
        if member.name not in self.measures.workers:
            own = [stage.limit for stage in self.runtime.metrics.stages.values()]
            metrics = RunMetrics.of(own[1], own[3], member.facts.cores if member.facts else 1)
            self.measures.joins(member.name, member.facts.node if member.facts else "", metrics)
        worker = self.measures.workers[member.name]
        self.measures.add(member.name, reply.records, reply.steps, reply.clock)
        worker.served = reply.served
        worker.cpu_s, worker.memory_bytes = reply.cpu_s, max(worker.memory_bytes, reply.memory_bytes)
        for level, text in reply.logged:
            log.log(level, "%s: %s", member.name, text)
        for name, jpeg in reply.crops:
            (self.work.folder / name).write_bytes(jpeg)
        for number, item in reply.items:
            if isinstance(item, str):
                raise WorkerFailed(f"{member.shown}: {item.strip().splitlines()[-1]}") from RuntimeError(item)
            if item is None:
                missing = self.shards.end(number)
                if missing and reply.reason is None:
                    raise WorkerFailed(f"{member.shown}: {missing} images of a shard have no rows or too few")
                continue
            for row in self.shards.add(number, item.to_pylist()):
                worker.images += row["index"] in (None, 0)
                yield row
        if reply.reason is not None:
            self.runtime.cancellation.cancel(reply.reason)

    def _allowed(self, stage: str) -> float:
        return sum(member.last.allowed.get(stage, 0.0) for member in list(self.crew.members.values()) if member.last)

    def held_up(self) -> str | None:
        """See `Runner.held_up`: a reason of each worker that has something to do."""
        if not self.connected:
            return None
        busy = [member for member in self.crew.up if self.shards.at(member.name)]
        said = {member.last.held_up if member.last else None for member in busy}
        return ", ".join(sorted(filter(None, said))) if said and None not in said else None

    def waiting_for(self) -> str:
        """See `Runner.waiting_for`."""
        now = time.monotonic()
        members = list(self.crew.members.values()) if self.connected else []
        said = [
            f"{member.shown}: {member.last.waiting_for if member.last else 'starting'}"
            + (f", silent for {now - member.since:.0f} s" if now - member.since > LEASE_S / 2 else "")
            for member in members
        ]
        return "; ".join(said) or "a worker"

    def served(self) -> Served:
        """See `Runner.served`."""
        return reduce(add_served, (worker.served for worker in self.measures.workers.values()), {})

    def tasks(self) -> str:
        """See `Runner.tasks`."""
        members = list(self.crew.members.values()) if self.connected else []
        return "".join(f"{member.shown}:\n{member.last.tasks}" for member in members if member.last)

    def close(self) -> None:
        """End the workers, and what was started for them."""
        self.load.stop()
        if self.connected:
            members = list(self.crew.members.values())
            reason = self.runtime.cancellation.reason or "the run has ended"
            with suppress(Exception):
                cluster.within(END_S, lambda: end(members, reason))
            with suppress(Exception):
                cluster.within(END_S, ray.shutdown)
            with suppress(OSError):
                (self.work.folder / TOKEN).unlink()
        self.load.finish()


def end(members: list[Member], reason: str) -> None:
    """Let workers send no more, and end them."""
    calls = [member.actor.end.remote(reason) for member in members]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=END_S / 2)
    for member in members:
        ray.kill(member.actor)


def places(work: Work, sources: list[Source]) -> list[str]:
    """Files and folders that a worker must see: one for each folder of the sources, at most 20, and an earlier run."""
    found: dict[str, str] = {}
    for source in sources:
        place = source.row.table if source.row else os.fsdecode(source.path)
        if len(found) < 20 and not is_object(place) and os.path.exists(place):  # noqa: PTH110 many of them
            found.setdefault(os.path.dirname(place), place)  # noqa: PTH120
    if isinstance(work.given, Stored):
        found["earlier"] = str(work.given.earlier.run.folder)
    if work.settings.ca_file:
        found["ca"] = str(work.settings.ca_file)
    return list(found.values())


start = Cluster
