"""Climb the ladder: the same job written five times (examples/ladder), timed and watched under the same servers.

First in the blog's shape, on simulated servers that take as long as the blog's did (scripts/bench/blog_shape.py says
how that is known), then on the running stack, where there is one. Each rung runs in a process of its own. A recorder
before the servers sees what each rung gives them to do, also where Daft cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import UsageError
from pipeline.settings import Settings
from scripts.bench import blog_shape, recorder, running
from scripts.bench.blog_shape import Shape
from scripts.bench.recorder import Recorder, Span
from scripts.environments import ROOT
from tests.doubles.simulated import serve

STEPS = {
    "step1_massive_udf": "1 one massive UDF",
    "step2_split_udfs": "2 split UDFs",
    "step3_native": "3 native expressions",
    "step4_tuned": "4 tuned",
    "step5_spotter": "5 Spotter",
}
# What overlaps at all: for the others a detector that takes images together is as good as one that does not.
OVERLAPPING = ("step4_tuned", "step5_spotter")

# For a rung on the running stack: the first takes seconds for each image, one after the other.
REAL_LIMIT_S = 1800.0

# Columns of the timeline of the slowest rung.
COLUMNS = 72


class RungFailed(Exception):
    """A rung did not end well; the message says which and why."""


@dataclass
class Climbed:
    """What one rung did."""

    step: str
    rows: list[tuple[str, tuple[int, ...], str]]
    seconds: float
    startup_s: float
    """Imports, clients, Spotter's questions before a run and its report after: all that is not in `seconds`."""
    cpu_s: float
    operators: dict[str, float]
    detector: list[Span]
    model: list[Span]


def comparable(rows: list[dict[str, Any]]) -> list[tuple[str, tuple[int, ...], str]]:
    """A row for each dog that does not depend on how it was found: file name, box in whole pixels, breed."""
    return sorted((Path(row["path"]).name, tuple(row["box"]), row["breed"]) for row in rows)


@dataclass(frozen=True, slots=True)
class Under:
    """What rungs are climbed under: images, servers, and the most that one may take."""

    images: Path
    detector_url: str
    model_url: str
    """Without a path."""
    model: str
    limit_s: float
    key: dict[str, str] = field(default_factory=dict)
    """The variable with the model server's key, if it asks for one."""


