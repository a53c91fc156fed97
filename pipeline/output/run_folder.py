"""A run's folder: its lock, its identity, and what a run makes in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import FolderInUse, NotFound, OtherRun, Unwritable
from pipeline.files import partial, sync_folder, write_atomically
from pipeline.job import Job
from pipeline.output.formats import FORMATS
from pipeline.settings import Settings
from pipeline.sources.earlier_run import AskedAgain, EarlierRun, refuse_others

MANIFEST = "run.json"
# The list of committed parts: without it none counts.
COMMITTED = ".parts/committed.jsonl"
# The stacks of a run that stopped moving, or that an error ended.
STALL, ERROR = "stall.txt", "error.txt"
LOG = "run.log"
EVALUATION = "evaluation.json"
# The folder of the files that report.html loads.
PAGE = "report"

# What a run makes in its folder; it never removes anything else.
CONTENTS = (
    *FORMATS,
    "report.html",
    PAGE,
    EVALUATION,
    STALL,
    ERROR,
    LOG,
    "crops",
    "annotated",
    "profile",
    ".parts",
    MANIFEST,
)
# The lock of the folder, and the state of its copy in a bucket.
LOCK = ".lock"
PUBLISHED = ".published"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's run.json; None where it is missing or cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def find_run(run: str, runs: Path) -> Path:
    """A run's folder, by its path or by its name among the runs.

    Raises:
        NotFound: there is no such folder.
    """
    places = [Path(run).expanduser(), runs / run]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise NotFound(f"no run {run}: neither {places[0]} nor {places[1]} is a folder")


def earlier_run(settings: Settings, job: Job) -> AskedAgain | None:
    """The run whose detections the job is asked about; None: it runs over images.

    Raises:
        UsageError: the settings contradict that, or there is no such run, or it lacks what the job wants.
    """
    if settings.from_run is None:
        return None
    refuse_others(settings)
    return AskedAgain(EarlierRun(find_run(settings.from_run, settings.runs), "from"), job)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write run.json."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode(errors="backslashreplace"))  # a path need not be UTF-8


def differences(identity: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two identities, for people: one phrase each."""
    found = []
    for name in sorted({*identity, *other}):
        before, after = other.get(name), identity.get(name)
        if before != after:
            short = isinstance(before, str | None) and isinstance(after, str | None) and name != "job"
            absent = "all images" if name == "trial" else "none"
            changed = f"{before or absent} -> {after or absent}" + (
                "; another version of Spotter" if name == "table_format" else ""
            )
            found.append(f"{name.replace('_', ' ')} ({changed})" if short else name.replace("_", " "))
    return found


@contextlib.contextmanager
def open_run_folder(
    folder: Path, identity: dict[str, Any], force: bool, fetch: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Make or continue a run's folder, and hold it against other runs until the block ends.

    `force` begins anew. `fetch` may bring a run's files from elsewhere before they are looked at.

    Raises:
        FolderInUse: another run writes there.
        Unwritable: it cannot be written or locked.
        OtherRun: it holds something else.
    """
    with held(folder):
        try:
            fetch()
            prepare(folder, identity, force)
        except OSError as error:
            raise unwritable(folder, error) from error
        yield folder


def unwritable(folder: Path, error: OSError) -> Unwritable:
    """The error of a folder that cannot be written."""
    remedy = "give a folder that you can write with OUTPUT=... or --output"
    return Unwritable(f"output: {folder} cannot be written: {error.strerror}: {remedy}")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, if it is not there, and hold it against other runs until the block ends.

    The lock belongs to the process: a crash does not leave it behind.

    Raises:
        FolderInUse: another run writes there.
        Unwritable: it cannot be made or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise unwritable(folder, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUse(f"output: another run writes to {folder}: wait for it, or give a --run-name") from error
        except OSError as error:
            raise Unwritable(
                f"output: {folder} cannot be locked ({error.strerror}), so two runs could write there at once: give a "
                "folder on a file system with locks, with OUTPUT=... or --output"
            ) from error
        yield


def prepare(folder: Path, identity: dict[str, Any], force: bool) -> None:
    """See that the folder is new, or holds the same run; make what a run needs in it.

    Raises:
        OtherRun: it holds something else.
    """
    for name in (*CONTENTS, PUBLISHED):  # of a write that was cut short
        partial(folder / name).unlink(missing_ok=True)
    manifest = read_manifest(folder)
    if manifest is None:
        strange = [path.name for path in folder.iterdir() if path.name not in (LOCK, PUBLISHED, *CONTENTS)]
        if strange:
            raise OtherRun(f"output: {folder} holds other files ({strange[0]}): give another --run-name or --output")
        if (folder / COMMITTED).exists() and not force:
            raise OtherRun(
                f"output: {folder} holds rows but no {MANIFEST}, which names their run: give another --run-name, or "
                "begin anew with --force"
            )
    elif not force and (changed := differences(identity, manifest.get("identity", {}))):
        raise OtherRun(
            f"output: {folder} holds a run with another {', '.join(changed)}: give another --run-name, or begin it "
            "anew with --force"
        )
    if force:
        remove_run(folder)
        (folder / PUBLISHED).unlink(missing_ok=True)
    for name in (STALL, ERROR):  # of the last time
        (folder / name).unlink(missing_ok=True)
    for name in ("crops", "annotated", ".parts"):
        (folder / name).mkdir(exist_ok=True)


def remove_run(folder: Path) -> None:
    """Remove a run from its folder. At every moment there is all of it that counts, or nothing.

    The list of its parts goes first, for good. `run.json`, which tells whose the rest is, goes last: the crops before
    it may take minutes.
    """
    (folder / COMMITTED).unlink(missing_ok=True)
    if (folder / COMMITTED).parent.exists():
        sync_folder((folder / COMMITTED).parent)
    for name in CONTENTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def point_latest_at(folder: Path, identity: dict[str, Any]) -> None:
    """Let `latest` beside the run's folder lead to it, where the file system has links; not to a shard, of which
    several run at once."""
    if "shard" in identity:
        return
    link, fresh = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    try:
        fresh.symlink_to(folder.name)
        fresh.replace(link)
    except OSError:
        fresh.unlink(missing_ok=True)
