"""`report`: make a run's report again from its tables, also where the run was moved or published."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from pipeline import settings as job_settings
from pipeline.errors import NotFound, RunStopped, Unreadable, Unwritable
from pipeline.locations import is_object
from pipeline.output.annotate import copies_in
from pipeline.output.formats import FORMATS
from pipeline.output.report import write_report
from pipeline.output.run_folder import EVALUATION, MANIFEST, PAGE, find_run
from pipeline.results.finished_run import read_run
from pipeline.runtime.terminal import escaped
from pipeline.sources.objects import NoObject, Objects, StoreError, refuse
from scripts.settings import StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's arguments."""
    text = "the run's folder, its name among the runs, or s3://bucket/... (default: latest)"
    parser.add_argument("--run", dest="existing", metavar="FOLDER", default="latest", help=text)


def run(_: StackSettings, console: Console, *, existing: str) -> None:
    """Write a run's report again; nothing is asked of any service, and no annotated copy is drawn.

    Raises:
        NotFound: there is no such run, or it has no tables.
        Unreadable: its tables or its run.json cannot be read.
        Unwritable: the report cannot be written.
        BucketUnusable: the bucket cannot be read.
        RunStopped: the bucket does not take the report.
    """
    settings = job_settings.load([])
    if is_object(existing):
        page = remake_published(existing.rstrip("/"), Objects(settings.endpoint))
    else:
        folder = find_run(existing, settings.runs)
        page = str(remake(folder, copies_in(folder)))
    console.print(escaped(f"report: {page}"), soft_wrap=True, markup=False, highlight=False)


def remake(folder: Path, copies: set[str]) -> Path:
    """Write the report of the run in a folder; `copies`: the names of its annotated copies.

    Raises:
        NotFound, Unreadable, Unwritable: see `run`.
    """
    found = read_run(folder)
    if "counts" not in found.manifest:
        raise NotFound(f"run {folder}: its {MANIFEST} has no counts: `make run` finishes it")
    tables = {"images": found.images, "detections": found.detections}
    try:
        return write_report(folder, found.manifest, tables, copies, Path.cwd())
    except KeyError as error:
        raise Unreadable(f"run {folder}: no {error}: it was made by another version of Spotter; run it anew") from error
    except OSError as error:
        raise Unwritable(f"run {folder}: its report cannot be written: {error.strerror or error}") from error


def remake_published(address: str, objects: Objects) -> str:
    """Write the report of a run in a bucket there; its address.

    Raises:
        NotFound, Unreadable, BucketUnusable, RunStopped: see `run`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            objects.glob(f"{address}/{MANIFEST}", limit=1)  # a missing bucket is an error here
            for name in (MANIFEST, *FORMATS):
                (folder / name).write_bytes(objects.read(f"{address}/{name}"))
            for _ in objects.list(f"{address}/{EVALUATION}"):
                (folder / EVALUATION).write_bytes(objects.read(f"{address}/{EVALUATION}"))
            copies = {place.rpartition("/")[2] for place, _ in objects.list(f"{address}/annotated/")}
        except NoObject as error:
            raise NotFound(f"no run at {address}: {error}") from error
        except StoreError as error:
            raise refuse("run", address, error) from error
        page = remake(folder, copies)
        beside = [(str(path), f"{address}/{PAGE}/{path.name}") for path in sorted((folder / PAGE).iterdir())]
        try:
            objects.copy(beside)
            objects.copy([(str(page), f"{address}/{page.name}")])  # last: it names the others
        except StoreError as error:
            raise RunStopped(f"cannot write {address}: {error}") from error
    return f"{address}/{page.name}"
