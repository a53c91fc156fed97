"""A run's tables as large as wanted, without a run: for what the report costs."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import job as jobs
from pipeline import tables
from pipeline.job import Job
from pipeline.output.formats import FORMATS
from pipeline.output.manifest import ended
from pipeline.output.report import write_report
from pipeline.output.run_folder import write_manifest
from pipeline.settings import Settings
from tests.pictures import encoded, gradient

# More hard links than this to one file are refused by some file systems.
LINKS = 30_000


def make_tables(images: int, seed: int = 0) -> tuple[Job, dict[str, pa.Table]]:
    """The tables of the bundled job: three detections an image on average, a failure here and there."""
    draw, job = random.Random(seed), jobs.load("dog_breeds")
    choices = {name: schema["enum"] for name, schema in job.properties.items()}
    pictures: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(images):
        path = f"/data/photos/2026/{number // 1000:03}/IMG_{number:06}.jpg"
        key = hashlib.sha256(path.encode()).hexdigest()[:32]
        failed = number % 500 == 7
        dogs = 0 if failed else (0, 1, 2, 3, 4, 5, 6)[number % 7]
        pictures.append(
            {
                "path": path,
                "key": None if failed else key,
                "outcome": "failed" if failed else "detected" if dogs else "no_object",
                "width": 4032,
                "height": 3024,
                "format": "JPEG",
                "frames": 1,
                "file_bytes": 2_000_000 + number,
                "detections": dogs,
                "stage": "read" if failed else None,
                "reason": f"truncated after {number} bytes" if failed else None,
                "attempts": 1,
                "read_s": 0.01,
                "detect_s": 0.05,
                "crop_s": 0.01,
            }
        )
        for index in range(dogs):
            x, y = draw.uniform(0, 3000), draw.uniform(0, 2000)
            bad = draw.random() < 0.003
            answer = {name: draw.choice(values) for name, values in choices.items()}
            found.append(
                {
                    "path": path,
                    "key": key,
                    "index": index,
                    "outcome": "failed" if bad else "answered",
                    "label": "dog",
                    "box": [x, y, x + draw.uniform(50, 1000), y + draw.uniform(50, 1000)],
                    "score": round(0.99 - 0.08 * index - draw.random() / 10, 6),
                    "crop": f"crops/{key}-{index}.jpg",
                    **(dict.fromkeys(answer) if bad else answer),
                    "raw_answer": str(answer),
                    "stage": "ask" if bad else None,
                    "reason": "the answer is no JSON" if bad else None,
                    "attempts": 1,
                    "latency_s": draw.uniform(0.1, 1),
                    "prompt_tokens": 300,
                    "completion_tokens": 30,
                }
            )
    return job, {
        "images": pa.Table.from_pylist(pictures, schema=tables.IMAGES),
        "detections": pa.Table.from_pylist(found, schema=tables.detections_schema(job.properties)),
    }


def make_manifest(job: Job, written: dict[str, pa.Table]) -> dict[str, Any]:
    """What run.json would say of them."""
    return {
        "run": "large",
        "status": "complete",
        "seconds": 3600.0,
        "starts": [],
        "left_out": [],
        "job": {"name": job.name, **job.content()},
        "services": {"model": {"name": "m"}, "detector": {"name": "d"}},
        "versions": {"spotter": "0"},
        **ended(written, written["images"].num_rows, job, Settings.model_construct()),
    }


@dataclass(frozen=True)
class Made:
    """What making the report of a run cost."""

    rows: int
    tables_s: float
    """Writing the tables, and counting for run.json."""
    tables_cpu_s: float
    report_s: float
    report_cpu_s: float
    page_mb: float


def write_large_run(folder: Path, images: int) -> Made:
    """Write a run's folder as a run leaves it, without annotated copies."""
    job, written = make_tables(images)
    make_crops(folder, written["detections"])
    clocks = [(time.perf_counter(), time.process_time())]
    for name, write in FORMATS.items():
        write(written, folder / name)
    manifest = make_manifest(job, written)
    write_manifest(folder, manifest)
    clocks.append((time.perf_counter(), time.process_time()))
    write_report(folder, manifest, written, set(), folder)
    clocks.append((time.perf_counter(), time.process_time()))
    page = [folder / "report.html", *(folder / "report").iterdir()]
    (tables_s, tables_cpu_s), (report_s, report_cpu_s) = (
        (after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(clocks)
    )
    size = sum(path.stat().st_size for path in page) / 1e6
    without = len(written["images"]) - len(set(written["detections"]["path"].to_pylist()))
    rows = written["detections"].num_rows + without
    return Made(rows, tables_s, tables_cpu_s, report_s, report_cpu_s, size)


def make_crops(folder: Path, detections: pa.Table) -> None:
    """Each detection's crop, all of them the same few bytes on the disk."""
    (folder / "crops").mkdir(parents=True)
    source = folder / "crops"
    for number, crop in enumerate(detections["crop"].to_pylist()):
        if number % LINKS == 0:
            source = folder / crop
            source.write_bytes(encoded(gradient(200, 150), "JPEG"))
        else:
            (folder / crop).hardlink_to(source)
