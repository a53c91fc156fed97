"""kill -9 the pipeline at random moments, run it again, and check that every row is there once.

    python -m scripts.bench.kills
    python -m scripts.bench.kills --kills 5 --pictures 500 --seed 7

Each kill is a run of its own over the same images, with simulated services, at a moment between the start of the
process and its end. A kill before the first commit shows little and does not count. The exit code is 1 when a row is
missing or duplicated, a crop is damaged, a question of a committed part is asked again, or more other questions are
repeated than one part and the requests in flight can hold.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from scripts.bench import command
from tests.doubles.simulated import serve
from tests.killed_runs import PART, Resumed, after, kill_and_resume
from tests.pictures import write_plain


def measure(options: argparse.Namespace) -> list[str]:
    """Kill and resume runs over the same images; one line for each run that went wrong."""
    draw, wrong = random.Random(options.seed), list[str]()
    with tempfile.TemporaryDirectory() as temporary, serve() as simulated:
        images, runs = Path(temporary, "images"), Path(temporary, "runs")
        write_plain(images, options.pictures)
        simulated.latency_s = options.latency

        def run(name: str, limit_s: float) -> Resumed:
            due = after(limit_s)
            done = kill_and_resume(simulated, images, runs / name, due, options.part)
            moment = f"killed after {done.seconds:5.1f} s" if done.killed else f"ended after {done.seconds:6.1f} s"
            said = "; ".join(done.wrong) or "every row once"
            print(f"{name:8} {moment}  {done.committed:3} parts  {done.repeated:5} asked again  {said}", flush=True)
            wrong.extend(f"{name}: {each}" for each in done.wrong)
            return done

        latest, kills, number = run("whole", float("inf")).seconds, 0, 0
        while kills < options.kills:
            number += 1
            done = run(f"kill-{number}", draw.uniform(0, latest))
            kills += done.killed and done.committed > 0
            if not done.killed:  # quicker than the run before: draw from its time
                latest = done.seconds
    print(f"{kills} kills counted, {number + 1} runs, {len(wrong)} faults")
    return wrong


def main() -> int:
    """Kill, resume, report."""
    parser = command.Options(__doc__)
    parser.option("--kills", 20, "kills after a commit")
    parser.option("--pictures", 3000, "images in each run")
    parser.option("--part", PART, "images in a part")
    parser.option("--latency", 0.02, "seconds per answer of both services")
    parser.option("--seed", 0, "seed of the moments")
    options = parser.parse_args()
    if options.pictures < 2 * options.part:
        parser.error(f"--pictures {options.pictures}: give at least two parts of --part {options.part}")
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
