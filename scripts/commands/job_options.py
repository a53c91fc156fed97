"""The job's options as the user typed them, perhaps in another folder than the repository's root."""

from __future__ import annotations

from pathlib import Path

from pipeline.locations import is_object
from scripts.environments import ROOT

PATHS = ("--images", "--output", "--work", "--boxes", "--ca-file")
NAMES = ("--job", "--from-run")  # paths, or names of bundled jobs and of runs
COLUMN = "column:"  # of SPOTTER_BOXES: a column of the input table


def located(options: list[str], folder: Path) -> list[str]:
    """The options, with paths relative to `folder` made absolute; from the root they stay, as `make` gives them.

    Jobs and runs are paths only where `folder` has such a one; otherwise they are names.
    """
    if folder == ROOT:
        return options
    done: list[str] = []
    for position, option in enumerate(options):
        name, separator, value = option.rpartition("=") if option.startswith("--") else ("", "", option)
        given = name if separator else (options[position - 1] if position else "")
        is_path = (given in PATHS and not value.startswith(COLUMN)) or (given in NAMES and (folder / value).exists())
        done.append(f"{name}{separator}{locate(value, folder)}" if is_path else option)
    return done


def locate(path: str, folder: Path) -> str:
    """A path that starts at `folder` if it is relative; an object's address as it is."""
    return path if is_object(path) else str(folder / Path(path).expanduser())
