"""`preflight`: check preset, model and job without loading weights."""

from __future__ import annotations

from argparse import ArgumentParser

from rich.console import Console

from scripts.checks.preflight import command
from scripts.commands.engines import plan
from scripts.settings import StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--preset", help="by default the host's")
    parser.add_argument("--full", action="store_true", help="also with vLLM's own code")
    parser.add_argument("--json", action="store_true", dest="json_output", help="for a machine or an issue report")


def run(settings: StackSettings, console: Console, *, preset: str | None, full: bool, json_output: bool) -> int:
    """Check and report; 1 when the server cannot do the job."""
    if preset:
        settings = settings.model_copy(update={"preset": preset})
    _, engine, _ = plan(settings)
    place = engine.preflight_place() if full else None
    in_containers = engine.name == "compose"
    return command.run(settings, console, place=place, in_containers=in_containers, json_output=json_output)
