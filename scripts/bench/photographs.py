"""Measure what a photograph costs: CPU time by stage and peak memory, against the least that it can cost.

    python -m scripts.bench.photographs                          2, 12 and 48 megapixels with 0, 1, 4 and 20 boxes
    python -m scripts.bench.photographs --sizes 4000x3000 --boxes 4 --folder FOLDER   keeps the images for another turn

The pipeline is `python -m pipeline` as a user runs it; both services are simulated. `read` and `crop` are the stages'
own CPU time. `detector` is the CPU time that the detector service takes to decode what it was sent. `all` is the CPU
time of the whole process and of the detector's decoding, with the report; what a run of one image takes is taken off.
The floor is one pass through the file's entropy-coded data (a decode at 1/8) and the cutting of the crops out of an
image that is decoded already. Of large images fewer are taken, see --megapixels. The exit code is 1 when a ratio passes
--limit or the memory --memory.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from pipeline.job import Crop
from pipeline.metrics.profile import Profile
from pipeline.stages.boxes import cut
from scripts.bench import command
from scripts.bench.memory import make_pictures, parse_size, watch
from scripts.environments import ROOT
from services.detector.checkpoint import InputSize
from services.detector.images import decode
from tests.doubles.simulated import Simulated, serve

# Of D-FINE and RT-DETR.
MODEL_INPUT = InputSize(exact=(640, 640))
# Of smaller images the fixed costs decide, and not their pixels.
LARGE = 8_000_000
# A side of a box as a share of the image's, by the number of boxes.
SIDES = {0: 0.0, 1: 0.5, 4: 0.3, 20: 0.12}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image: CPU milliseconds, and the run's peak memory in MB."""

    read: float
    crop: float
    detector: float
    all: float
    floor: float
    peak_mb: float

    @property
    def ratio(self) -> float:
        """To the floor."""
        return self.all / self.floor


def boxes_of(number: int, width: int, height: int) -> list[list[float]]:
    """Boxes side by side over the image, `xyxy` in pixels."""
    side = SIDES.get(number, 0.1)
    columns = max(int(1 / side), 1) if side else 1
    found = []
    for n in range(number):
        x, y = n % columns * width / columns, n // columns % columns * height / columns
        found.append([x, y, x + side * width, y + side * height])
    return found


def cpu_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """The least CPU time of some calls."""
    costs = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        costs.append(time.process_time() - began)
    return 1000 * min(costs)


def decoded(data: bytes, scale: int) -> Image.Image:
    """A JPEG at 1/scale of its size."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    return image


@cache
def entropy_ms(data: bytes) -> float:
    """One entropy decode."""
    return cpu_ms(lambda: decoded(data, 8))


def floor_ms(data: bytes, number: int) -> float:
    """One entropy decode, and the crops cut out of a decoded image that is just large enough for each."""
    size = Image.open(io.BytesIO(data)).size
    crop = Crop()
    boxes = boxes_of(number, *size)
    scale = 1
    while boxes and min(max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes) / (2 * scale) >= crop.max_side:
        scale *= 2
    image = decoded(data, scale)
    small = [[value * image.width / size[0] for value in box] for box in boxes]
    return entropy_ms(data) + cpu_ms(lambda: [cut(image, box, crop.margin, crop.max_side) for box in small])


def run(images: Path, runs: Path, simulated: Simulated) -> tuple[float, float, Profile]:
    """CPU seconds and peak memory in MB of a run over a folder, and its profile."""
    job = [sys.executable, "-m", "pipeline", f"--images={images}", f"--output={runs}", "--force"]
    log, before = runs.with_suffix(".txt"), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    with log.open("wb") as output:
        environment = {**os.environ, **simulated.settings}
        child = subprocess.Popen(job, cwd=ROOT, env=environment, stdout=output, stderr=output)
        peak_mb = max(look.megabytes for look in watch(child, simulated))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise command.BenchFailed(f"the run ended with {child.returncode}:\n{log.read_text(errors='replace')}")
    return used.ru_utime + used.ru_stime - before, peak_mb, Profile.of(runs / "latest")


def measure_one(folder: Path, size: tuple[int, int], number: int, pictures: int) -> Cost:
    """The cost of images of one size with so many boxes."""
    images, alone = (folder / f"{size[0]}x{size[1]}-{count}" for count in (pictures, 1))
    for place, count in ((images, pictures), (alone, 1)):
        if not place.is_dir():
            make_pictures(place, count, size)
    with serve() as simulated:
        simulated.detector_input = MODEL_INPUT.exact
        simulated.boxes = lambda image: boxes_of(number, image.width, image.height)
        fixed_s, _, _ = run(alone, folder / "runs-alone", simulated)
        simulated.detector.bodies.clear()
        used_s, peak_mb, profile = run(images, folder / "runs", simulated)
        sent: list[bytes] = [body["image"] for body in simulated.detector.bodies[1:9]]
    stages = {stage.name: 1000 * (stage.cpu_s or 0) / pictures for stage in profile.stages}
    detector = sum(cpu_ms(lambda data=body: decode(data, MODEL_INPUT), 3) for body in sent) / len(sent)  # type: ignore[misc]
    in_all = 1000 * (used_s - fixed_s) / (pictures - 1) + detector
    floor = floor_ms(next(images.iterdir()).read_bytes(), number)
    return Cost(stages["read"], stages["crop"], detector, in_all, floor, peak_mb)


def measure(options: argparse.Namespace) -> list[str]:
    """Measure each size with each number of boxes; a line for each figure over its limit."""
    said = []
    table = command.figures("image, boxes", ("read ms", "crop ms", "detector ms", "all ms", "floor ms", "ratio", "MB"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for size in options.sizes:
            pictures = options.pictures or min(max(options.megapixels * 1_000_000 // (size[0] * size[1]), 8), 60)
            for number in options.boxes:
                cost = measure_one(folder.absolute(), size, number, pictures)
                values = (cost.read, cost.crop, cost.detector, cost.all, cost.floor)
                name = f"{size[0]} x {size[1]}, {number}"
                row = [*(f"{value:.0f}" for value in values), f"{cost.ratio:.2f}", f"{cost.peak_mb:.0f}"]
                table.add_row(name, *row)
                if size[0] * size[1] >= LARGE and cost.ratio > options.limit:
                    said.append(f"{name}: {cost.ratio:.2f} times the floor: more than {options.limit}")
                if cost.peak_mb > options.memory:
                    said.append(f"{name}: memory reached {cost.peak_mb:.0f} MB: more than {options.memory:.0f}")
    command.make_console().print(table)
    return said


def main() -> int:
    """Measure, print, judge."""
    parser = command.Options(__doc__)
    sizes = [(1632, 1224), (4000, 3000), (8000, 6000)]
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=sizes, help="of images, in pixels")
    parser.add_argument("--boxes", nargs="+", type=int, default=[0, 1, 4, 20], help="numbers of boxes in an image")
    parser.option("--megapixels", 720, "of the images of a size together, which are 8 to 60")
    parser.add_argument("--pictures", type=int, help="images of each size (default: by --megapixels)")
    parser.add_argument("--folder", type=Path, help="keep images and runs here (default: a temporary folder)")
    parser.option("--limit", 3.0, "highest ratio to the floor, of images of 8 megapixels and more")
    parser.option("--memory", 800.0, "highest memory, in MB")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
