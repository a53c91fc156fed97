"""The resume plan: what a run still has to do, after what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.output.parts import Parts
from pipeline.sources.listing import Source
from pipeline.stages.read import SeenContent
from pipeline.stages.reusable import COLUMNS, ReusableAnswers


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """The images that a run does, and what need not be asked for them again."""

    sources: list[Source]
    paths: set[str]
    """Their names in the tables."""
    seen: SeenContent
    """Of images that are done: another image with the same bytes has their answers."""
    answers: ReusableAnswers
    """About detections of images that are done again because another of their detections failed."""


def plan(parts: Parts, sources: list[Source], *, retry_failed: bool) -> ResumePlan:
    """What a run does of its sources; with `retry_failed` also what failed before."""
    latest = parts.latest()
    retry, answers = retried(parts, latest) if retry_failed else (set[str](), ReusableAnswers())
    todo = still_to_do(sources, latest, retry)
    paths = {source.shown for source in todo}
    asked = (row for path, row in latest.items() if path not in paths and row["outcome"] != tables.DUPLICATE)
    return ResumePlan(todo, paths, SeenContent(row["key"] for row in asked if row["key"]), answers)


def retried(parts: Parts, latest: dict[str, dict[str, Any]]) -> tuple[set[str], ReusableAnswers]:
    """The images that failed or have a failed detection, and the answers about their other detections."""
    failed = {path for path, row in latest.items() if row["outcome"] == tables.FAILED}
    detections = parts.current("detections", latest, ["path", "outcome"])
    failed |= set(detections.filter(pc.equal(detections["outcome"], tables.FAILED))["path"].to_pylist())
    properties = [name for name in parts.schemas["detections"].names if name not in tables.DETECTION_COLUMNS]
    columns = ["path", "outcome", "key", "box", *COLUMNS, *properties]
    detections = parts.current("detections", latest, columns)
    answered = pc.and_(
        pc.equal(detections["outcome"], tables.ANSWERED),
        pc.is_in(detections["path"], value_set=pa.array(sorted(failed), pa.string())),
    )
    return failed, ReusableAnswers(detections.filter(answered).to_pylist(), properties)


def still_to_do(sources: list[Source], latest: dict[str, dict[str, Any]], retry: set[str]) -> list[Source]:
    """The sources without committed rows, changed since, waiting for their original, or to be retried.

    The duplicates of a retried image share its rows, whatever these will be. They are not done again: one of them might
    be asked about in its place.
    """

    def stale(source: Source) -> bool:
        row = latest.get(source.shown)
        return row is None or row["version"] != source.version

    todo = {source.shown for source in sources if stale(source)}
    asked = {row["key"] for path, row in latest.items() if row["outcome"] in tables.IMAGE_OUTCOMES and path not in todo}
    todo |= {path for path, row in latest.items() if row["outcome"] == tables.DUPLICATE and row["key"] not in asked}
    return [source for source in sources if source.shown in todo or source.shown in retry]
