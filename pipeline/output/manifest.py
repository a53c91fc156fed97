"""run.json: a run's identity, counts, failures and costs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.clients.completion import OF_CHAT
from pipeline.clients.probe import Services
from pipeline.job import Job
from pipeline.output.accuracy import accuracy
from pipeline.output.breakdown import AGAIN
from pipeline.output.run_folder import differences, read_manifest
from pipeline.runtime import history
from pipeline.runtime.interrupts import INTERRUPTED
from pipeline.runtime.progress import Progress
from pipeline.settings import Settings
from pipeline.sources.earlier_run import AskedAgain, EarlierRun
from pipeline.sources.listing import canonical
from pipeline.sources.shards import folder_name
from pipeline.version import version as own_version

# How a run ended; it ends as INTERRUPTED, too.
COMPLETE = "complete"
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Result:
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
        """Rows that ended well: answered detections, and images without a detection."""
        return self.answered + int(self.manifest["counts"]["images"][tables.NO_OBJECT])

    @property
    def failures(self) -> int:
        """Images and detections that failed."""
        counts = self.manifest["counts"]
        return int(counts["images"][tables.FAILED] + counts["detections"][tables.FAILED])


def count(written: dict[str, pa.Table], listed: int) -> dict[str, dict[str, int]]:
    """The counts of run.json, from the tables themselves; each group's entries add up to its `total`."""
    images = Counter(written["images"]["outcome"].to_pylist())
    detections = Counter(written["detections"]["outcome"].to_pylist())
    return {
        "images": {
            "total": listed,
            **{outcome: images[outcome] for outcome in tables.IMAGE_OUTCOMES},
            "not_reached": listed - images.total(),
        },
        "detections": {
            "total": detections.total(),
            **{outcome: detections[outcome] for outcome in tables.DETECTION_OUTCOMES},
        },
    }


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


def by_label(detections: pa.Table, job: Job) -> dict[str, dict[str, Any]]:
    """For each label of a job that has several: its images, detections, outcomes and answers; the most frequent first.

    Labels that the job names are there without a detection, too.
    """
    counted = Counter(dict.fromkeys(job.labels or (), 0))
    counted.update(detections["label"].to_pylist())
    found = {}
    for label in sorted(counted, key=lambda name: (-counted[name], name)):
        rows = detections.filter(pc.equal(detections["label"], label))
        outcomes = Counter(rows["outcome"].to_pylist())
        found[label] = {
            "images": len(pc.unique(rows["path"])),
            "detections": counted[label],
            **{outcome: outcomes[outcome] for outcome in tables.DETECTION_OUTCOMES},
            "summary": summarize(rows, job),
        }
    return found


