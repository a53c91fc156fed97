"""Run the job over a folder of valid and hostile images, and show the outcome of each kind.

    python -m scripts.bench.corpus

Detector and model are simulated, so that it takes a minute anywhere; tests/corpus.py makes the images. The exit code is
1 when an image has no row.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline import settings as pipeline_settings
from pipeline.run import run
from scripts.bench import command
from tests import corpus
from tests.doubles.simulated import serve


def kind_of(row: dict[str, Any]) -> str:
    """The kind of a row's image, from the beginning of its file's name."""
    name = Path(row["path"]).name
    if name.startswith("boxes-"):
        return Path(name).stem
    return "-".join(re.split(r"[-.]", name)[: 2 if name.startswith("bad-") else 1])


def outcome(row: dict[str, Any]) -> str:
    """How a row ended, without the numbers that differ between rows of the same kind."""
    if row["outcome"] != "failed":
        return str(row["outcome"])
    reason = re.sub(r"\[[^\]]*\]", "[...]", row["reason"].split(" (")[0])
    return f"failed at {row['stage']}: {re.sub(r'[0-9][0-9.]*', 'N', reason)}"


def table(title: str, rows: list[dict[str, Any]], markdown: bool) -> Table:
    """How many rows of each kind had which outcome."""
    shown = Table("kind", title, "outcome", box=box.MARKDOWN if markdown else None)
    for (kind, ended), number in sorted(Counter((kind_of(row), outcome(row)) for row in rows).items()):
        shown.add_row(kind, str(number), ended)
    return shown


def measure(options: argparse.Namespace) -> list[str]:
    """Make the images, run, show; a line when images have no row."""
    with tempfile.TemporaryDirectory() as scratch, serve() as simulated:
        folder = options.folder or Path(scratch)
        names = corpus.write(folder / "pictures")
        simulated.boxes, simulated.keep_bodies = corpus.boxes, False
        os.environ.update(simulated.settings)
        started = time.perf_counter()
        given = ["--images", str(folder / "pictures"), "--output", str(folder / "runs")]
        done = run(pipeline_settings.load(given), Console(file=io.StringIO()))
        seconds = time.perf_counter() - started
        images = pq.read_table(done.folder / "images.parquet").to_pylist()
        detections = pq.read_table(done.folder / "detections.parquet").to_pylist()
    console = command.make_console()
    console.print(table("images", images, options.markdown))
    boxes = [row for row in detections if kind_of(row).startswith("boxes-")]
    console.print(table("boxes", boxes, options.markdown))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(names)} images, {len(images)} rows, {len(detections)} boxes; {seconds:.0f} s, peak {peak:,.0f} MB")
    return [] if len(names) == len(images) else [f"{len(names)} images have {len(images)} rows"]


def main() -> int:
    """Make the images, run, show."""
    parser = command.Options(__doc__)
    parser.add_argument("--folder", type=Path, help="keep images and run here (default: a temporary folder)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
