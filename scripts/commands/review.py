"""`review`: write the doubtful answers of a finished run as tasks of Label Studio, to be corrected by people."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from rich.console import Console

from pipeline import settings as job_settings
from pipeline.output.run_folder import find_run
from pipeline.results.doubt import doubtful
from pipeline.results.export import export
from pipeline.results.exports import EXPORTS
from pipeline.results.finished_run import read_run
from pipeline.runtime.terminal import escaped
from scripts.settings import StackSettings

FORMAT = "labelstudio"
BELOW = 0.8


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--run", default="latest", metavar="FOLDER", help="the run, by folder or name (default latest)")
    parser.add_argument(
        "--below", type=share, default=BELOW, help=f"take answers with a lower confidence (default {BELOW})"
    )
    parser.add_argument("--output", metavar="FOLDER", help="a new folder (default exports/RUN-review)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in that folder")


def run(_: StackSettings, console: Console, *, run: str, below: float, output: str | None, force: bool) -> None:
    """Write the tasks, and say what to do with them."""
    found = read_run(find_run(run, job_settings.load([]).runs))
    chosen, rows = doubtful(found, below)
    lines = [f"{rows} of {found.detections.num_rows} rows have a confidence below {below:g}"]
    if rows:
        folder = Path(output).expanduser() if output else Path("exports", f"{found.folder.name}-review")
        tally = export(chosen, FORMAT, folder, force=force).tally
        lines += [f"{folder}: {tally.images} images, {tally.detections} detections, the most doubtful first"]
        lines += [f"left out: {reason}: {number}" for reason, number in tally.left_out.items()]
        lines += [f"next: {EXPORTS[FORMAT].next.replace('FOLDER', str(folder))}"]
    for line in lines:
        console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
