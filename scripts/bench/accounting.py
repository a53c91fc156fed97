"""The cost of a run's own measurement, as a share of the run's CPU time.

    python -m scripts.bench.accounting

It is found in two ways. Counted: in each run, the CPU time of the sampling threads, plus the rows times the cost of
recording one row. Compared: runs with and without measurement take turns, and the cheapest of each kind are compared,
because other programs only add time. On a machine that is not idle, trust the first.

The servers are simulated, in another process. The images are small and have many boxes, so that most work is done per
detection: this is about the worst case, because the cost is per row. The report and the annotated copies are left out:
they would hide the cost.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from rich.console import Console

from pipeline import run as runs
from pipeline.metrics.profiler import Profiler
from pipeline.metrics.stage import ASK, COLLECT, STORE, RunMetrics
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.garbage import collect_rarely
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.runtime.runtime import Runtime
from pipeline.settings import Settings
from scripts.bench import command
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
    parser = command.Options(__doc__)
    parser.option("--images", 150, "images in each run")
    parser.option("--boxes", 30, "boxes in each image")
    parser.option("--runs", 7, "runs of each kind")
    parser.option("--concurrency", 256, "questions in flight")
    parser.option("--latency", 0.05, "seconds per answer")
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
            detector_url=url,
            model_url=f"{url}/v1",
            model_concurrency=arguments.concurrency,
            annotated="none",
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
