"""`merge`: join the shards of a run into one run's folder."""

from __future__ import annotations

from argparse import ArgumentParser

from rich.console import Console

from pipeline import settings as job_settings
from pipeline.output.manifest import COMPLETE
from pipeline.results.merge import merge
from pipeline.runtime import display
from scripts.settings import StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    text = "the run's name: that of its shards' folders without -2-of-8 (default: the only run with shards)"
    parser.add_argument("--run", dest="name", metavar="NAME", help=text)


def run(_: StackSettings, console: Console, *, name: str | None) -> int:
    """Merge the shards in the output folder; 1 if images are missing.

    Raises:
        UsageError: see `merge`.
    """
    settings = job_settings.load([])
    with display.waiting(console, f"merging the shards in {settings.runs}"):
        done = merge(settings, name)
    display.show_summary(console, done.manifest)
    display.show_next(console, done.folder, done.manifest)
    return 0 if done.status == COMPLETE else 1
