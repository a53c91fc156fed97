"""Write a run in another format: a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InvalidSetting, OtherRun, Unwritable
from pipeline.files import partial
from pipeline.results.exports import EXPORTS
from pipeline.results.finished_run import FinishedRun, Tally

# Tells an export from any other folder; it says of which run it is, and what was left out.
NOTE = "export.json"


@dataclass(frozen=True, slots=True)
class Export:
    """An export that was written."""

    folder: Path
    tally: Tally


def check_target(folder: Path, force: bool) -> None:
    """See that an export can be written there.

    Raises:
        OtherRun: there is something that may not be replaced.
    """
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not (folder / NOTE).is_file():
        raise OtherRun(f"output: {folder} holds other files: give a new folder with OUTPUT=... or --output")
    if not force:
        raise OtherRun(f"output: {folder} holds an export already: replace it with --force, or give another --output")


def export(run: FinishedRun, name: str, folder: Path, *, force: bool = False) -> Export:
    """Write a run in the format of this name, one of EXPORTS; `force` replaces an earlier export.

    Raises:
        InvalidSetting: there is no such format.
        OtherRun: the folder holds something else, or an export and `force` is not given.
        Unwritable: the folder cannot be written; nothing of it is left.
    """
    if name not in EXPORTS:
        raise InvalidSetting(f"format {name!r} is unknown: give one of {', '.join(EXPORTS)}")
    if folder.is_symlink():  # what it leads to is replaced, not the link
        folder = folder.resolve()
    check_target(folder, force)
    fresh, tally = partial(folder), Tally()
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # of an export that was killed
        fresh.mkdir(parents=True)
        EXPORTS[name].write(run, fresh, tally)
        counts = {"images": tally.images, "detections": tally.detections, "left_out": dict(tally.left_out)}
        note = {"run": run.folder.name, "format": name, **counts}
        (fresh / NOTE).write_text(json.dumps(note, indent=2) + "\n")
        if folder.is_dir():
            shutil.rmtree(folder)
        fresh.rename(folder)
    except OSError as error:
        where = error.filename or folder
        raise Unwritable(f"output: {where} cannot be written: {error.strerror}: give another --output") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(fresh, ignore_errors=True)
    return Export(folder, tally)
