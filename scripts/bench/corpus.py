"""Run the job over a folder of valid and hostile pictures, and show what each kind became.

    python -m scripts.bench.corpus

Detector and model are simulated, so that it takes a minute anywhere; the pictures and what is odd about them are made
by tests/corpus.py. It exits with 1 when a picture has no row.
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
from rich.console import Console
from rich.table import Table

from pipeline import settings as pipeline_settings
from pipeline.run import run
from tests import corpus
from tests.doubles.simulated import serve


def kind_of(row: dict[str, Any]) -> str:
    """What kind of picture a row is about, from the beginning of its file's name."""
    name = Path(row["path"]).name
    if name.startswith("boxes-"):
        return Path(name).stem
    return "-".join(re.split(r"[-.]", name)[: 2 if name.startswith("bad-") else 1])


def became(row: dict[str, Any]) -> str:
    """How a row ended, in words; what differs between rows of the same kind is left out."""
    if row["outcome"] != "failed":
        return str(row["outcome"])
    reason = re.sub(r"\[[^\]]*\]", "[...]", row["reason"].split(" (")[0])
    return f"failed at {row['stage']}: {re.sub(r'[0-9][0-9.]*', 'N', reason)}"


def count(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """How many rows of each kind became what, by name."""
    return dict(sorted(Counter((kind_of(row), became(row)) for row in rows).items()))


def as_text(title: str, rows: list[dict[str, Any]], markdown: bool) -> None:
    """Print what became of rows."""
    if markdown:
        print(f"| kind | {title} | became |\n|---|---|---|")
        for (kind, outcome), number in count(rows).items():
            print(f"| {kind} | {number} | {outcome} |")
        return
    table = Table("kind", title, "became", box=None)
    for (kind, outcome), number in count(rows).items():
        table.add_row(kind, str(number), outcome)
    Console().print(table)


def main() -> None:
    """Make the pictures, run, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep pictures and run here; by default they are removed")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown has them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serve() as simulated:
        folder = arguments.folder or Path(scratch)
        names = corpus.write(folder / "pictures")
        simulated.boxes, simulated.keep_bodies = corpus.boxes, False
        os.environ.update(simulated.settings)
        started = time.perf_counter()
        options = ["--images", str(folder / "pictures"), "--output", str(folder / "runs")]
        done = run(pipeline_settings.load(options), Console(file=io.StringIO()))
        seconds = time.perf_counter() - started
        images = pq.read_table(done.folder / "images.parquet").to_pylist()
        detections = pq.read_table(done.folder / "detections.parquet").to_pylist()
    as_text("pictures", images, arguments.markdown)
    print()
    as_text("boxes", [row for row in detections if kind_of(row).startswith("boxes-")], arguments.markdown)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{len(names)} pictures, {len(images)} rows, {len(detections)} boxes; {seconds:.0f} s, {peak:,.0f} MB at most"
    )
    sys.exit(len(names) != len(images))


if __name__ == "__main__":
    main()
