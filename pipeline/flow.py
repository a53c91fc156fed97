"""The way of the data: read, detect, crop, ask, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa

from pipeline.clients.connect import Clients, make_clients
from pipeline.clients.finders import Given, Stored
from pipeline.clients.probe import Services
from pipeline.files import write_anew
from pipeline.job import Job
from pipeline.runtime.runtime import Runtime
from pipeline.settings import Settings
from pipeline.sources.images import ALL_PIXELS
from pipeline.sources.listing import Source
from pipeline.sources.reader import Reader
from pipeline.stages.ask import ask
from pipeline.stages.batches import image_batch
from pipeline.stages.copies import Copies
from pipeline.stages.crop import crop
from pipeline.stages.detect import detect
from pipeline.stages.kept_pixels import KeptPixels
from pipeline.stages.read import SeenContent, held_bytes, listed, read
from pipeline.stages.reusable import ReusableAnswers
from pipeline.stages.store import store
from pipeline.stages.stored import stored_crops

# Of the memory budget: so much again may be taken by pixels between reading and cutting.
KEPT_SHARE = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What turns a run's sources into rows: values alone, so that it can go to another host."""

    settings: Settings
    job: Job
    services: Services
    given: Given | None
    folder: Path
    """Of the run: crops are stored there."""
    answers: ReusableAnswers

    def clients(self, runtime: Runtime) -> Clients:
        """The clients of both services, for this process."""
        services = self.services
        return make_clients(self.settings, self.job, services.model, runtime, self.given, services.form)


@dataclass(frozen=True, slots=True)
class Flow:
    """The stages of one process; a flow can be executed several times, over different sources."""

    work: Work
    reader: Reader
    clients: Clients
    runtime: Runtime
    write: Callable[[Path, bytes], object] = write_anew
    """Stores a crop, or an image's small copy."""

    def rows(self, sources: list[Source], seen: SeenContent) -> Iterator[dict[str, Any]]:
        """Execute the flow; its rows come as they end, in no order."""
        for batch in self.batches(sources, seen):
            yield from batch.to_pylist()

    def batches(self, sources: list[Source], seen: SeenContent) -> Iterator[pa.RecordBatch]:
        """The same rows in batches."""
        work, runtime, finder = self.work, self.runtime, self.clients.finder
        if isinstance(finder, Stored):
            frame = stored_crops(finder.earlier, sources, seen, runtime)
        else:
            frame = self.crops(sources, seen)
        frame = ask(frame, self.clients.model, runtime, work.answers)
        yield from store(frame, work.folder, runtime, self.write).to_arrow_iter()

    def crops(self, sources: list[Source], seen: SeenContent) -> daft.DataFrame:
        """Read the images, find the objects and cut them out."""
        runtime, job = self.runtime, self.work.job
        sizes = [held_bytes(source.size) or 0 for source in sources]
        batch = runtime.budget.admission_batch(sizes, image_batch(sizes))
        asked = self.work.services.takes if self.work.given is None else None
        takes = ALL_PIXELS if job.tiles else asked
        kept = KeptPixels(self.work.settings.bytes_in_flight // KEPT_SHARE)
        frame = read(listed(sources), self.reader, seen, runtime, batch, takes, kept)
        frame = detect(frame, self.clients.finder, runtime, batch)
        copies = Copies(self.work.folder, self.work.settings.copies, self.write)
        return crop(frame, job.crop, runtime, copies, kept)
