"""`estimate`: what a run would cost, by the last run of its job; asks no service."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from pipeline import job as jobs
from pipeline.errors import NotFound, Unreadable
from pipeline.output.estimate import estimate, lines
from pipeline.output.manifest import COMPLETE
from pipeline.output.run_folder import read_manifest
from pipeline.runtime.terminal import escaped
from pipeline.sources.inputs import InputColumns
from pipeline.sources.listing import list_images
from pipeline.sources.objects import Objects
from pipeline.sources.shards import share
from scripts.settings import JobCommand, StackSettings


def last_run(runs: Path, job: str) -> Path:
    """The newest complete run of a job that has images.

    Raises:
        NotFound: there is none.
    """
    found = []
    for folder in runs.iterdir() if runs.is_dir() else ():
        manifest = None if folder.is_symlink() else read_manifest(folder)
        if manifest and manifest["status"] == COMPLETE and manifest["job"]["name"] == job:
            found.append((manifest["started"], folder))
    if not found:
        raise NotFound(f"no complete run of job {job} in {runs}: make one on a few images first, `make run LIMIT=50`")
    return max(found)[1]


def run(_: StackSettings, console: Console, *, job: JobCommand) -> None:
    """Print the estimate for all images of the settings' place.

    Raises:
        NotFound: no image, or no run to go by.
        Unreadable: that run cannot be read.
    """
    settings = job.settings
    asked = jobs.load(settings.job)
    folder = last_run(settings.runs, asked.name)
    listed = list_images(
        settings.images, settings.column, Objects(settings.endpoint), InputColumns.of(asked), settings.every
    )
    images = share(listed, settings)
    try:
        found = estimate(folder, len(images), settings.prices)
    except (OSError, ValueError) as error:
        raise Unreadable(f"run {folder} cannot be read: {error}") from error
    for line in lines(asdict(found)):
        console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
