"""Climb the ladder: the same job written five times (examples/ladder), timed and recorded with the same servers.

First with simulated servers as slow as the blog's (tests/doubles/blog_shape.py derives their times), then on the
running stack, if there is one. Each rung runs in a process of its own. A recorder in front of the servers shows the
requests of each rung, also those that Daft cannot see.
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

from pipeline.errors import InvalidSetting
from pipeline.settings import Settings
from scripts.bench import command, running
from scripts.environments import ROOT
from tests.doubles import blog_shape, recorder
from tests.doubles.blog_shape import Shape
from tests.doubles.recorder import Recorder, Span
from tests.doubles.simulated import serve

STEPS = {
    "step1_massive_udf": "1 one massive UDF",
    "step2_split_udfs": "2 split UDFs",
    "step3_native": "3 native expressions",
    "step4_tuned": "4 tuned",
    "step5_spotter": "5 Spotter",
}
# Rungs with several requests in flight: the others gain nothing from a detector that takes images together.
OVERLAPPING = ("step4_tuned", "step5_spotter")

# Longest time of a rung on the running stack: the first takes seconds for each image, one after the other.
REAL_LIMIT_S = 1800.0

# Columns of the timeline of the slowest rung.
COLUMNS = 72

Dog = tuple[str, tuple[int, ...], str]
"""File name, box in whole pixels, breed."""


class RungFailed(command.BenchFailed):
    """A rung failed; the message says which and why."""


@dataclass
class Climbed:
    """The result of one rung."""

    step: str
    rows: list[Dog]
    """Sorted, so that they do not depend on how they were found."""
    seconds: float
    startup_s: float
    """Time outside `seconds`: imports, clients, Spotter's probe before a run and its report after."""
    cpu_s: float
    operators: dict[str, float]
    detector: list[Span]
    model: list[Span]


@dataclass(frozen=True, slots=True)
class Under:
    """The conditions of a climb: images, servers, and the longest time of a rung."""

    images: Path
    detector_url: str
    model_url: str
    """Without a path."""
    model: str
    limit_s: float
    key: dict[str, str] = field(default_factory=dict)
    """The variable with the model server's key, if it needs one."""


