"""Run many images through the whole local path, and watch the pipeline's memory and speed.

    python -m scripts.bench.memory                                            5,000 images of 1080p
    python -m scripts.bench.memory --pictures 1000 --boxes 100 --size 640x480   100,000 rows
    python -m scripts.bench.memory --pictures 400 --boxes 20 --model-latency 0.5 -- --model-concurrency 16
                                                                              rows that pile up before a slow model
    python -m scripts.bench.memory --video --pictures 2000                    frames of one video; wants PyAV

The pipeline is `python -m pipeline` as a user runs it: it reads, decodes, crops, asks, stores, commits and reports.
Both services are simulated. The bench samples the resident memory of the pipeline and its children, and shows it by the
number of images that the detector has answered. The exit code is 1 when memory passes --limit, when it grows by more
than --growth after the first --settled images, when too few samples show the growth, or when a row has no answer.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipeline.output.run_folder import read_manifest
from scripts.bench import command
from scripts.environments import ROOT
from tests.doubles.faults import grid
from tests.doubles.simulated import Simulated, serve

SAMPLE_S = 0.1
# Frames are read faster than they are detected: a small budget is full soon, and memory is flat from then on.
VIDEO_BUDGET = "64MiB"


@dataclass(frozen=True, slots=True)
class Look:
    """One sample of the memory."""

    pictures: int
    """Images that the detector has answered."""
    megabytes: float


def photo(number: int, size: tuple[int, int]) -> Image.Image:
    """An image with a photo's detail: at 1080p and quality 85 a JPEG of 0.6 MB."""
    width, height = size
    coarse = Image.effect_noise((max(width // 8, 1), max(height // 8, 1)), 90).resize(size)
    fine = Image.effect_noise(size, 18)
    ramp = Image.linear_gradient("L").rotate(number % 360).resize(size)
    return Image.merge("RGB", (Image.blend(coarse, fine, 0.4), Image.blend(ramp, fine, 0.3), ramp))


def different(pictures: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Different images; only a few are drawn, because drawing takes longest."""
    drawn = [photo(number, size) for number in range(min(pictures, 8))]
    for number in range(pictures):
        picture = drawn[number % len(drawn)]
        # One block of pixels makes them different.
        picture.paste((number % 256, number // 256 % 256, 128), (0, 0, 16, 16))
        yield picture


def make_pictures(folder: Path, pictures: int, size: tuple[int, int], *, video: bool = False) -> None:
    """Write different images into a new folder: as JPEGs, or as the frames of one `video`."""
    folder.mkdir(parents=True)
    if not video:
        for number, picture in enumerate(different(pictures, size)):
            picture.save(folder / f"{number:06}.jpg", quality=85)
        return
    import av

    with av.open(folder / "video.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for picture in different(pictures, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


def resident_mb(process: psutil.Process) -> float:
    """Memory of a process and its children, in MB."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1024**2


def watch(child: subprocess.Popen[bytes], simulated: Simulated) -> list[Look]:
    """Sample a pipeline's memory until it ends."""
    process, looks = psutil.Process(child.pid), []
    while child.poll() is None:
        try:
            # The first request is the probe. Samples after the last one show merging and the report.
            looks.append(Look(max(simulated.detector.requests - 1, 0), resident_mb(process)))
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_S)
    return looks


def curve(looks: list[Look], pictures: int, steps: int = 10) -> list[tuple[int, float, float]]:
    """For each tenth of the images: its end, the median memory within it and the highest, in MB."""
    rows = []
    for step in range(steps):
        low, high = pictures * step // steps, pictures * (step + 1) // steps
        within = [look.megabytes for look in looks if low < look.pictures <= high]
        if within:
            rows.append((high, statistics.median(within), max(within)))
    return rows


def growth(looks: list[Look], settled: int, pictures: int) -> float:
    """Median memory of the last quarter after the `settled` images over that of the first, less 1; nan if unknown."""
    after = [look for look in looks if settled < look.pictures < pictures]
    quarter = (pictures - settled) / 4
    first = [look.megabytes for look in after if look.pictures <= settled + quarter]
    last = [look.megabytes for look in after if look.pictures > pictures - quarter]
    return statistics.median(last) / statistics.median(first) - 1 if first and last else math.nan


def complaints(peak_mb: float, limit_mb: float, grown: float, allowed: float, missing: int) -> list[str]:
    """One line for each figure outside its limit."""
    said = [f"{missing} rows have no answer"] if missing else []
    if peak_mb > limit_mb:
        said.append(f"memory reached {peak_mb:.0f} MB: more than {limit_mb:.0f}")
    if math.isnan(grown):
        said.append("too few samples to know the growth: give more --pictures or fewer --settled")
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
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, such as 1920x1080, at least 16 pixels each")
    return size


def measure(options: argparse.Namespace) -> list[str]:
    """Run, print the curve, compare with the limits."""
    with tempfile.TemporaryDirectory() as temporary, serve() as simulated:
        folder = (options.folder or Path(temporary)).absolute()
        images, log = folder / "images", folder / "output.txt"
        if not images.is_dir():
            make_pictures(images, options.pictures, options.size, video=options.video)
        pictures = options.pictures if options.video else len(list(images.iterdir()))
        file_bytes = sum(path.stat().st_size for path in images.iterdir()) / pictures
        print(f"{pictures} images of {options.size[0]} x {options.size[1]}, {file_bytes / 1e6:.2f} MB each")
        boxes = grid(options.boxes)
        simulated.boxes, simulated.latency_s, simulated.keep_bodies = lambda image: boxes, options.latency, False
        simulated.model_latency_s = options.model_latency
        job = [sys.executable, "-m", "pipeline", f"--images={images}", f"--output={folder / 'runs'}", "--force"]
        job += ["--every=1f", f"--bytes-in-flight={VIDEO_BUDGET}"] if options.video else []
        started, environment = time.perf_counter(), {**os.environ, **simulated.settings}
        with log.open("wb") as output:
            child = subprocess.Popen([*job, *options.options], cwd=ROOT, env=environment, stdout=output, stderr=output)
            try:
                looks = watch(child, simulated)
            finally:
                child.kill()
                child.wait()
        seconds = time.perf_counter() - started
        manifest = read_manifest(folder / "runs" / "latest")
        if child.returncode != 0 or manifest is None:
            raise command.BenchFailed(f"the run ended with {child.returncode}:\n{log.read_text(errors='replace')}")
    answered, expected = manifest["counts"]["detections"]["answered"], pictures * options.boxes
    table = command.figures("images", ("median MB", "highest MB"))
    for upto, median, most in curve(looks, pictures):
        table.add_row(str(upto), f"{median:.0f}", f"{most:.0f}")
    command.make_console().print(table)
    settled = min(500, pictures // 4) if options.settled is None else options.settled
    peak, grown = max(look.megabytes for look in looks), growth(looks, settled, pictures)
    print(f"{seconds:.1f} s with start and report: {pictures / seconds:.1f} images/s, {expected / seconds:,.0f} rows/s")
    print(f"peak {peak:.0f} MB (limit {options.limit:.0f}), growth after {settled} images: {grown:+.1%}")
    print(f"rows answered: {answered} of {expected}")
    return complaints(peak, options.limit, grown, options.growth, expected - answered)


def main() -> int:
    """Run, print the curve, judge."""
    parser = command.Options(__doc__)
    parser.option("--pictures", 5000, "number of images")
    parser.add_argument("--video", action="store_true", help="the images are the frames of one video")
    parser.option("--size", "1920x1080", "of an image, in pixels", type=parse_size)
    parser.option("--boxes", 3, "boxes in each image")
    parser.option("--latency", 0.0, "seconds per answer of both services")
    parser.add_argument("--model-latency", type=float, help="seconds per answer of the model (default: --latency)")
    parser.add_argument(
        "--settled", type=int, help="images before growth counts (default: 500, at most a quarter of all)"
    )
    parser.option("--limit", 1500.0, "highest memory, in MB")
    parser.option("--growth", 0.1, "allowed growth, as a share")
    parser.add_argument("--folder", type=Path, help="keep images and run here (default: a temporary folder)")
    parser.add_argument("options", nargs="*", help="after --, for the pipeline, such as -- --model-concurrency 256")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
