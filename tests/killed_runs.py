"""Kill a run with SIGKILL, run it again, and look at its rows; scripts/bench/kills.py does it at random moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from pipeline.output.run_folder import COMMITTED
from scripts.environments import ROOT
from tests.doubles.faults import grid
from tests.doubles.simulated import Simulated

BOXES = 2
# Questions at the model at once, which bounds the rows on their way.
CONCURRENCY = 16
# How long a part's commit may take on a busy host. Daft goes on meanwhile (see runtime/watchdog.py), so that rows
# answered then are not committed yet.
COMMIT_S = 1.5
# Images of a part here.
PART = 100
# `python -m pipeline` with smaller parts: with parts of 1,000 images, few killed runs would have committed one. It does
# not wait for the disk, which takes seconds: the page cache survives kill -9.
PIPELINE = """
import os, runpy
from pipeline.output import parts
parts.PART_IMAGES = {part}
parts.sync_disk = os.fsync = lambda written: None
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The outcome of a kill and a second run."""

    seconds: float
    """From the start of the process to its kill, or to its end when that came first."""
    killed: bool
    committed: int
    """Parts that were committed before the second run."""
    asked: int
    """Questions of both runs, without the probe that each sends at its start."""
    rows: int
    wrong: list[str]
    """One line for each fault; empty when every row is there once."""

    @property
    def repeated(self) -> int:
        """Questions that were asked a second time."""
        return self.asked - self.rows


def pipeline(part: int) -> list[str]:
    """The command that runs the pipeline with `part` images in a part."""
    return [sys.executable, "-c", PIPELINE.format(part=part)]


def committed(folder: Path) -> tuple[int, int]:
    """How many parts of a run are committed, and how many images they hold."""
    listed = folder / COMMITTED
    lines = listed.read_text().splitlines() if listed.exists() else []
    parts = [listed.with_name(f"images-{json.loads(line)['part']}.parquet") for line in lines]
    return len(parts), sum(pq.read_metadata(part).num_rows for part in parts)


def start(simulated: Simulated, images: Path, folder: Path, part: int) -> subprocess.Popen[bytes]:
    """Start a run in `folder` as a process; its output goes to a file beside the folder."""
    command = [*pipeline(part), f"--images={images}", f"--output={folder.parent}", f"--run-name={folder.name}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".txt").open("ab") as output:
        return subprocess.Popen(
            [*command, f"--model-concurrency={CONCURRENCY}"],
            cwd=ROOT,
            env={**os.environ, **simulated.settings},
            stdout=output,
            stderr=output,
        )


def kill_and_resume(
    simulated: Simulated, images: Path, folder: Path, due: Callable[[], bool], part: int = PART
) -> Resumed:
    """Run over a folder of readable, different images; kill -9 when it is `due`; run again, and check the rows.

    Each image has BOXES boxes, each part `part` images, and `folder` must not exist yet. Answers that
    `simulated.hold` keeps back stay back until the kill.
    """
    simulated.boxes = lambda image: grid(BOXES)
    simulated.keep_bodies = False
    simulated.model.requests, started = 0, time.perf_counter()
    child = start(simulated, images, folder, part)
    while not due() and child.poll() is None:
        time.sleep(0.01)
    killed, seconds = child.poll() is None, time.perf_counter() - started
    child.kill()
    child.wait()
    simulated.hold = lambda traffic, number: False
    simulated.settle()
    parts, safe = committed(folder)
    asked = max(simulated.model.requests - 1, 0)
    simulated.model.requests = 0
    code = start(simulated, images, folder, part).wait()
    again = simulated.model.requests - 1
    pictures = len(list(images.iterdir()))
    wrong = [f"the second run ended with {code}: {folder.with_suffix('.txt')}"] if code else examine(folder, pictures)
    if again != BOXES * (pictures - safe):
        wrong.append(f"{again} questions were asked after {safe} of {pictures} images were committed")
    # One part, batches that wait for their last answer (twice those in flight, see stages/flow.py), and as many that
    # Daft keeps until the next batch.
    most = BOXES * part + 4 * CONCURRENCY + COMMIT_S * CONCURRENCY / max(simulated.latency_s, 1e-3)
    if asked - BOXES * safe > most:
        wrong.append(f"{asked} questions were asked when {safe} images were committed: {most:.0f} more at most")
    return Resumed(seconds, killed, parts, asked + again, BOXES * pictures, wrong)


def after(seconds: float) -> Callable[[], bool]:
    """Due this many seconds from now."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def examine(folder: Path, pictures: int) -> list[str]:
    """The faults in the rows of a finished run over `pictures` readable images."""
    wrong = []
    images = Counter(pq.read_table(folder / "images.parquet")["path"].to_pylist())
    if len(images) != pictures or max(images.values()) > 1:
        wrong.append(f"{len(images)} of {pictures} images, one of them {max(images.values(), default=0)} times")
    rows = pq.read_table(folder / "detections.parquet").to_pylist()
    found = Counter((row["path"], row["index"]) for row in rows)
    if len(found) != BOXES * pictures or max(found.values()) > 1:
        wrong.append(f"{len(found)} of {BOXES * pictures} detections, one {max(found.values(), default=0)} times")
    failed = [row["reason"] for row in rows if row["outcome"] != "answered"]
    if failed:
        wrong.append(f"{len(failed)} detections were not answered, the first: {failed[0]}")
    for row in rows:
        try:
            with Image.open(folder / str(row["crop"])) as crop:
                crop.load()
        except (OSError, UnidentifiedImageError) as error:
            wrong.append(f"a crop is not whole: {error}")
            break
    return wrong
