"""`make profile`: run the job anew and show where its time went; or show an existing run, alone or beside another."""

from __future__ import annotations

import itertools
import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from pipeline import job as jobs
from pipeline import settings as job_settings
from pipeline.errors import InvalidSetting, NotFound, Unreadable, Unwritable
from pipeline.files import write_atomically
from pipeline.metrics.profile import FILE, Profile
from pipeline.output.run_folder import find_run
from scripts import foreground
from scripts.profile import markdown, page, terminal, trace
from scripts.profile.comparison import Comparison
from scripts.settings import JobCommand, StackSettings

INTERRUPTED, USAGE = 130, 2


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments; all others are the job's."""
    parser.add_argument("--run", dest="existing", metavar="FOLDER", help="show this run's profile; nothing is run")
    parser.add_argument("--compare", metavar="FOLDER", help="show the profile beside this run's")


def run(_: StackSettings, console: Console, *, existing: str | None, compare: str | None, job: JobCommand) -> int:
    """Profile a new run of the job, or show an `existing` run's profile.

    Returns the job's exit code, or 0 for an existing run.

    Raises:
        InvalidSetting: the job has options, but `existing` runs nothing.
        NotFound: there is no such run, or it has no profile.
    """
    settings = job.settings
    if existing is not None and job.options:
        raise InvalidSetting(f"{job.options[0]}: RUN (--run) shows an old run and starts none: drop the job's options")
    other = read(find_run(compare, settings.runs)) if compare is not None else None  # before the run takes minutes
    if existing is not None:
        show(console, find_run(existing, settings.runs), other)
        return 0
    folder = fresh_folder(settings)
    code = run_job([*job.options, "--run-name", folder.name, "--profile"])
    if code in (INTERRUPTED, USAGE) or (code and not (folder / FILE).is_file()):
        return code  # the job has printed the reason
    show(console, folder, other)
    return code


def run_job(options: list[str]) -> int:
    """Run the job as `make run` does: start the stack, run on either engine; returns the exit code."""
    return foreground.run([sys.executable, "-m", "scripts", "run", *options])


def fresh_folder(settings: job_settings.Settings) -> Path:
    """A new run's folder, so that no work is reused: the job's name and a number.

    Raises:
        NotFound: there is no such job.
    """
    name = settings.run_name or jobs.load(settings.job).name
    return next(
        folder for number in itertools.count(1) if not (folder := settings.runs / f"{name}-profile-{number}").exists()
    )


def read(folder: Path) -> Profile:
    """A run's profile.

    Raises:
        NotFound: it has no profile.
        Unreadable: its profile is of another version.
    """
    try:
        return Profile.of(folder)
    except OSError as error:
        raise NotFound(
            f"run {folder}: no profile ({FILE}: {error.strerror}): runs that were cut short or made by an older "
            "version have none; 'make profile' makes a new run"
        ) from error
    except ValueError as error:
        raise Unreadable(
            f"run {folder}: {FILE} is not a profile of this version of Spotter: 'make profile' makes a new run"
        ) from error


def show(console: Console, folder: Path, other: Profile | None) -> None:
    """Print a run's profile; write its pages and its trace.

    Raises:
        NotFound, Unreadable: it has no profile of this version.
        Unwritable: its folder cannot be written.
    """
    profile = read(folder)
    compared = Comparison(other, profile) if other is not None else None
    try:
        write(folder / FILE.parent, profile, compared)
    except OSError as error:
        raise Unwritable(f"run {folder}: its profile's pages cannot be written: {error.strerror or error}") from error
    terminal.show(console, profile)
    if compared is not None:
        terminal.show_comparison(console, compared)
    place = Path(os.path.relpath(folder))
    shown = place if ".." not in place.parts else folder
    for name, text in (
        ("page", f"{shown / FILE.parent}/profile.html, and profile.md with a diagram"),
        ("trace", f"{shown / FILE.parent}/trace.json, for https://ui.perfetto.dev"),
        ("next", f"change a setting, then: make profile COMPARE={shown}"),
    ):
        console.print(f"{name + ':':8}{text}", soft_wrap=True, highlight=False, markup=False)


def write(place: Path, profile: Profile, compared: Comparison | None) -> None:
    """Write the pages and the trace beside profile.json.

    Raises:
        OSError: one cannot be written.
    """
    try:
        daft = (place / "daft.md").read_text()
    except FileNotFoundError:  # only a profiled run has it
        daft = None
    write_atomically(place / "profile.md", markdown.page(profile, daft, compared).encode())
    write_atomically(place / "profile.html", page.page(profile, compared).encode())
    write_atomically(place / "trace.json", trace.trace(profile))
