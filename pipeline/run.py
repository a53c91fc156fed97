"""One run of a job: the one place where the flow is put together and executed."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
from rich.console import Console

from pipeline import display, flow, tables, writer
from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import HttpClient
from pipeline.clients.model import ModelClient
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.probe import Services, model_headers, probe
from pipeline.report import write_report
from pipeline.settings import Settings
from pipeline.sources import list_images

VERSION = "0.1.0"

COMPLETE = "complete"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def status(self) -> str:
        """COMPLETE or INTERRUPTED."""
        return str(self.manifest["status"])

    @property
    def answered(self) -> int:
        """Detections with an answer."""
        return int(self.manifest["counts"]["detections"][tables.ANSWERED])

    @property
    def failures(self) -> int:
        """Images and detections that failed."""
        counts = self.manifest["counts"]
        return int(counts["images"][tables.FAILED] + counts["detections"][tables.FAILED])


@dataclass(frozen=True, slots=True)
class Clients:
    """The two services, bounded."""

    detector: DetectorClient
    model: ModelClient

    def close(self) -> None:
        """Close all connections."""
        self.detector.http.close()
        self.model.http.close()


def make_clients(settings: Settings, job: Job, services: Services) -> Clients:
    """Clients with the settings' bounds."""
    detector = HttpClient(
        str(settings.detector_url),
        concurrency=settings.detector_concurrency,
        timeout_s=settings.request_timeout_s,
        attempts=settings.attempts,
    )
    model = HttpClient(
        str(settings.model_url),
        concurrency=settings.model_concurrency,
        timeout_s=settings.request_timeout_s,
        attempts=settings.attempts,
        headers=model_headers(settings),
    )
    return Clients(DetectorClient(detector, job.label, job.threshold), ModelClient(model, services.model, job))


def rows(images: list[Path], job: Job, clients: Clients, folder: Path) -> Iterator[dict[str, Any]]:
    """Execute the flow; its rows come as they end, in no order."""
    frame = daft.from_pydict({"path": [os.fsencode(path) for path in images]})
    frame = flow.read(frame)
    frame = flow.detect(frame, clients.detector)
    frame = flow.crop(frame, job)
    frame = flow.ask(frame, clients.model)
    frame = flow.store(frame, folder)
    for batch in frame.to_arrow_iter():
        yield from batch.to_pylist()


def count_reasons(written: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """The failures by stage and reason, the most frequent first."""
    reasons = Counter(
        (row["stage"], row["reason"])
        for table in written.values()
        for row in table.select(["stage", "reason"]).to_pylist()
        if row["stage"]
    )
    return [{"stage": stage, "reason": reason, "rows": rows} for (stage, reason), rows in reasons.most_common()]


def summarize(detections: pa.Table, job: Job) -> dict[str, int]:
    """How often each answer was given to the property that the job counts."""
    if job.summary is None:
        return {}
    answers = Counter(str(value) for value in detections[job.summary].to_pylist() if value is not None)
    return dict(sorted(answers.items(), key=lambda item: (-item[1], item[0])))


def totals(written: dict[str, pa.Table]) -> dict[str, float]:
    """Time and tokens spent, summed over rows that were worked on side by side."""
    sums = {f"{name}_total": name for name in ("read_s", "detect_s", "crop_s")}
    found = {f"{name}_total": name for name in ("latency_s", "prompt_tokens", "completion_tokens")}
    spent = {total: pa.compute.sum(written["images"][name]).as_py() or 0 for total, name in sums.items()}
    spent |= {total: pa.compute.sum(written["detections"][name]).as_py() or 0 for total, name in found.items()}
    return {name.replace("latency_s", "ask_s"): round(value, 3) for name, value in spent.items()}


def run(settings: Settings, console: Console) -> Run:
    """Run the settings' job over their images, and write the run's folder.

    An interrupt (Ctrl-C) ends it early; what was done until then is written like a whole run.

    Raises:
        UsageError: something the user gave cannot work; nothing was asked of any image yet.
    """
    job = load_job(settings.job)
    images = list_images(settings.images)
    services = probe(settings, job)
    started = datetime.now(UTC)
    name = settings.run_name or f"{started.astimezone():%Y%m%d-%H%M%S}-{job.name}"
    folder = writer.make_run_folder(settings.output, name)
    clients = make_clients(settings, job, services)
    progress = writer.Progress(total=len(images))
    table_writer = writer.TableWriter(folder, job.properties, progress)
    heading = f"{job.name}: {len(images)} images, detector {services.detector}, model {services.model}"
    console.print(heading, highlight=False)
    clock = time.perf_counter()
    status = COMPLETE
    try:
        with display.live(console, progress) as shown:
            for row in rows(images, job, clients, folder):
                table_writer.add(row)
                shown.update()
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        clients.close()
    written = table_writer.finish()
    seconds = time.perf_counter() - clock
    manifest = {
        "run": name,
        "status": status,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "counts": progress.counts(),
        "summary": summarize(written["detections"], job),
        "failures": count_reasons(written),
        "job": {"name": job.name, **job.model_dump(mode="json", by_alias=True)},
        "settings": settings.public(),
        "services": {
            "detector": {"name": services.detector, "revision": services.detector_revision},
            "model": {"name": services.model, "root": services.model_root, "revision": settings.model_revision},
        },
        "totals": totals(written),
        "versions": {
            "spotter": VERSION,
            "python": platform.python_version(),
            **{package: version(package) for package in ("daft", "pyarrow", "pillow", "aiohttp")},
        },
    }
    writer.write_manifest(folder, manifest)
    write_report(folder, manifest, written, job, images)
    writer.point_latest_at(folder)
    return Run(folder, manifest)
