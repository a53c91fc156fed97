"""Measure images per second by cores, and how late the event loop is that talks to the servers.

    python -m scripts.bench.cores                                     80 images of 12 megapixels on 1 and 2 cores
    python -m scripts.bench.cores --size 1920x1080 --pictures 400

Both services are simulated and answer at once, in this process. Each run is a process of its own, bound to so many
cores; the runs take turns, and each figure is a median. Images per second count from the first row to the last. The
loop sleeps 5 ms again and again: how much later than that it goes on is its lag, without the time in which Linux had no
core for its thread. A loop in a process that does nothing else shows what a busy machine adds all the same. The exit
code is 1 when the second core adds less than --scaling says, or the 99th percentile of the lag passes --lag.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.clients.detector import Detected, DetectorClient, Picture
from pipeline.metrics.profile import Profile
from pipeline.run import run
from scripts.bench import command
from scripts.bench.memory import make_pictures, parse_size
from scripts.bench.photographs import MODEL_INPUT, boxes_of
from scripts.environments import ROOT
from tests.doubles.simulated import Simulated, serve

TICK_S = 0.005


def without_core_s() -> float:
    """How long this thread has waited for a core so far (Documentation/scheduler/sched-stats.rst of Linux)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


async def look(lags: list[float]) -> None:
    """Note the lag of this loop, in seconds, until cancelled."""
    while True:
        began, waited = time.perf_counter(), without_core_s()
        await asyncio.sleep(TICK_S)
        lags.append(max(time.perf_counter() - began - TICK_S - (without_core_s() - waited), 0.0))


def inside(images: str, runs: str) -> dict[str, Any]:
    """One run in this process: seconds of its flow, and the lags of the loop that asks the detector."""
    lags: list[float] = []
    looking: list[asyncio.Task[None]] = []
    find = DetectorClient.find

    async def watched(self: DetectorClient, picture: Picture) -> Detected:
        if not looking:
            looking.append(asyncio.create_task(look(lags)))
        return await find(self, picture)

    arguments = [f"--images={images}", f"--output={runs}", "--force", "--annotated=none"]
    with mock.patch.object(DetectorClient, "find", watched):
        done = run(pipeline_settings.load(arguments), Console(file=io.StringIO()))
    phases = {phase.name: phase.end_s - phase.start_s for phase in Profile.of(done.folder).phases}
    return {"seconds": phases["flow"] + phases["start"], "lags": lags}


def measure_run(images: Path, runs: Path, cores: int, simulated: Simulated) -> dict[str, Any]:
    """What `inside` found, in a process that is bound to so many cores."""
    bound = sorted(os.sched_getaffinity(0))[:cores]
    child = subprocess.run(
        ["taskset", "-c", ",".join(map(str, bound)), sys.executable, "-m", __spec__.name, f"--inside={images}:{runs}"],
        cwd=ROOT,
        env={**os.environ, **simulated.settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise command.BenchFailed(f"the run ended with {child.returncode}:\n{child.stderr}")
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def idle_lags(seconds: float = 3.0) -> list[float]:
    """The lags of a loop that nothing else uses."""
    lags: list[float] = []

    async def for_a_while() -> None:
        looking = asyncio.create_task(look(lags))
        await asyncio.sleep(seconds)
        looking.cancel()

    asyncio.run(for_a_while())
    return lags


def percentile_ms(lags: list[float], share: float) -> float:
    """Of lags in seconds."""
    return 1000 * sorted(lags)[min(int(share * len(lags)), len(lags) - 1)]


def measure(options: argparse.Namespace) -> list[str]:
    """Run in turns, print, compare with the limits."""
    if len(os.sched_getaffinity(0)) < max(options.cores):
        raise command.BenchFailed(f"this machine has no {max(options.cores)} cores for one process")
    found: dict[int, list[dict[str, Any]]] = {cores: [] for cores in options.cores}
    with tempfile.TemporaryDirectory() as temporary, serve() as simulated:
        images = options.images or Path(temporary, "images")
        if not images.is_dir():
            make_pictures(images, options.pictures, options.size)
        simulated.detector_input, simulated.keep_bodies = MODEL_INPUT.exact, False
        simulated.boxes = lambda image: boxes_of(options.boxes, image.width, image.height)
        pictures = len(list(images.iterdir()))
        for _ in range(options.repeats):
            for cores, runs in found.items():
                runs.append(measure_run(images, Path(temporary, "runs"), cores, simulated))
    table = command.figures("cores", ("images/s", "lag p50 ms", "p99 ms", "most ms"))
    speeds, lags = {}, {}
    for cores, runs in found.items():
        speeds[cores] = statistics.median(pictures / run["seconds"] for run in runs)
        lags[cores] = [statistics.median(percentile_ms(run["lags"], share) for run in runs) for share in (0.5, 0.99, 1)]
        table.add_row(str(cores), f"{speeds[cores]:.1f}", *(f"{lag:.1f}" for lag in lags[cores]))
    idle = idle_lags()
    table.add_row("an idle loop", "", *(f"{percentile_ms(idle, share):.1f}" for share in (0.5, 0.99, 1)))
    command.make_console().print(table)
    few, many = min(speeds), max(speeds)
    gain = speeds[many] / speeds[few]
    print(f"{many} cores do {gain:.2f} times the work of {few}")
    said = [f"{gain:.2f} times: less than {options.scaling}"] if gain < options.scaling else []
    if lags[many][1] > options.lag:
        said.append(f"the 99th percentile of the lag is {lags[many][1]:.1f} ms: more than {options.lag}")
    return said


def main() -> int:
    """Measure, print, judge."""
    parser = command.Options(__doc__)
    parser.option("--pictures", 80, "images")
    parser.option("--size", "4000x3000", "of an image, in pixels", type=parse_size)
    parser.option("--boxes", 4, "boxes in each image")
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2], help="numbers of cores (default: 1 2)")
    parser.option("--repeats", 3, "runs with each number of cores")
    parser.option("--scaling", 1.8, "least gain from the fewest cores to the most")
    parser.option("--lag", 20.0, "highest 99th percentile of the lag, in ms")
    parser.add_argument("--images", type=Path, help="a folder of images (default: drawn ones)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(*options.inside.split(":"))))
        return 0
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