def climb(step: str, under: Under, detector: Recorder, model: Recorder) -> Climbed:
    """Run one rung, in a process of its own.

    Raises:
        RungFailed: it ended with an error, or did not end in time.
    """
    detector.spans.clear()
    model.spans.clear()
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "found.json")
        command = [sys.executable, "-m", f"examples.ladder.{step}", str(under.images), "--json", str(result)]
        command += ["--detector-url", detector.url, "--model-url", f"{model.url}/v1", "--model", under.model]
        # Not in the repository, and without the job's variables: what the user has set is for another job.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPOTTER_")}
        started = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env={**environment, **under.key, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=under.limit_s,
            )
        except subprocess.TimeoutExpired:
            raise RungFailed(f"{STEPS[step]}: not done after {under.limit_s:.0f} s") from None
        total = time.monotonic() - started
        if done.returncode or not result.is_file():
            raise RungFailed(f"{STEPS[step]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(result.read_text())
    return Climbed(
        step,
        comparable(found["rows"]),
        found["seconds"],
        total - found["seconds"],
        found["cpu_s"],
        found["operators"],
        list(detector.spans),
        list(model.spans),
    )


def climb_all(steps: list[str], under: Under, console: Console) -> list[Climbed]:
    """Run rungs one after the other, under the same servers.

    Raises:
        RungFailed: one did not end well.
    """
    climbed = []
    with recorder.record(under.detector_url, under.model_url) as (detector, model):
        for step in steps:
            with console.status(f"{STEPS[step]} ..."):
                climbed.append(climb(step, under, detector, model))
            console.print(f"  {STEPS[step]}: {len(climbed[-1].rows)} dogs in {climbed[-1].seconds:.2f} s")
    return climbed


def on_blog_shape(steps: list[str], of: Shape, console: Console) -> list[Climbed]:
    """Climb on simulated servers with these capacities.

    Raises:
        RungFailed: a rung did not end well.
    """
    with tempfile.TemporaryDirectory() as folder, serve(blog_shape.servers(of)) as simulated:
        blog_shape.copy_pictures(Path(folder))
        under = Under(Path(folder), simulated.url, simulated.url, "simulated", 60 + 2 * of.one_by_one_s)
        return climb_all(steps, under, console)


def differences(climbed: list[Climbed]) -> list[str]:
    """Which rungs have other rows than the first, and how many."""
    first = set(climbed[0].rows)
    counts = {STEPS[rung.step]: len(first ^ set(rung.rows)) for rung in climbed[1:]}
    return [f"{name}: {count} rows differ from those of rung 1" for name, count in counts.items() if count]


def at_server(spans: list[Span], seconds: float) -> str:
    """How busy a server was, in words: share of the time, mean and most requests in flight."""
    return (
        f"{min(recorder.busy_s(spans) / seconds, 1):4.0%} {recorder.request_s(spans) / seconds:5.1f} "
        f"{recorder.peak(spans):3d}"
    )


def table(climbed: list[Climbed], first_s: float) -> Table:
    """A line for each rung."""
    shown = Table("rung", box=None, header_style="bold", pad_edge=False)
    for heading in ("wall", "faster", "detector: busy mean most", "model: busy mean most", "CPU", "beside it"):
        shown.add_column(heading, justify="right")
    for rung in climbed:
        shown.add_row(
            STEPS[rung.step],
            f"{rung.seconds:.2f} s",
            f"{first_s / rung.seconds:.1f}x",
            at_server(rung.detector, rung.seconds),
            at_server(rung.model, rung.seconds),
            f"{rung.cpu_s:.1f} s",
            f"{rung.startup_s:.1f} s",
        )
    return shown


def timelines(climbed: list[Climbed]) -> Iterator[str]:
    """What the servers had to do over time, two lines for each rung; all rungs have one scale of time."""
    longest = max(rung.seconds for rung in climbed)
    most = {who: max(recorder.peak(getattr(rung, who)) for rung in climbed) for who in ("detector", "model")}
    yield (
        f"requests at the servers over time: a column is {longest / COLUMNS:.2g} s, a full block "
        f"{most['detector']} images or {most['model']} questions"
    )
    for rung in climbed:
        begin = min((span.start_s for span in rung.detector), default=0.0)
        columns = max(round(COLUMNS * rung.seconds / longest), 1)
        for who in most:
            counts = recorder.in_flight(getattr(rung, who), begin, begin + rung.seconds, columns)
            yield f"{STEPS[rung.step] if who == 'detector' else '':22}{who:9}|{recorder.strip(counts, most[who])}|"


def daft_says(climbed: list[Climbed]) -> Iterator[str]:
    """Daft's own profile of each rung: its slowest operators."""
    yield "Daft's own profile, seconds in its slowest operators (it does not see asynchronous ones wait):"
    for rung in climbed:
        slowest = sorted(rung.operators.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name[:24]} {seconds:.2f}" for name, seconds in slowest)
        yield f"{STEPS[rung.step]:22}{shown or 'see `make profile`'}"


def explain(steps: list[str]) -> Iterator[str]:
    """What changed in each rung, and why that helps or not: the first paragraph of its code."""
    for step in steps:
        source = (ROOT / "examples" / "ladder" / f"{step}.py").read_text()
        yield source.split('"""')[1].split("\n\n")[0].replace("\n", " ")


def critical_path(of: Shape, last: Climbed) -> str:
    """What no scheduling can beat, and how near the last rung came."""
    return (
        f"critical path: {of.critical_path_s:.2f} s = {of.detector.makespan(len(blog_shape.PICTURES)):.2f} s for "
        f"{len(blog_shape.PICTURES)} images, {of.detector.at_once} at once, + {of.model.seconds:.2f} s for the answer "
        f"about the last one's dog; {STEPS[last.step]} took {last.seconds / of.critical_path_s:.2f} times that"
    )


def show(heading: str, climbed: list[Climbed], first_s: float, console: Console) -> None:
    """Print what rungs did."""
    console.print(f"\n{heading}", style="bold")
    console.print(table(climbed, first_s))
    console.print()
    for line in timelines(climbed):
        console.print(line)


def blog(scale: float, console: Console) -> list[Climbed]:
    """Climb in the blog's shape: all rungs with a detector that takes images together, then, with one that does not,
    those that overlap at all.

    Raises:
        RungFailed: a rung did not end well.
    """
    together, serial = blog_shape.shape(scale=scale), blog_shape.shape(1, scale)
    console.print(
        f"the blog's shape: {len(blog_shape.PICTURES)} images, {blog_shape.DOGS} dogs, {together.detector.seconds:.2f} "
        f"s for an image, {together.model.seconds:.2f} s for an answer; about "
        f"{3.2 * together.one_by_one_s + 2.5 * serial.critical_path_s + 30:.0f} s"
    )
    climbed = on_blog_shape(list(STEPS), together, console)
    first_s = climbed[0].seconds
    show(f"A detector that takes up to {blog_shape.TOGETHER} images together", climbed, first_s, console)
    console.print()
    for line in (*daft_says(climbed), "", *explain(list(STEPS)), "", critical_path(together, climbed[-1])):
        console.print(line)
    console.print("\nthe same with a detector that takes one image at a time, as the blog's:")
    alone = on_blog_shape(list(OVERLAPPING), serial, console)
    show("A detector that takes one image at a time (rungs 1 to 3 ask it no other way)", alone, first_s, console)
    console.print(critical_path(serial, alone[-1]))
    return [*climbed, *alone]


def real(images: Path, settings: Settings, name: str, console: Console) -> list[Climbed]:
    """Climb on the running stack.

    Raises:
        RungFailed: a rung did not end well.
    """
    console.print(f"\nthe running stack: {images}, model {name}")
    urls = running.origin(settings.detector_url), running.origin(settings.model_url)
    under = Under(images, *urls, name, REAL_LIMIT_S, running.key_variable(settings))
    climbed = climb_all(list(STEPS), under, console)
    show(f"The running stack, {len(climbed[0].rows)} dogs", climbed, climbed[0].seconds, console)
    console.print()
    for line in daft_says(climbed):
        console.print(line)
    return climbed


def main(options: list[str]) -> int:
    """0: all rungs gave the same rows. 1: one failed, or gave others. 2: a usage error. 130: interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the blog's times: 0.1 is ten times faster (default: 1)"
    )
    parser.add_argument(
        "--only", choices=("blog", "real"), help="by default the blog's shape, then the stack if it is up"
    )
    parser.add_argument(
        "--images", type=Path, default=ROOT / "samples" / "images", help="for the running stack (default: the bundled)"
    )
    arguments = parser.parse_args(options)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # for a file or a pipe nothing needs to be folded
    try:
        if not arguments.scale > 0:
            raise UsageError(f"--scale {arguments.scale:g} will not do: give a number above 0")
        settings = running.settings()
        wrong = []
        if arguments.only != "real":
            wrong += differences(blog(arguments.scale, console))
        if arguments.only != "blog":
            try:
                model = running.find(settings).model
            except UsageError as error:
                if arguments.only == "real":
                    raise
                console.print(f"\nnot climbed on real models: {error}")
            else:
                wrong += differences(real(arguments.images.resolve(), settings, model, console))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RungFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
