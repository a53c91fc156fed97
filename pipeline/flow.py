"""The way of the data: read, detect, crop, ask, store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft

from pipeline.clients.connect import Clients
from pipeline.clients.finders import Stored
from pipeline.job import Job
from pipeline.output.resume import ResumePlan
from pipeline.runtime.runtime import Runtime
from pipeline.sources.images import ALL_PIXELS
from pipeline.sources.reader import Reader
from pipeline.stages.ask import ask
from pipeline.stages.batches import BATCH
from pipeline.stages.crop import crop
from pipeline.stages.detect import detect
from pipeline.stages.read import held_bytes, listed, read
from pipeline.stages.store import store
from pipeline.stages.stored import stored_crops


@dataclass(frozen=True, slots=True)
class Flow:
    """What the stages of one run need."""

    plan: ResumePlan
    reader: Reader
    clients: Clients
    job: Job
    folder: Path
    """Of the run: crops are stored there."""
    runtime: Runtime
    takes: tuple[int, int] | None
    """Pixels of an image that the detector makes use of; None: none is asked."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Execute the flow; its rows come as they end, in no order."""
        plan, runtime = self.plan, self.runtime
        finder = self.clients.finder
        if isinstance(finder, Stored):
            frame = stored_crops(finder.earlier, plan.sources, plan.seen, runtime)
        else:
            frame = self.crops()
        frame = ask(frame, self.clients.model, runtime, plan.answers)
        frame = store(frame, self.folder, runtime)
        for batch_of_rows in frame.to_arrow_iter():
            yield from batch_of_rows.to_pylist()

    def crops(self) -> daft.DataFrame:
        """Read the images, find the objects and cut them out."""
        plan, runtime = self.plan, self.runtime
        sizes = (held_bytes(source.size) or 0 for source in plan.sources)
        batch = runtime.budget.admission_batch(sizes, BATCH)
        takes = ALL_PIXELS if self.job.tiles else self.takes
        frame = read(listed(plan.sources), self.reader, plan.seen, runtime, batch, takes)
        frame = detect(frame, self.clients.finder, runtime, batch)
        return crop(frame, self.job.crop, runtime)
