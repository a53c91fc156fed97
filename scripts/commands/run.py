"""`run`: bring the stack up, and become the job on it."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

from scripts.commands.up import up
from scripts.settings import JobCommand, StackSettings


def run(settings: StackSettings, console: Console, *, job: JobCommand) -> NoReturn:
    """Bring the stack up for a job, and end with the job's exit code."""
    stack, engine = up(settings, console, job, runs_job=True)
    engine.run_job(stack, job)
