"""The operator's commands begin quickly: none loads what another one needs."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import COMMANDS
from scripts.environments import ROOT

# They take as long to load as the rest of a command, and a stack is asked for its state often.
OF_THE_JOB = {"daft", "aiohttp", "pillow_heif"}


def loaded(program: str) -> set[str]:
    """The packages that a program has loaded at its end."""
    program += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(told.split())


# These do a part of the job's work themselves: they read a run, or list images.
OWN_WORK = ("profile", "estimate", "report", "export", "review", "compare", "sql", "merge")


@pytest.mark.slow
def test_a_command_loads_nothing_of_the_job() -> None:
    modules = ", ".join(module for name, (module, _) in COMMANDS.items() if name not in OWN_WORK)
    assert not loaded(f"import scripts.__main__, {modules}") & OF_THE_JOB


@pytest.mark.slow
def test_only_the_command_that_runs_is_loaded() -> None:
    assert "pyarrow" not in loaded("from scripts.__main__ import parse; parse(['status'])")  # of the smoke test


def test_every_command_says_what_it_is_for() -> None:
    for name, (module, purpose) in COMMANDS.items():
        run = importlib.import_module(module).run
        assert list(inspect.signature(run).parameters)[1] == "console", name
        assert purpose


def test_the_makefile_takes_names_as_they_are(tmp_path: Path) -> None:
    given = {"IMAGES": "a $cash $(shell x) 'b'", "OUTPUT": "$(HOME)", "JOB": "a$b.yaml", "PRESET": "$1.yaml"}
    shown = tmp_path / "shown.mk"
    names = ("SPOTTER_IMAGES", "SPOTTER_OUTPUT", "SPOTTER_JOB", "STACK_PRESET")
    shown.write_text(f"shown:\n\t@printenv {' '.join(names)}\n")
    command = ["make", "--silent", "-f", "Makefile", "-f", str(shown), "shown", *map("=".join, given.items())]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == list(given.values())


@pytest.mark.parametrize(
    ("given", "command"),
    [([], "./spotter try"), (["IMAGE=my $a.jpg"], "./spotter try --images 'my $a.jpg'")],
)
def test_make_try_without_a_picture_takes_the_settings_images(given: list[str], command: str) -> None:
    # Not as a part of the make that runs the tests, which would name its folders.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(["make", "-n", "try", *given], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == command
