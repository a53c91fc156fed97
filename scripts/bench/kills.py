"""kill -9 the pipeline at random moments, run it again, and see that every row is there once.

    python -m scripts.bench.kills
    python -m scripts.bench.kills --kills 5 --pictures 500 --seed 7

Each kill is a run of its own over the same pictures, with simulated services, at a moment between the start of the
process and its end; one before the first part was committed shows little, and does not count. The exit code is 1 when a
row is missing or twice, a crop is not whole, a question of a committed part was asked again, or more others than one
part holds and what was on its way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
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
from tests.doubles.simulated import Simulated, serve

BOXES = 2
# Questions at the model at once, which bounds the rows on their way.
CONCURRENCY = 16
# How long a part's commit may take on a busy host: Daft does not wait meanwhile (see runtime/watchdog.py), and what it
# answers then is on its way.
COMMIT_S = 1.5
# Images of a part here.
PART = 100
# `python -m pipeline` with parts of another size: of 1,000 images, few runs that are killed would have one. It does not
# wait for the disk, whose seconds would be questions on their way: what is written outlives kill -9 in memory.
PIPELINE = """
import os, runpy
from pipeline.output import parts
parts.PART_IMAGES = {part}
parts.sync_disk = os.fsync = lambda written: None
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a kill and a second run came to."""

    seconds: float
    """From the start of the process to its kill, or to its end when that came first."""
    killed: bool
    committed: int
    """Parts that were committed before."""
    asked: int
    """Questions that both runs asked, without those that each asks before it begins."""
    rows: int
    wrong: list[str]
    """What is not as it should be; empty when all is."""

    @property
    def repeated(self) -> int:
        """Questions that were asked a second time."""
        return self.asked - self.rows


def pipeline(part: int) -> list[str]:
    """The command of the pipeline with parts of so many images."""
    return [sys.executable, "-c", PIPELINE.format(part=part)]


def committed(folder: Path) -> tuple[int, int]:
    """How many parts of a run count, and the images in them."""
    listed = folder / COMMITTED
    lines = listed.read_text().splitlines() if listed.exists() else []
    parts = [listed.with_name(f"images-{json.loads(line)['part']}.parquet") for line in lines]
    return len(parts), sum(pq.read_metadata(part).num_rows for part in parts)


def start(simulated: Simulated, images: Path, folder: Path, part: int) -> subprocess.Popen[bytes]:
    """Start a run in `folder`, as a process of its own; what it prints is kept in a file beside it."""
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
    """Run over a folder of readable, different pictures; kill -9 when it is `due`; run again, and look at the rows.

    Each picture has BOXES boxes, each part `part` images, and `folder` is to be new. What `simulated.hold` keeps back
    is kept back until the kill.
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
    # A part, batches that wait for their last answer (twice those in flight, see stages/flow.py), and as many that
    # wait for the next batch, with which Daft hands them on.
    most = BOXES * part + 4 * CONCURRENCY + COMMIT_S * CONCURRENCY / max(simulated.latency_s, 1e-3)
    if asked - BOXES * safe > most:
        wrong.append(f"{asked} questions were asked when {safe} images were committed: {most:.0f} more at most")
    return Resumed(seconds, killed, parts, asked + again, BOXES * pictures, wrong)


def after(seconds: float) -> Callable[[], bool]:
    """Due when this time has passed from now."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def examine(folder: Path, pictures: int) -> list[str]:
    """What is wrong with the rows of a finished run over `pictures` readable pictures."""
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


def make_pictures(folder: Path, pictures: int) -> None:
    """Small pictures, no two the same."""
    for number in range(pictures):
        picture = Image.new("RGB", (96, 64), (number % 256, number // 256 % 256, number // 65536))
        picture.save(folder / f"{number:06}.png")


def main() -> int:
    """Kill, resume, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--part", type=int, default=PART, help="images of a part (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.02, help="of the services, in s (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.pictures < 2 * arguments.part:
        parser.error("--pictures: give two parts at least, or no kill counts")
    draw, bad = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as temporary, serve() as simulated:
        images = Path(temporary, "images")
        images.mkdir()
        make_pictures(images, arguments.pictures)
        simulated.latency_s = arguments.latency
        part = arguments.part
        whole = kill_and_resume(simulated, images, Path(temporary, "runs", "whole"), lambda: False, part)
        print(f"{arguments.pictures} pictures, {whole.rows} rows; without a kill {whole.seconds:.1f} s", flush=True)
        bad += bool(whole.wrong)
        latest, kills, runs = whole.seconds, 0, 0
        while kills < arguments.kills:
            runs += 1
            folder = Path(temporary, "runs", f"kill-{runs}")
            done = kill_and_resume(simulated, images, folder, after(draw.uniform(0, latest)), part)
            kills += done.killed and done.committed > 0
            if not done.killed:  # it was quicker than the run before: draw from what it took
                latest = done.seconds
            bad += bool(done.wrong)
            moment = f"killed after {done.seconds:5.1f} s" if done.killed else f"ended after {done.seconds:6.1f} s"
            said = "; ".join(done.wrong) or "every row once"
            print(f"{runs:3}  {moment}  {done.committed:3} parts  {done.repeated:5} asked again  {said}", flush=True)
    print(f"{bad} of {runs + 1} runs went wrong" if bad else f"all well after {kills} kills")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
