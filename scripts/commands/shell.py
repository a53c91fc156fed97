"""`shell`: open a shell where a service runs."""

from __future__ import annotations

from argparse import ArgumentParser

from rich.console import Console

from scripts.commands.engines import known, plan
from scripts.settings import NotRunning, StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("service", nargs="?", default="vllm", help="detector, vllm, vllm-2 ...; by default vllm")


def run(settings: StackSettings, console: Console, *, service: str) -> None:
    """Become the shell.

    Raises:
        NotRunning: the service does not run, or runs elsewhere.
    """
    stack, engine, _ = plan(settings)
    for each in stack.services:
        if each.name == known(engine, stack, service):
            engine.open_shell(each)
    raise NotRunning(f"{service} runs elsewhere: an address is set for it")
