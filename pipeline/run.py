"""One run of a job: the one place where the flow is put together and executed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from pipeline import tables
from pipeline.clients.connect import Clients, make_clients
from pipeline.clients.probe import Services, probe
from pipeline.errors import RunStopped
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.metrics import daft_plan, profiler
from pipeline.metrics.profiler import Profiler
from pipeline.metrics.stage import Account
from pipeline.output import run_folder
from pipeline.output.breakdown import AGAIN, explain, one_line
from pipeline.output.collector import Collector
from pipeline.output.manifest import begun, ended, identify
from pipeline.output.parts import Parts
from pipeline.output.publish import Publication
from pipeline.output.report import write_report
from pipeline.output.resume import Outstanding, outstanding
from pipeline.runtime import display
from pipeline.runtime.cancellation import Stop
from pipeline.runtime.interrupts import INTERRUPTED, OneInterrupt
from pipeline.runtime.memory_budget import Held
from pipeline.runtime.progress import Progress
from pipeline.runtime.watchdog import Stream, Watchdog, follow
from pipeline.settings import Settings
from pipeline.sources.listing import Reader, Source, list_images
from pipeline.sources.objects import Objects
from pipeline.stages import flow

COMPLETE = "complete"
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def status(self) -> str:
        """COMPLETE, INTERRUPTED or STOPPED."""
        return str(self.manifest["status"])

    @property
    def answered(self) -> int:
        """Detections with an answer."""
        return int(self.manifest["counts"]["detections"][tables.ANSWERED])

    @property
    def succeeded(self) -> int:
        """Rows that ended well: answered detections, and images that have none."""
        return self.answered + int(self.manifest["counts"]["images"][tables.NO_OBJECT])

    @property
    def failures(self) -> int:
        """Images and detections that failed."""
        counts = self.manifest["counts"]
        return int(counts["images"][tables.FAILED] + counts["detections"][tables.FAILED])


def rows(
    left: Outstanding,
    reader: Reader,
    job: Job,
    clients: Clients,
    folder: Path,
    stop: Stop,
    held: Held,
    account: Account,
) -> Iterator[dict[str, Any]]:
    """Execute the flow; its rows come as they end, in no order."""
    batch = held.batch((source.size for source in left.sources), flow.BATCH)
    frame = flow.read(flow.listed(left.sources), reader, left.known, held, account, batch)
    frame = flow.detect(frame, clients.detector, held, account, batch)
    frame = flow.crop(frame, job, held, account)
    frame = flow.ask(frame, clients.model, account, left.answers)
    frame = flow.store(frame, folder, stop, held, account)
    for batch in frame.to_arrow_iter():
        yield from batch.to_pylist()


def run(settings: Settings, console: Console) -> Run:
    """Run the settings' job over their images, or go on with a run of the same that was begun.

    An interrupt (Ctrl-C, SIGTERM), a service that stays away, a full disk or an error of ours end it early; what was
    done until then is kept, and the next call does the rest.

    Raises:
        UsageError: something the user gave cannot work; nothing was asked of any image yet.
        RunStopped: the folder cannot be written any more, or something broke before or after the rows were.
    """
    measured = Profiler()
    measured.phase(profiler.LIST)
    job = load_job(settings.job)
    objects = Objects(settings.endpoint)
    with display.waiting(console, f"listing {settings.images}"):
        sources = list_images(settings.images, settings.column, objects)
    measured.phase(profiler.PROBE)
    services = probe(settings, job)
    measured.phase(profiler.PREPARE)
    identity = identify(settings, job, services)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    folder = settings.runs / (settings.run_name or f"{job.name}-{fingerprint}")
    say_if_another(folder, identity, job, console)
    publication = Publication(folder, f"{settings.published}/{folder.name}", objects) if settings.published else None

    def fetch() -> None:
        if publication and (said := publication.fetch(settings.force)):
            console.print(said, highlight=False, soft_wrap=True)

    opening = f"removing the run in {folder}" if settings.force else f"opening {folder}"
    with ExitStack() as opened:
        with display.waiting(console, opening):
            opened.enter_context(run_folder.open_run_folder(folder, identity, settings.force, fetch))
        reader = Reader(objects)
        opened.enter_context(one_line(folder))
        return execute(settings, console, job, sources, reader, services, identity, folder, publication, measured)


def say_if_another(folder: Path, identity: dict[str, Any], job: Job, console: Console) -> None:
    """Tell when this is not the run that was done last on the same images, and why."""
    before = run_folder.read_manifest(folder.parent / "latest")
    if before is None or folder.exists() or before.get("identity", {}).get("images") != identity["images"]:
        return
    changed = run_folder.differences(identity, before["identity"])
    if before["job"]["name"] == job.name and changed:
        console.print(
            f"a new run, not {before['run']} continued: another {', '.join(changed)}", highlight=False, soft_wrap=True
        )


def write_rows(folder: Path, parts: Parts, listed: set[str], moved: Callable[[], None]) -> dict[str, pa.Table]:
    """Commit the last part, and write the two tables over the images that are `listed`; `moved` after each step.

    Raises:
        OSError: the folder cannot be written.
    """
    parts.commit()
    moved()
    written = parts.merge(listed)
    for name, table in written.items():
        moved()
        run_folder.write_table(table, folder / f"{name}.parquet")
    return written


def lost(unended: int, listed: int) -> str | None:
    """Why a run whose flow has ended is not complete: of `listed` images some have no rows; None when all have."""
    if not unended:
        return None
    return f"the flow ended, but {unended} of {listed} images have no rows or too few: {AGAIN}"


def outcome(reason: str | None) -> dict[str, str]:
    """How a run has ended, for run.json; `reason`: why it did before its time."""
    if reason is None:
        return {"status": COMPLETE}
    return {"status": INTERRUPTED} if reason == INTERRUPTED else {"status": STOPPED, "reason": reason}


def execute(
    settings: Settings,
    console: Console,
    job: Job,
    sources: list[Source],
    reader: Reader,
    services: Services,
    identity: dict[str, Any],
    folder: Path,
    publication: Publication | None,
    measured: Profiler,
) -> Run:
    """Do what is still to do of a run, and write its folder.

    Raises:
        RunStopped: the folder cannot be written, or something broke that nobody expected.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    parts = Parts(folder, job.properties)
    left = outstanding(parts, sources, retry_failed=settings.retry_failed)
    todo = left.sources
    heading = f"{job.name}: {len(sources)} images, detector {services.detector}, model {services.model}"
    if len(todo) < len(sources):
        heading += f"; {len(sources) - len(todo)} are done already"
    console.print(heading, highlight=False, soft_wrap=True)
    manifest = begun(folder, started, identity, settings, job, services)
    run_folder.write_manifest(folder, manifest)
    if publication:
        publication.begin()
    listed = {source.shown for source in sources}
    stop = Stop()
    held = Held(settings.bytes_in_flight, stop)
    account = measured.flow_begins(settings, job, len(todo)) if todo else Account.nowhere()
    clients = make_clients(settings, job, services, stop, account)
    measured.tell_queue(clients.model.http.hear_queue)
    held.pending = lambda: clients.model.http.pending
    collector = Collector(parts, Progress(total=len(todo)), account)
    with Watchdog(folder, settings.stall_limit_s, stop, clients) as watchdog:
        with OneInterrupt(stop) as interrupt:
            try:
                with display.live(console, collector.progress) as shown, daft_plan.recorded(folder, settings.profile):
                    if todo:
                        stream = Stream(rows(left, reader, job, clients, folder, stop, held, account))
                        follow(stream, collector, clients, settings, stop, watchdog, shown)
            except Exception as error:
                stop.pull(explain(error, folder))
            interrupt.hold()
            reason = stop.reason
            measured.flow_ended()
            # Beside what is to be written: it may take seconds, and has to begin before Daft's event loop is gone.
            closing = threading.Thread(target=clients.close, name="closing", daemon=True)
            closing.start()
            watchdog.now(f"writing the rows into {folder}")
            with kept(folder, manifest, reason):
                written = write_rows(folder, parts, listed, watchdog.moved)
                unended = max(len(todo) - collector.progress.done, len(listed) - written["images"].num_rows)
                manifest |= {"seconds": round(time.perf_counter() - clock, 3), "done_before": len(sources) - len(todo)}
                manifest |= outcome(reason or lost(unended, len(listed)))
                manifest |= ended(written, len(listed), job)
                run_folder.write_manifest(folder, manifest)
        measured.finish()
        closing.join()
        measured.phase(profiler.REPORT)
        watchdog.now(f"writing the report into {folder}")
        write_report(folder, manifest, written, job, sources, reader, left.paths, console, watchdog.moved)
        run_folder.point_latest_at(folder)
        measured.write(folder)
        if publication:
            watchdog.now(f"publishing to {publication.address}")
            published = publication.publish(watchdog.moved)
            console.print(f"published {published} files to {publication.address}", highlight=False, soft_wrap=True)
    return Run(folder, manifest)


@contextmanager
def kept(folder: Path, manifest: dict[str, Any], reason: str | None) -> Iterator[None]:
    """Let run.json say that the run was stopped, and why, when the rows cannot be written.

    Raises:
        RunStopped: they cannot be.
    """
    try:
        yield
    except Exception as error:
        reason = explain(error, folder) if reason in (None, INTERRUPTED) else reason
        with suppress(OSError):
            run_folder.write_manifest(folder, manifest | {"status": STOPPED, "reason": reason})
        raise RunStopped(f"{reason}; what was committed until then is safe") from error
