"""The report of a run: a page that shows what was found, with the images annotated."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from rich.console import Console

from pipeline import tables
from pipeline.files import write_atomically
from pipeline.job import Job
from pipeline.output.annotate import annotate_all
from pipeline.runtime.display import counted
from pipeline.sources.listing import Source
from pipeline.sources.reader import Reader

# A browser shows 200 pictures at once with ease; all are in the folder.
SHOWN_IMAGES = 200
SHOWN_FAILURES = 100


def caption(row: dict[str, Any], job: Job) -> str:
    """What stands on a detection's box: the answer that the job counts, or the label."""
    if row["outcome"] == tables.FAILED:
        return f"{row['label']}: failed"
    asked = [job.questions[number] for number in job.about(row["label"])]
    properties = [name for question in asked for name in question.properties]
    answer = row[job.summary if job.summary in properties else properties[0]]
    return str(answer if answer is not None else row["label"])


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where the report gets its pictures."""

    sources: Iterable[Source]
    reader: Reader
    redone: set[str]
    """The paths of the images that this run did: their annotated copies are made anew."""


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    written: dict[str, pa.Table],
    job: Job,
    pictures: Pictures,
    console: Console,
    moved: Callable[[], None] = lambda: None,
) -> Path:
    """Write report.html and the annotated images into a run's folder.

    `written`: the run's two tables; `moved` is called after each annotated image.

    Raises:
        OSError: the report cannot be written.
    """
    images = written["images"].select(["path", "outcome", "stage", "reason", "inputs"]).to_pylist()
    ended = [row for row in images if row["outcome"] != tables.FAILED]
    failures = [row for row in images if row["outcome"] == tables.FAILED]
    properties = list(job.properties)
    found: dict[str, list[dict[str, Any]]] = {row["path"]: [] for row in ended[:SHOWN_IMAGES]}
    drawn: dict[str, list[dict[str, Any]]] = defaultdict(list)
    # A few rows at a time, and of most no more than is drawn: there may be a million.
    for batch in written["detections"].to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            row["caption"] = caption(row, job)
            drawn[row["path"]].append({"box": row["box"], "caption": row["caption"]})
            if row["outcome"] == tables.FAILED:
                failures.append({name: row[name] for name in ("path", "index", "stage", "reason")})
            if row["path"] in found:
                row["answer"] = [row[name] for name in properties] if row["outcome"] == tables.ANSWERED else []
                found[row["path"]].append(row)
    by_path = {source.shown: source for source in pictures.sources}
    with counted(console, "annotated images", len(drawn)) as count:

        def advance() -> None:
            count()
            moved()

        copies = annotate_all(drawn, by_path, pictures.reader, folder, pictures.redone, advance)
    shown = [
        image
        | {
            "annotated": copies.get(image["path"]),
            "found": found[image["path"]],
            "inputs": json.loads(image["inputs"] or "{}"),
        }
        for image in ended[:SHOWN_IMAGES]
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.output"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        manifest=manifest,
        shown=shown,
        images_left=len(ended) - len(shown),
        failures=failures[:SHOWN_FAILURES],
        failures_left=max(len(failures) - SHOWN_FAILURES, 0),
    )
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"
