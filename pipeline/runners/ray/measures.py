"""The stage metrics of all workers together, and of each."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable

from pipeline.clients.address import Served
from pipeline.metrics.profile import WorkerProfile
from pipeline.metrics.stage import STAGES, Records, RunMetrics
from pipeline.metrics.traces import TracedStep

# A worker that was not heard for longer does not hold up the others' records.
LATE_S = 2.0


class OfWorker:
    """One worker's records, with its times as the driver's clock has them."""

    def __init__(self, name: str, node: str, metrics: RunMetrics) -> None:
        self.name = name
        self.node = node
        self.metrics = metrics
        self.held = {stage: Records([], [], []) for stage in STAGES}
        self.offset = float("inf")
        """The driver's clock less the worker's: the least that was seen, since messages only come late."""
        self.heard = 0.0
        self.until = 0.0
        """All records of before this moment are here."""
        self.images = 0
        self.cpu_s, self.memory_bytes = 0.0, 0
        self.served: Served = {}

    def add(self, records: dict[str, Records], clock: float) -> None:
        """Take what it sent, at `clock` by its own time."""
        self.heard = time.perf_counter()
        self.offset = min(self.offset, self.heard - clock)
        self.until = clock + self.offset
        for stage, (worked, rows, arrived) in records.items():
            held = self.held[stage]
            held.worked.extend(shifted(worked, self.offset))
            held.rows.extend(rows)
            held.arrived.extend((at + self.offset, number) for at, number in arrived)

    def release(self, until: float) -> dict[str, Records]:
        """Take out the records of before a moment."""
        released = {}
        for stage, held in self.held.items():
            worked = bisect_right(held.worked, until, key=moment)
            arrived = bisect_right(held.arrived, until, key=lambda arrival: arrival[0])
            released[stage] = Records(held.worked[:worked], held.rows[:], held.arrived[:arrived])
            del held.worked[:worked], held.rows[:], held.arrived[:arrived]
        return released


def shifted(
    worked: Iterable[float | tuple[float, float, int, int]], by: float
) -> Iterable[float | tuple[float, float, int, int]]:
    """Beginnings and ends at later times."""
    for note in worked:
        yield note + by if isinstance(note, float) else (note[0] + by, note[1] + by, *note[2:])


def moment(note: float | tuple[float, float, int, int]) -> float:
    """When it was recorded."""
    return note if isinstance(note, float) else note[1]


class Measures:
    """Brings the workers' records into the run's metrics in the order of time, a little late.

    The sampler reads `clock`: up to then the records of all workers are there.
    """

    def __init__(self, metrics: RunMetrics) -> None:
        self.metrics = metrics
        self.workers: dict[str, OfWorker] = {}
        self._until = 0.0
        self._ended = False

    def joins(self, name: str, node: str, metrics: RunMetrics) -> None:
        """A worker is there."""
        self.workers[name] = OfWorker(name, node, metrics)

    def clock(self) -> float:
        """The moment up to which all is known."""
        return self._until if self._until and not self._ended else time.perf_counter()

    def add(self, name: str, records: dict[str, Records], steps: list[tuple[str, TracedStep]], clock: float) -> None:
        """Take what a worker sent."""
        worker = self.workers[name]
        worker.add(records, clock)
        for key, step in steps:
            moved = (step.began + worker.offset, step.ended + worker.offset)
            self.metrics.traces.add(key, TracedStep(step.stage, step.row, *moved, step.waited_s, step.size))
        now = time.perf_counter()
        present = [each.until for each in self.workers.values() if now - each.heard < LATE_S]
        self.release(max(min(present), self._until))

    def release(self, until: float) -> None:
        """Pass on the records of before a moment."""
        for worker in self.workers.values():
            for stage, records in worker.release(until).items():
                self.metrics.stages[stage].extend(records)
                worker.metrics.stages[stage].extend(records)
                worker.metrics.stages[stage].aggregate(until)
        self._until = until

    def end(self) -> None:
        """There are no more records."""
        self.release(time.perf_counter())
        self._ended = True

    def usage(self) -> tuple[float, int]:
        """CPU seconds of all workers until now, and the memory of those that are there, in bytes."""
        now, workers = time.perf_counter(), list(self.workers.values())
        present = (worker.memory_bytes for worker in workers if now - worker.heard < LATE_S)
        return sum(worker.cpu_s for worker in workers), sum(present)

    def profiles(self, zero: float) -> list[WorkerProfile]:
        """What each worker did, with times since `zero`."""
        return [
            WorkerProfile(
                name=worker.name,
                node=worker.node,
                images=worker.images,
                cpu_s=worker.cpu_s,
                memory_bytes=worker.memory_bytes,
                stages=[stage.result(zero) for stage in worker.metrics.stages.values() if stage.rows],
            )
            for worker in self.workers.values()
        ]
