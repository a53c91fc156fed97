"""What a run has still to do, by what its folder holds already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.clients.model import TOKENS
from pipeline.output.parts import Parts
from pipeline.sources.listing import Source
from pipeline.stages import flow
from pipeline.stages.reusable import KeptAnswers


@dataclass(frozen=True, slots=True)
class Outstanding:
    """The images that are to be done, and what nobody has to be asked again for them."""

    sources: list[Source]
    paths: set[str]
    """Their names in the tables."""
    known: flow.Keys
    """Of images that are done: another one with the same bytes has their answers."""
    answers: KeptAnswers
    """About detections of images that are done again because another detection failed."""


def outstanding(parts: Parts, sources: list[Source], *, retry_failed: bool) -> Outstanding:
    """What is to be done of a run's sources; with `retry_failed` also what has failed before."""
    latest = parts.latest()
    retry, answers = retried(parts, latest) if retry_failed else (set[str](), KeptAnswers())
    todo = still_to_do(sources, latest, retry)
    paths = {source.shown for source in todo}
    asked = (row for path, row in latest.items() if path not in paths and row["outcome"] != tables.DUPLICATE)
    return Outstanding(todo, paths, flow.Keys(row["key"] for row in asked if row["key"]), answers)


def retried(parts: Parts, latest: dict[str, dict[str, Any]]) -> tuple[set[str], KeptAnswers]:
    """The images that failed or have a detection that did, and what was answered about their other detections."""
    failed = {path for path, row in latest.items() if row["outcome"] == tables.FAILED}
    detections = parts.current("detections", latest, ["path", "outcome"])
    failed |= set(detections.filter(pc.equal(detections["outcome"], tables.FAILED))["path"].to_pylist())
    columns = ["path", "outcome", "key", "box", "raw_answer", "latency_s", "attempts", *TOKENS]
    detections = parts.current("detections", latest, columns)
    answered = pc.and_(
        pc.equal(detections["outcome"], tables.ANSWERED),
        pc.is_in(detections["path"], value_set=pa.array(sorted(failed), pa.string())),
    )
    return failed, KeptAnswers(detections.filter(answered).to_pylist())


def still_to_do(sources: list[Source], latest: dict[str, dict[str, Any]], retry: set[str]) -> list[Source]:
    """The sources that have no committed rows, have changed since, wait for their original, or are to be retried.

    The duplicates of an image that is retried have its rows, whatever they will be: they are not done again, or one of
    them might be asked about in its place.
    """

    def stale(source: Source) -> bool:
        row = latest.get(source.shown)
        return row is None or row["version"] != source.version

    todo = {source.shown for source in sources if stale(source)}
    asked = {row["key"] for path, row in latest.items() if row["outcome"] in tables.IMAGE_OUTCOMES and path not in todo}
    todo |= {path for path, row in latest.items() if row["outcome"] == tables.DUPLICATE and row["key"] not in asked}
    return [source for source in sources if source.shown in todo or source.shown in retry]
