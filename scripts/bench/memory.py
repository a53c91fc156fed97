"""Run many pictures through the whole local path, and watch the pipeline's memory and speed.

    python -m scripts.bench.memory                                            5,000 pictures of 1080p
    python -m scripts.bench.memory --pictures 1000 --boxes 100 --size 640x480   100,000 rows
    python -m scripts.bench.memory --pictures 400 --boxes 20 --model-latency 0.5 -- --model-concurrency 16
                                                                              rows that pile up before a slow model

The pipeline is `python -m pipeline` as a user runs it: it reads, decodes, crops, asks, stores, commits and reports; the
two services are simulated and answer at once, or as late as they are told to. The resident memory of the pipeline and
its children is read while it runs, and shown by how many pictures the detector has been asked about. The exit code is 1
when memory passed --limit, when it grew by more than --growth after the first --settled pictures, or the run was too
short to tell, and when a row has no answer.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from pipeline.output.run_folder import read_manifest
from scripts.environments import ROOT
from tests.doubles.faults import grid
from tests.doubles.simulated import Simulated, serve

LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    pictures: int
    megabytes: float


def photo(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture with a photo's detail: a 1080p one is a JPEG of 0.6 MB at quality 85. No two are the same."""
    width, height = size
    coarse = Image.effect_noise((max(width // 8, 1), max(height // 8, 1)), 90).resize(size)
    fine = Image.effect_noise(size, 18)
    ramp = Image.linear_gradient("L").rotate(number % 360).resize(size)
    picture = Image.merge("RGB", (Image.blend(coarse, fine, 0.4), Image.blend(ramp, fine, 0.3), ramp))
    picture.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    return picture


def make_pictures(folder: Path, pictures: int, size: tuple[int, int]) -> None:
    """`pictures` different JPEGs; the drawing is done for a few of them, since it takes longer than all the rest."""
    drawn = [photo(number, size) for number in range(min(pictures, 20))]
    for number in range(pictures):
        picture = drawn[number % len(drawn)]
        # One block of pixels tells them apart.
        picture.paste((number % 256, number // 256 % 256, 128), (0, 0, 16, 16))
        picture.save(folder / f"{number:06}.jpg", quality=85)


def resident_mb(process: psutil.Process) -> float:
    """Memory of a process and its children."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1024**2


def watch(child: subprocess.Popen[bytes], simulated: Simulated) -> list[Look]:
    """Look at a pipeline until it ends."""
    process, looks = psutil.Process(child.pid), []
    while child.poll() is None:
        try:
            # One question comes before the run. What comes after its last one is merging and the report.
            looks.append(Look(max(simulated.detector.requests - 1, 0), resident_mb(process)))
        except psutil.NoSuchProcess:
            break
        time.sleep(LOOK_S)
    return looks


def curve(looks: list[Look], pictures: int, steps: int = 10) -> list[tuple[int, float, float]]:
    """For each tenth of the pictures: where it ends, the median memory within it and the most, in MB."""
    rows = []
    for step in range(steps):
        low, high = pictures * step // steps, pictures * (step + 1) // steps
        within = [look.megabytes for look in looks if low < look.pictures <= high]
        if within:
            rows.append((high, statistics.median(within), max(within)))
    return rows


def growth(looks: list[Look], settled: int, pictures: int) -> float:
    """Median memory of the last quarter after the `settled` pictures over that of the first, less 1; nan if none."""
    after = [look for look in looks if settled < look.pictures < pictures]
    quarter = (pictures - settled) / 4
    first = [look.megabytes for look in after if look.pictures <= settled + quarter]
    last = [look.megabytes for look in after if look.pictures > pictures - quarter]
    return statistics.median(last) / statistics.median(first) - 1 if first and last else math.nan


def complaints(peak_mb: float, limit_mb: float, grown: float, allowed: float, missing: int) -> list[str]:
    """What is not as it should be."""
    said = [f"{missing} rows have no answer"] if missing else []
    if peak_mb > limit_mb:
        said.append(f"memory reached {peak_mb:.0f} MB: more than {limit_mb:.0f}")
    if math.isnan(grown):
        said.append("the growth is not known: too few looks, so take more --pictures, or fewer as --settled")
    elif grown > allowed:
        said.append(f"memory grew by {grown:.1%}: more than {allowed:.0%}")
    return said


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT`."""
    width, _, height = text.partition("x")
    try:
        size = int(width), int(height)
    except ValueError:
        size = (0, 0)
    if min(size) < 16:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, such as 1920x1080, of 16 pixels at least")
    return size


def main() -> int:
    """Run, print the curve, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--size", type=parse_size, default=(1920, 1080), help="of a picture (default: 1920x1080)")
    parser.add_argument("--boxes", type=int, default=3, help="in each picture (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="of both services, in s (default: %(default)s)")
    parser.add_argument("--model-latency", type=float, help="of the model server, where it is another, in s")
    parser.add_argument(
        "--settled", type=int, help="pictures before growth counts (default: 500, or a quarter where that is less)"
    )
    parser.add_argument("--limit", type=float, default=1500, help="most memory, in MB (default: %(default)s)")
    parser.add_argument("--growth", type=float, default=0.1, help="allowed, as a share (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for pictures and run, kept; by default a temporary one")
    parser.add_argument("options", nargs="*", help="after --, for the pipeline, such as -- --model-concurrency 256")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, serve() as simulated:
        folder = (arguments.folder or Path(temporary)).absolute()
        images = folder / "images"
        if not images.is_dir():
            images.mkdir(parents=True)
            make_pictures(images, arguments.pictures, arguments.size)
        pictures = len(list(images.iterdir()))
        file_bytes = statistics.mean(path.stat().st_size for path in images.iterdir())
        print(f"{pictures} pictures of {arguments.size[0]} x {arguments.size[1]}, {file_bytes / 1e6:.2f} MB each")
        boxes = grid(arguments.boxes)
        simulated.boxes, simulated.latency_s, simulated.keep_bodies = lambda image: boxes, arguments.latency, False
        simulated.model_latency_s = arguments.model_latency
        command = [sys.executable, "-m", "pipeline", f"--images={images}", f"--output={folder / 'runs'}", "--force"]
        started = time.perf_counter()
        environment = {**os.environ, **simulated.settings}
        with (folder / "output.txt").open("wb") as output:
            child = subprocess.Popen(
                [*command, *arguments.options], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            try:
                looks = watch(child, simulated)
            finally:
                child.kill()
                child.wait()
        seconds = time.perf_counter() - started
        manifest = read_manifest(folder / "runs" / "latest")
        if child.returncode != 0 or manifest is None:
            print((folder / "output.txt").read_text(errors="replace"), file=sys.stderr)
            return 1
    answered, expected = manifest["counts"]["detections"]["answered"], pictures * arguments.boxes
    print("pictures  median MB  most MB")
    for upto, median, most in curve(looks, pictures):
        print(f"{upto:8}  {median:9.0f}  {most:7.0f}")
    settled = min(500, pictures // 4) if arguments.settled is None else arguments.settled
    peak, grown = max(look.megabytes for look in looks), growth(looks, settled, pictures)
    speed = f"{pictures / seconds:.1f} pictures/s, {expected / seconds:,.0f} rows/s"
    print(f"{seconds:.1f} s with start and report: {speed}")
    print(f"peak {peak:.0f} MB (limit {arguments.limit:.0f}), growth after {settled} pictures: {grown:+.1%}")
    print(f"rows answered: {answered} of {expected}")
    wrong = complaints(peak, arguments.limit, grown, arguments.growth, expected - answered)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
