"""`export`: write a finished run in the format of another tool."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from pipeline import settings as job_settings
from pipeline.output.run_folder import find_run
from pipeline.results.export import export
from pipeline.results.exports import EXPORTS
from pipeline.results.finished_run import read_run
from pipeline.runtime.terminal import escaped
from scripts.settings import StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--format", required=True, choices=EXPORTS, help="the format to write")
    parser.add_argument("--run", default="latest", metavar="FOLDER", help="the run, by folder or name (default latest)")
    parser.add_argument("--output", metavar="FOLDER", help="a new folder (default exports/RUN-FORMAT)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in that folder")


def run(_: StackSettings, console: Console, *, format: str, run: str, output: str | None, force: bool) -> None:
    """Write the export, and say what it holds and how to read it."""
    found = read_run(find_run(run, job_settings.load([]).runs))
    folder = Path(output).expanduser() if output else Path("exports", f"{found.folder.name}-{format}")
    tally = export(found, format, folder, force=force).tally
    lines = [f"{folder}: {tally.images} images, {tally.detections} detections of run {found.folder.name}"]
    lines += [f"left out: {reason}: {number}" for reason, number in tally.left_out.items()]
    lines += [f"next: {EXPORTS[format].next.replace('FOLDER', str(folder))}"]
    for line in lines:
        console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
