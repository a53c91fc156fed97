"""What a run's measuring of itself costs, as a share of the run's CPU time.

    python -m scripts.bench.accounting

Two ways. Counted: in each run, the CPU time of the threads that watch, and that of the stages' notes at what a note
takes. Compared: runs with and without it take turns; the cheapest of each kind are compared, since another program on
the machine only ever adds. On a machine that is not idle the first is the one to trust.

The servers are simulated, in another process. The images are small and have many boxes, so that nearly all of the work
is what a detection costs: about the worst case for accounting, whose price is by the row. The report is left out, as it
would hide the difference.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from pydantic import AnyHttpUrl
from rich.console import Console

from pipeline import run as runs
from pipeline.__main__ import collect_rarely
from pipeline.metrics.profiler import Profiler
from pipeline.metrics.stage import ASK, COLLECT, STORE, RunMetrics
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.runtime.runtime import Runtime
from pipeline.settings import Settings
from tests.doubles.own_process import simulated_process
from tests.pictures import write_plain


def cpu_of(settings: Settings, measure: bool) -> tuple[float, int, Profiler]:
    """CPU seconds of one run, the detections that it answered, and its profiler."""
    made: list[Profiler] = []

    def make(enabled: bool) -> Profiler:
        made.append(Profiler(enabled))
        return made[0]

    began = time.process_time()
    with mock.patch.object(runs, "Profiler", make), mock.patch.object(runs, "write_report"):
        done = runs.run(settings, Console(file=io.StringIO()), measure=measure)
    return time.process_time() - began, done.answered, made[0]


def record_s(rows: int = 20_000) -> float:
    """CPU seconds of all that is recorded of one detection, from the model to the tables."""
    token = CancellationToken()
    runtime = Runtime(MemoryBudget(1, token), token, RunMetrics.of(1, 1, 1))
    runtime.metrics.traces.bound = ""  # as for most rows of a run
    ask, store, collect = (runtime.metrics.stages[name] for name in (ASK, STORE, COLLECT))
    began = time.thread_time()
    for number in range(rows):
        ask.end(ask.begin(), 1, 1)
        if runtime.metrics.traces.samples("0"):
            raise AssertionError("nothing is sampled")
        if number % 32 == 0:  # a batch of questions
            ask.count(32, 0, 1, 1)
            store.arrive(began, 32)
        with runtime.step(STORE, "0", 0) as step:
            step.bytes_in = 1
        collect.end(collect.begin())
    return (time.thread_time() - began) / rows


def main() -> None:
    """Print CPU time a row of both, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150, help="in each run (default: %(default)s)")
    parser.add_argument("--boxes", type=int, default=30, help="in each image (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="of each kind (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=256, help="of the model (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds per answer (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["DO_NOT_TRACK"], os.environ["DAFT_PROGRESS_BAR"] = "true", "0"
    collect_rarely()  # as the pipeline does
    with (
        simulated_process(latency=arguments.latency, boxes=arguments.boxes) as url,
        tempfile.TemporaryDirectory() as name,
    ):
        images = Path(name, "images")
        write_plain(images, arguments.images, (400, 300))
        settings = Settings(
            images=str(images),
            output=str(Path(name, "runs")),
            detector_url=AnyHttpUrl(url),
            model_url=AnyHttpUrl(f"{url}/v1"),
            model_concurrency=arguments.concurrency,
            force=True,
        )
        without, measured, shares = [], [], []
        for number in range(arguments.runs + 1):
            cpu_s, rows, _ = cpu_of(settings, measure=False)
            more_cpu_s, _, profiler = cpu_of(settings, measure=True)
            if number:  # the first of each warms up
                without.append(cpu_s / rows)
                measured.append(more_cpu_s / rows)
                shares.append((profiler.cpu_s + rows * record_s()) / more_cpu_s)
    print(f"a detection: {min(measured) * 1e6:.0f} us of CPU, without accounting {min(without) * 1e6:.0f} us")
    print(f"accounting, counted: {statistics.median(shares):.1%} of the run's CPU time ({len(shares)} runs)")
    print(f"accounting, compared: {min(measured) / min(without) - 1:+.1%} (cheapest of {len(shares)} runs each)")


if __name__ == "__main__":
    main()
