"""Several model servers against the first of them alone, on the running stack, in turns.

    STACK_REPLICAS=2 make up
    STACK_REPLICAS=2 .spotter/envs/bench/bin/python -m scripts.bench.replicas

On a CPU the servers share the cores: the ratio says what the second one costs, not what a second GPU gains. The exit
code is 1 when a question fails.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from pipeline.job import load as load_job
from pipeline.locations import addresses
from scripts.bench import command, running
from scripts.bench.compare import write_crops
from scripts.bench.sweep import Sweep


def measure(options: argparse.Namespace) -> list[str]:
    """Print the answers a second of both, and their ratio; a line when questions failed."""
    settings = running.settings()
    urls = addresses(settings.model_url)
    if len(urls) < 2:
        raise command.BenchFailed(f"{urls[0]} is the only server: start several with STACK_REPLICAS=2 or STACK_GPUS")
    job, model = load_job(settings.job), running.find(settings).model
    rates: dict[str, list[float]] = {"one server": [], f"{len(urls)} servers": []}
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        write_crops(Path(scratch))
        asked = (urls[0], settings.model_url)
        sweeps = [Sweep(settings.model_copy(update={"model_url": each}), job, model, Path(scratch)) for each in asked]
        for _ in range(options.rounds):
            for name, sweep in zip(rates, sweeps, strict=True):
                level = sweep.measure(options.concurrency, options.rows)
                rates[name].append(level.rows_per_s)
                failed += level.failed
                print(f"{name}: {level.rows_per_s:.1f} answers/s, median {level.latency_s:.2f} s", flush=True)
    one, several = (statistics.median(each) for each in rates.values())
    print(f"medians: {one:.1f} and {several:.1f} answers/s, ratio {several / one:.2f}")
    return [f"{failed} questions failed"] if failed else []


def main() -> int:
    """Returns the exit code of `command.run`."""
    parser = command.Options(__doc__)
    parser.option("--rounds", 5, "turns of each")
    parser.option("--rows", 200, "questions in a turn")
    parser.option("--concurrency", 64, "questions in flight at all servers together")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
