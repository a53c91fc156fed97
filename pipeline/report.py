"""The report of a run: a page that shows what was found, with the images annotated."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from pipeline import tables
from pipeline.annotate import annotated
from pipeline.images import BadImage
from pipeline.job import Job
from pipeline.objects import StoreError
from pipeline.run_folder import write_atomically
from pipeline.sources import Reader, Source

# A browser shows 200 pictures at once with ease; all are in the folder.
SHOWN_IMAGES = 200
SHOWN_FAILURES = 100


def caption(row: dict[str, Any], job: Job) -> str:
    """What stands on a detection's box: the answer that the job counts, or the label."""
    if row["outcome"] == tables.FAILED:
        return f"{row['label']}: failed"
    answer = row[job.summary] if job.summary else next((row[name] for name in job.properties), None)
    return str(answer if answer is not None else row["label"])


def annotate_all(
    found: dict[str, list[dict[str, Any]]], sources: dict[str, Source], reader: Reader, folder: Path, redone: set[str]
) -> dict[str, str]:
    """Annotate the images that have detections; the paths of the copies within `folder`, by image path.

    A copy from an earlier call is kept unless its image is in `redone`. An image that has gone since, or a copy that
    cannot be written, is left out: the rows are safe already.
    """

    def one(path: str) -> tuple[str, str] | None:
        place = hashlib.sha256(path.encode()).hexdigest()[:8]
        # Of a name only what no browser, web server or shell stumbles over.
        stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60]
        target = Path("annotated", f"{stem}-{place}.jpg")
        try:
            if path in redone or not (folder / target).exists():
                source = sources[path]
                copy = annotated(reader.read(source.path, source.row), found[path])
                (folder / target).write_bytes(copy)
        except (BadImage, StoreError, OSError, pa.ArrowException):
            return None
        return path, target.as_posix()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow works outside the interpreter's lock
        return dict(filter(None, pool.map(one, found)))


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    written: dict[str, pa.Table],
    job: Job,
    sources: Iterable[Source],
    reader: Reader,
    redone: set[str],
) -> Path:
    """Write report.html and the annotated images into a run's folder.

    `written` holds the run's two tables; `sources` are the images, which `reader` reads again, `redone` the paths
    that were done just now.

    Raises:
        OSError: the report cannot be written.
    """
    by_path = {source.shown: source for source in sources}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in written["detections"].to_pylist():
        row["caption"] = caption(row, job)
        row["answer"] = [row[name] for name in job.properties] if row["outcome"] == tables.ANSWERED else []
        found[row["path"]].append(row)
    copies = annotate_all(found, by_path, reader, folder, redone)
    images = written["images"].to_pylist()
    failures = [row for row in images if row["outcome"] == tables.FAILED]
    failures += [row for rows in found.values() for row in rows if row["outcome"] == tables.FAILED]
    ended = [image for image in images if image["outcome"] != tables.FAILED]
    shown = [
        image | {"annotated": copies.get(image["path"]), "found": found.get(image["path"])}
        for image in ended[:SHOWN_IMAGES]
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
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
