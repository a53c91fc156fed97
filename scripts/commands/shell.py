"""`shell`: open a shell where a service runs."""

from __future__ import annotations

from argparse import ArgumentParser

from rich.console import Console

from scripts.commands.engines import known, plan
from scripts.settings import NotRunning, StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "service", nargs="?", default="vllm", help="detector, vllm, vllm-2, ray-worker ...; by default vllm"
    )


def run(settings: StackSettings, console: Console, *, service: str) -> None:
    """Become the shell.

    Raises:
        NotRunning: the service does not run, or runs elsewhere.
    """
    stack, engine, _ = plan(settings)
    name = known(engine, stack, service)
    if name not in (*(each.name for each in stack.services), *engine.nodes()):
        raise NotRunning(f"{name} runs elsewhere: an address is set for it")
    engine.open_shell(stack, name)
