"""`try`: the job on one picture, step by step; nothing is written."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

from scripts.commands import run as run_command
from scripts.settings import JobCommand, StackSettings, load_job


def run(settings: StackSettings, console: Console, *, job: JobCommand) -> NoReturn:
    """Bring the stack up, and end with the exit code of the trial."""
    run_command.run(settings, console, job=load_job([*job.options, "--try-one"]))
