"""Take a service away in the middle of a run, in containers, and check that every row is answered.

    python -m scripts.bench.outages
    python -m scripts.bench.outages --service vllm --fault cut --seconds 60 --pictures 600

A stack of its own, with the tiny models, starts beside any running one and is removed at the end. One run without a
fault shows how long the job takes; then each case is a run of its own over the same drawn images. The exit code is 1
when a row is lost or not answered.

    kill    SIGKILL to every process of the container; Docker restarts it
    freeze  SIGSTOP to every process of the container: its connections stay open, nobody answers
    cut     the container is taken off its network and put back: packets are lost, no connection is closed
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scripts import settings as stack_settings
from scripts.bench import command
from scripts.commands import clean
from scripts.commands.up import up
from scripts.settings import load_job
from tests.outages import FAULTS, SERVICES, Bench, Fault, draw


def measure(bench: Bench, folder: Path, options: argparse.Namespace, console: Console) -> list[str]:
    """Run each case over images drawn into a folder, and print a table; one line for each incomplete run.

    `slowest` is the longest answered request to the model.
    """
    heads = ("run", "pictures", "dogs", "answered", "retries", "slowest")
    table, faults = command.figures("service, fault", heads, "outcome"), list[str]()
    draw(folder / "images", options.pictures)
    services, kinds = options.service or SERVICES, options.fault or tuple(FAULTS)
    cases = [("none", "none"), *((service, kind) for kind in kinds for service in services)]
    for number, (service, kind) in enumerate(cases):
        wanted = {service: [Fault(kind, 0.0 if kind == "kill" else options.seconds)]} if kind in FAULTS else {}
        result = bench.run(folder / "images", folder / str(number), wanted)
        wrong, case = result.shortfall(options.pictures), f"{service}, {kind}"
        if wrong:
            print(result.output, file=sys.stderr)
            faults.append(f"{case}: {wrong}")
        counts = (result.pictures, result.detections, result.answered, result.retries)
        times = (f"{result.seconds:.0f} s", f"{result.slowest_s:.1f} s")
        table.add_row(case, times[0], *map(str, counts), times[1], wrong or "complete")
        print(f"{case}: {times[0]}, {wrong or 'complete'}", flush=True)
    console.print(table)
    return faults


def on_own_stack(options: argparse.Namespace, console: Console) -> list[str]:
    """Measure on a stack of its own, which is removed at the end."""
    settings = stack_settings.load()
    own = {"engine": "compose", "device": "cpu", "preset": "cpu", "state": settings.state / "outages"}
    settings = settings.model_copy(update=own)
    with tempfile.TemporaryDirectory(prefix="outages-") as folder:
        try:
            up(settings, console, load_job())
            return measure(Bench(settings), Path(folder), options, console)
        finally:
            clean.run(settings, Console(quiet=True), caches=True, confirmed=True)
            shutil.rmtree(settings.state)


def main() -> int:
    """Print a line for each case and a table; 0 when every row of every run was answered."""
    parser = command.Options(__doc__)
    parser.add_argument("--service", choices=SERVICES, action="append", help="may be repeated (default: each)")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="may be repeated (default: each)")
    parser.option("--seconds", 60.0, "how long a service is frozen or cut off")
    parser.option("--pictures", 600, "images in each run")
    options = parser.parse_args()
    return command.run(lambda: on_own_stack(options, command.make_console()))


if __name__ == "__main__":
    sys.exit(main())