def climb(step: str, under: Under, detector: Recorder, model: Recorder) -> Climbed:
    """Run one rung, in a process of its own.

    Raises:
        RungFailed: it ended with an error, or did not end in time.
    """
    detector.spans.clear()
    model.spans.clear()
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "found.json")
        rung = [sys.executable, "-m", f"examples.ladder.{step}", str(under.images), "--json", str(result)]
        rung += ["--detector-url", detector.url, "--model-url", f"{model.url}/v1", "--model", under.model]
        # Outside the repository and without the job's variables: the user has set them for another job.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPOTTER_")}
        environment |= {**under.key, "PYTHONPATH": str(ROOT)}
        started = time.monotonic()
        try:
            done = subprocess.run(
                rung, cwd=scratch, env=environment, capture_output=True, text=True, timeout=under.limit_s
            )
        except subprocess.TimeoutExpired:
            raise RungFailed(f"{STEPS[step]}: not done after {under.limit_s:.0f} s") from None
        total = time.monotonic() - started
        if done.returncode or not result.is_file():
            raise RungFailed(f"{STEPS[step]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
    rows = sorted((Path(row["path"]).name, tuple(row["box"]), row["breed"]) for row in found["rows"])
    taken = {"seconds": found["seconds"], "startup_s": total - found["seconds"], "cpu_s": found["cpu_s"]}
    return Climbed(
        step, rows, **taken, operators=found["operators"], detector=list(detector.spans), model=list(model.spans)
    )


def climb_all(steps: list[str], under: Under, console: Console) -> list[Climbed]:
    """Run rungs one after the other, with the same servers.

    Raises:
        RungFailed: one failed.
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
        RungFailed: a rung failed.
    """
    with tempfile.TemporaryDirectory() as folder, serve(blog_shape.servers(of)) as simulated:
        blog_shape.copy_pictures(Path(folder))
        under = Under(Path(folder), simulated.url, simulated.url, "simulated", 60 + 2 * of.one_by_one_s)
        return climb_all(steps, under, console)


def differences(climbed: list[Climbed]) -> list[str]:
    """One line for each rung whose rows differ from those of the first."""
    first = set(climbed[0].rows)
    counts = {STEPS[rung.step]: len(first ^ set(rung.rows)) for rung in climbed[1:]}
    return [f"{name}: {count} rows differ from those of rung 1" for name, count in counts.items() if count]


def at_server(spans: list[Span], seconds: float) -> str:
    """How busy a server was: share of the time, mean and most requests in flight."""
    return (
        f"{min(recorder.busy_s(spans) / seconds, 1):4.0%} {recorder.request_s(spans) / seconds:5.1f} "
        f"{recorder.peak(spans):3d}"
    )


def table(climbed: list[Climbed], first_s: float) -> Table:
    """A line for each rung."""
    heads = ("wall", "faster", "detector: busy mean most", "model: busy mean most", "CPU", "beside it")
    shown = command.figures("rung", heads)
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
    """Requests in flight over time, two lines for each rung; all rungs share one time scale."""
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
    """The slowest operators of each rung, as Daft's own profile has them."""
    yield "Daft's own profile, seconds in its slowest operators (it does not see asynchronous ones wait):"
    for rung in climbed:
        slowest = sorted(rung.operators.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name[:24]} {seconds:.2f}" for name, seconds in slowest)
        yield f"{STEPS[rung.step]:22}{shown or 'see `make profile`'}"


def explain(steps: list[str]) -> Iterator[str]:
    """What changed in each rung, and why it helps or not: the first paragraph of its code."""
    for step in steps:
        source = (ROOT / "examples" / "ladder" / f"{step}.py").read_text()
        yield source.split('"""')[1].split("\n\n")[0].replace("\n", " ")


def critical_path(of: Shape, last: Climbed) -> str:
    """The time that no scheduling can beat, and how near the last rung came."""
    return (
        f"critical path: {of.critical_path_s:.2f} s = {of.detector.makespan(len(blog_shape.PICTURES)):.2f} s for "
        f"{len(blog_shape.PICTURES)} images, {of.detector.at_once} at once, + {of.model.seconds:.2f} s for the answer "
        f"about the last one's dog; {STEPS[last.step]} took {last.seconds / of.critical_path_s:.2f} times that"
    )


def show(heading: str, climbed: list[Climbed], first_s: float, console: Console) -> None:
    """Print the table and the timelines of some rungs."""
    console.print(f"\n{heading}", style="bold")
    console.print(table(climbed, first_s))
    console.print("", *timelines(climbed), sep="\n")


def blog(scale: float, console: Console) -> list[Climbed]:
    """Climb in the blog's shape: all rungs with a detector that takes images together, then the OVERLAPPING ones with a
    detector that does not.

    Raises:
        RungFailed: a rung failed.
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
    lessons = (*daft_says(climbed), "", *explain(list(STEPS)), "", critical_path(together, climbed[-1]))
    console.print("", *lessons, sep="\n")
    console.print("\nthe same with a detector that takes one image at a time, as the blog's:")
    alone = on_blog_shape(list(OVERLAPPING), serial, console)
    show("A detector that takes one image at a time (rungs 1 to 3 ask it no other way)", alone, first_s, console)
    console.print(critical_path(serial, alone[-1]))
    return [*climbed, *alone]


def real(images: Path, settings: Settings, name: str, console: Console) -> list[Climbed]:
    """Climb on the running stack.

    Raises:
        RungFailed: a rung failed.
    """
    console.print(f"\nthe running stack: {images}, model {name}")
    urls = running.origin(settings.detector_url), running.origin(settings.model_url)
    under = Under(images, *urls, name, REAL_LIMIT_S, running.key_variable(settings))
    climbed = climb_all(list(STEPS), under, console)
    show(f"The running stack, {len(climbed[0].rows)} dogs", climbed, climbed[0].seconds, console)
    console.print("", *daft_says(climbed), sep="\n")
    return climbed


def measure(options: argparse.Namespace, console: Console) -> list[str]:
    """Climb on both kinds of servers; one line for each rung with other rows than the first."""
    if not options.scale > 0:
        raise InvalidSetting(f"--scale {options.scale:g}: expected a number above 0")
    settings = running.settings()
    wrong = differences(blog(options.scale, console)) if options.only != "real" else []
    if options.only != "blog" and (model := running.find_model(settings, console, options.only == "real")):
        wrong += differences(real(options.images.resolve(), settings, model, console))
    return wrong


def main(given: list[str]) -> int:
    """Returns the exit code of `command.run`."""
    parser = command.Options(__doc__)
    parser.option("--scale", 1.0, "factor on the blog's times: 0.1 is ten times faster")
    parser.add_argument("--only", choices=("blog", "real"), help="one of the kinds of servers (default: both, if up)")
    parser.option("--images", ROOT / "samples" / "images", "folder of images for the running stack", type=Path)
    options = parser.parse_args(given)
    return command.run(lambda: measure(options, command.make_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
