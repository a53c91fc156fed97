"""The report of a run: a page on its rows, and copies of its images with the answers drawn on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from pipeline import tables
from pipeline.files import whole, write_atomically
from pipeline.job import Job
from pipeline.output.annotate import Drawing, annotate_all, copies_in, copies_of
from pipeline.output.evaluation import read_evaluation
from pipeline.output.page_rows import CHOICE, NUMBER, Column, PageRows, digest, quoted
from pipeline.output.pages import template
from pipeline.output.run_folder import PAGE
from pipeline.runtime.display import copies_note, counted
from pipeline.sources.listing import Source
from pipeline.sources.reader import Reader

TEMPLATES = Path(__file__).parent / "templates"
# What the page loads beside its rows.
LOADED = ("report.css", "rows.js", "report.js")

# Bars that are shown at once, for each field; the others are folded.
BARS = 12
BINS = 10
SHOWN_REASONS = 100
# A confusion matrix shows so many of the true values.
VALUES = 30


def caption(row: dict[str, Any], job: Job) -> str:
    """What stands on a detection's box: the answer that the job counts, with the label where there are several."""
    if row["outcome"] == tables.FAILED:
        return f"{row['label']}: failed"
    asked = [job.questions[number] for number in job.about(row["label"])]
    properties = [name for question in asked for name in question.properties]
    answer = row[job.summary if job.summary in properties else properties[0]]
    if answer is None:
        return str(row["label"])
    return f"{row['label']}: {answer}" if job.has_several_labels else str(answer)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where the report gets its pictures."""

    sources: Iterable[Source]
    reader: Reader
    redone: set[str]
    """The paths of the images that this run did: their annotated copies are made anew."""
    limit: int | None
    """Draw at most so many copies; None: all."""


def draw_copies(
    folder: Path,
    written: dict[str, pa.Table],
    job: Job,
    pictures: Pictures,
    console: Console,
    moved: Callable[[], None] = lambda: None,
) -> dict[str, int | None]:
    """Draw the annotated copies that the limit allows and that are not there; how many are there `of` how many images.

    `written` are the run's two tables. `moved` is called after each image.
    """
    detections, images = written["detections"], written["images"].select(["path", "key", "width", "height"])
    found = pc.unique(detections["path"]).to_pylist()
    by_path = {source.shown: source for source in pictures.sources}
    wanted = pa.array([path for path in found if path in by_path][: pictures.limit], pa.string())
    drawn = {
        image["path"]: Drawing(image["key"], max(image["width"], image["height"]), [])
        for image in images.filter(pc.is_in(images["path"], wanted)).to_pylist()
    }
    # A few rows at a time, and of most no more than is drawn: there may be a million.
    for batch in detections.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["path"] in drawn:
                kind = {"kind": row["label"]} if job.has_several_labels else {}
                drawn[row["path"]].detections.append({"box": row["box"], "caption": caption(row, job), **kind})
    with counted(console, "annotated images", len(drawn)) as count:

        def advance() -> None:
            count()
            moved()

        annotate_all(drawn, by_path, pictures.reader, folder, pictures.redone & set(found), advance)
    return {"copies": len(copies_of(found, copies_in(folder))), "of": len(found), "limit": pictures.limit}


@dataclass(frozen=True, slots=True)
class Bar:
    """How often an answer was given."""

    text: str
    rows: int
    code: int | None
    """The answer's number among the column's values; None for numbers, by which a bar cannot filter."""


def bars(column: Column) -> list[Bar]:
    """The answers of a field, the most frequent first; numbers in order, by ranges where they lie far apart."""
    if column.kind == CHOICE:
        counts = Counter(code for code in column.rows if code >= 0)
        return [Bar(column.values[code], rows, code) for code, rows in counts.most_common()]
    if column.kind != NUMBER:
        return []
    numbers = [value for value in column.rows if value is not None]
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    if high - low < BINS and all(isinstance(value, int) for value in numbers):
        each = Counter(numbers)
        return [Bar(str(value), each[value], None) for value in range(low, high + 1)]
    width = (high - low) / BINS or 1.0
    if width > 1 and all(value == int(value) for value in (low, high)):
        width = math.ceil(width)
    binned = Counter(min(int((value - low) / width), BINS - 1) for value in numbers)
    spans = [(low + place * width, low + (place + 1) * width) for place in range(BINS)]
    return [Bar(f"{begin:.4g} to {end:.4g}", binned[place], None) for place, (begin, end) in enumerate(spans)]


def label_of(job: dict[str, Any]) -> str:
    """What a run looks for, in a word: its label, or `object` where it has several or any."""
    labels = job.get("label") or job.get("labels")
    labels = [labels] if isinstance(labels, str) else list(labels or ())
    return labels[0] if len(labels) == 1 and labels != ["any"] else "object"


def write_report(
    folder: Path, manifest: dict[str, Any], written: dict[str, pa.Table], copies: set[str], place: Path
) -> Path:
    """Write report.html, and beside it what it loads, into a run's folder, by its two tables and its run.json.

    `copies` are the names of its annotated copies; `place` is the folder in which relative paths of images begin. The
    page's rows are written before the page.

    Raises:
        OSError: the report cannot be written.
    """
    drawn = copies_of(written["images"]["path"].to_pylist(), copies)
    rows = PageRows(written, drawn, manifest["job"].get("summary"))
    beside = folder / PAGE
    beside.mkdir(exist_ok=True)
    label, summary = label_of(manifest["job"]), manifest["job"].get("summary")
    about = quoted(rows.about() | {"summary": summary, "place": str(place.absolute()), "label": label})
    chunks = [quoted(chunk) for chunk in rows.chunks()]
    loaded = {name: (TEMPLATES / name).read_bytes() for name in LOADED}
    version = digest([about, *chunks, *loaded.values()])
    scripts = {
        f"rows-{number}.js": b"take(%b, '%b');\n" % (chunk, version.encode()) for number, chunk in enumerate(chunks)
    }
    scripts["about.js"] = b"begin(%b, '%b');\n" % (about, version.encode())
    for name, content in (scripts | loaded).items():
        write(beside / name, content)
    for old in beside.glob("rows-*.js"):
        if old.name not in scripts:
            old.unlink()
    page = template("pipeline.output", "report.html.j2").render(
        manifest=manifest,
        label=label,
        copies_note=copies_note(manifest.get("annotated")),
        version=version,
        fields=[(each.name, bars(each)) for each in rows.columns if each.name in rows.fields],
        shown_bars=BARS,
        evaluation=read_evaluation(folder),
        shown_values=VALUES,
        failures=manifest["failures"][:SHOWN_REASONS],
        failures_left=max(len(manifest["failures"]) - SHOWN_REASONS, 0),
    )
    write_atomically(folder / "report.html", page.encode(errors="backslashreplace"))
    return folder / "report.html"


def write(path: Path, content: bytes) -> None:
    """Write a file that the page loads; after a power cut the next run writes it again."""
    with whole(path, durable=False) as handle:
        handle.write(content)
