"""One run of a job: the one place where the flow is put together and executed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import daft
from rich.console import Console

from pipeline import display, flow, run_folder, tables
from pipeline.clients.connect import Clients, make_clients
from pipeline.collector import Collector
from pipeline.errors import RunStopped
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.manifest import begun, ended, identify
from pipeline.parts import Parts, still_to_do
from pipeline.probe import Services, probe
from pipeline.progress import Progress
from pipeline.report import write_report
from pipeline.settings import Settings
from pipeline.sources import Source, list_images
from pipeline.stop import Stop
from pipeline.watch import Stream, follow

COMPLETE = "complete"
INTERRUPTED = "interrupted"
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
    sources: list[Source], job: Job, clients: Clients, folder: Path, known: flow.Keys, stop: Stop
) -> Iterator[dict[str, Any]]:
    """Execute the flow; its rows come as they end, in no order."""
    frame = daft.from_pydict(
        {
            "path": [os.fsencode(source.path) for source in sources],
            "modified_ns": [source.modified_ns for source in sources],
        }
    )
    frame = flow.read(frame, known)
    frame = flow.detect(frame, clients.detector)
    frame = flow.crop(frame, job)
    frame = flow.ask(frame, clients.model)
    frame = flow.store(frame, folder, stop)
    for batch in frame.to_arrow_iter():
        yield from batch.to_pylist()


def retried(parts: Parts, latest: dict[str, dict[str, Any]]) -> set[str]:
    """The images that failed, or that have a detection that did."""
    failed = {path for path, row in latest.items() if row["outcome"] == tables.FAILED}
    for row in parts.read("detections", ["path", "outcome"]).to_pylist():
        if row["outcome"] == tables.FAILED and latest[row["path"]]["part"] == row["part"]:
            failed.add(row["path"])
    return failed


def run(settings: Settings, console: Console) -> Run:
    """Run the settings' job over their images, or go on with a run of the same that was begun.

    An interrupt (Ctrl-C), a service that stays away or a full disk end it early; what was done until then is kept, and
    the next call does the rest.

    Raises:
        UsageError: something the user gave cannot work; nothing was asked of any image yet.
        RunStopped: the folder cannot be written any more.
    """
    job = load_job(settings.job)
    sources = list_images(settings.images)
    services = probe(settings, job)
    identity = identify(settings, job, services)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    folder = settings.output.expanduser() / (settings.run_name or f"{job.name}-{fingerprint}")
    say_if_another(folder, identity, job, console)
    with run_folder.open_run_folder(folder, identity, settings.force):
        return execute(settings, console, job, sources, services, identity, folder)


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


def execute(
    settings: Settings,
    console: Console,
    job: Job,
    sources: list[Source],
    services: Services,
    identity: dict[str, Any],
    folder: Path,
) -> Run:
    """Do what is still to do of a run, and write its folder."""
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    parts = Parts(folder, job.properties)
    latest = parts.latest()
    retry = retried(parts, latest) if settings.retry_failed else set()
    todo = still_to_do(sources, latest, retry)
    redone = {tables.shown_path(os.fsencode(source.path)) for source in todo}
    known = flow.Keys(row["key"] for path, row in latest.items() if path not in redone and row["key"])
    heading = f"{job.name}: {len(sources)} images, detector {services.detector}, model {services.model}"
    if len(todo) < len(sources):
        heading += f"; {len(sources) - len(todo)} are done already"
    console.print(heading, highlight=False, soft_wrap=True)
    manifest = begun(folder, started, identity, settings, job, services)
    run_folder.write_manifest(folder, manifest)
    listed = {tables.shown_path(os.fsencode(source.path)) for source in sources}
    stop = Stop()
    clients = make_clients(settings, job, services, stop)
    collector = Collector(parts, Progress(total=len(todo)))
    status = COMPLETE
    try:
        with display.live(console, collector.progress) as shown:
            if todo:
                follow(Stream(rows(todo, job, clients, folder, known, stop)), collector, clients, settings, stop, shown)
    except KeyboardInterrupt:
        stop.pull("interrupted")
        status = INTERRUPTED
    if stop.reason is not None and status == COMPLETE:
        status = STOPPED
    clients.close()
    try:
        parts.commit()
        written = parts.merge(listed)
        for name, table in written.items():
            run_folder.write_table(table, folder / f"{name}.parquet")
        manifest |= {
            "status": status,
            "seconds": round(time.perf_counter() - clock, 3),
            "done_before": len(sources) - len(todo),
        }
        manifest |= {"reason": stop.reason} if status == STOPPED else {}
        manifest |= ended(written, len(listed), job)
        run_folder.write_manifest(folder, manifest)
        write_report(folder, manifest, written, job, [source.path for source in sources], redone)
        run_folder.point_latest_at(folder)
    except OSError as error:
        why = stop.reason or f"cannot write {folder}: {error.strerror or error}: make room, then run again"
        raise RunStopped(f"{why}; what was committed until then is safe") from error
    return Run(folder, manifest)