def totals(written: dict[str, pa.Table]) -> dict[str, float]:
    """Time and tokens spent, summed over rows that were worked on side by side."""
    names = {
        "images": ("read_s", "detect_s", "crop_s"),
        "detections": ("latency_s", "prompt_tokens", "completion_tokens"),
    }
    return {
        name: round(pc.sum(written[table][name]).as_py() or 0, 3)
        for table, columns in names.items()
        for name in columns
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """A short name for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def folder_of(settings: Settings, job: Job, identity: dict[str, Any], earlier: AskedAgain | None) -> Path:
    """The folder of a run.

    Raises:
        InvalidSetting: it is that of the `earlier` run, which is asked again.
    """
    whole = {name: value for name, value in identity.items() if name != "shard"}
    run = settings.run_name or f"{job.name}-{fingerprint(whole)}"
    folder = settings.runs / folder_name(run, settings.shard)
    if earlier:
        earlier.refuse_itself(folder)
    return folder


def named(run: EarlierRun) -> dict[str, str]:
    """Which run is asked again."""
    return {"run": run.name, "identity": fingerprint(run.identity)}


def identify(settings: Settings, job: Job, services: Services, earlier: AskedAgain | None = None) -> dict[str, Any]:
    """Everything that decides a run's answers: a run with another identity is another run.

    `earlier`: the run whose detections the job is asked about.
    """
    return {
        "images": earlier.run.identity["images"] if earlier else canonical(settings.images, settings.column),
        "job": job.fingerprint(),
        "model": services.model,
        "model_root": services.model_root,
        "model_revision": settings.model_revision,
        "detector": services.detector,
        "detector_revision": services.detector_revision,
        "detector_settings": services.detector_settings,
        "table_format": tables.FORMAT,
        **({"trial": settings.trial} if settings.trial else {}),
        **({"shard": settings.shard} if settings.shard else {}),
        **({"parent": named(earlier.run)} if earlier else {}),
        **({"request_form": services.form.said()} if services.form != OF_CHAT else {}),
    }


def begun(
    folder: Path, started: str, identity: dict[str, Any], settings: Settings, job: Job, services: Services
) -> dict[str, Any]:
    """The manifest of a run that has begun, for the first time or again in the same `folder`."""
    before = read_manifest(folder)
    return {
        "run": folder.name,
        "status": history.RUNNING,
        "started": started,
        "starts": history.begun(before, started),
        "servers": (before or {}).get("servers", {}),
        "identity": identity,
        **({"parent": identity["parent"]} if "parent" in identity else {}),
        "job": {"name": job.name, **job.content()},
        "settings": settings.public(),
        "services": {
            "detector": {"name": services.detector, "revision": services.detector_revision},
            "model": {
                "name": services.model,
                "root": services.model_root,
                "revision": settings.model_revision,
                "api": services.form.api,
                "schema_form": services.form.schema_form,
                "logprobs": services.form.logprobs,
            },
        },
        "versions": {
            "spotter": own_version(),
            "python": platform.python_version(),
            **{package: version(package) for package in ("daft", "pyarrow", "pillow", "aiohttp")},
        },
    }


def cost(spent: Mapping[str, float], settings: Settings, images: int) -> dict[str, float] | None:
    """What the tokens cost by the settings' prices; None without prices."""
    if not any(settings.prices):
        return None
    whole = (spent["prompt_tokens"] * settings.price_input + spent["completion_tokens"] * settings.price_output) / 1e6
    return {"total": round(whole, 6), "per_1000_images": round(1000 * whole / max(images, 1), 6)}


def ended(written: dict[str, pa.Table], listed: int, job: Job, settings: Settings) -> dict[str, Any]:
    """What the manifest adds when the run has ended, from its tables."""
    spent = totals(written)
    return {
        "counts": count(written, listed),
        "several_frames": pc.sum(pc.greater(written["images"]["frames"], 1)).as_py() or 0,
        "summary": summarize(written["detections"], job),
        "accuracy": accuracy(written, job),
        **({"labels": by_label(written["detections"], job)} if job.has_several_labels else {}),
        "failures": count_reasons(written),
        "totals": spent,
        **({"cost": price} if (price := cost(spent, settings, written["images"].num_rows)) else {}),
    }


def finished(starts: list[history.Start], seconds: float, reason: str | None, progress: Progress) -> dict[str, Any]:
    """What the manifest adds of the start that ended after some `seconds`; `reason`: why it ended early.

    Its `seconds` are those of all starts.
    """
    status = outcome(reason)
    starts = history.ended(starts, seconds, status, progress)
    return {"seconds": history.total(starts), **status, "starts": starts}


def lost(unended: int, listed: int) -> str | None:
    """Why a run whose flow has ended is not complete: some of `listed` images have no rows; None when all have."""
    if not unended:
        return None
    return f"the flow ended, but {unended} of {listed} images have no rows or too few: {AGAIN}"


def outcome(reason: str | None) -> dict[str, str]:
    """How a run has ended, for run.json; `reason`: why it ended early."""
    if reason is None:
        return {"status": COMPLETE}
    return {"status": INTERRUPTED} if reason == INTERRUPTED else {"status": STOPPED, "reason": reason}


def why_new(folder: Path, identity: dict[str, Any], job: Job) -> str | None:
    """Why a run of the same job over the same images does not continue the last one; None where it does."""
    before = read_manifest(folder.parent / "latest")
    if before is None or folder.exists() or before.get("identity", {}).get("images") != identity["images"]:
        return None
    changed = differences(identity, before["identity"])
    if before["job"]["name"] != job.name or not changed:
        return None
    return f"a new run; different from {before['run']}: {', '.join(changed)}"
