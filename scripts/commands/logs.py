"""`logs`: show the services' logs."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from rich.console import Console

from scripts.commands.engines import known, names, plan
from scripts.settings import StackSettings


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("service", nargs="?", help="detector, vllm, vllm-2 ...; by default all")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")


def run(settings: StackSettings, console: Console, *, service: str | None, follow: bool) -> NoReturn:
    """Become a program that shows the logs."""
    stack, engine, _ = plan(settings)
    engine.show_logs([known(engine, stack, service)] if service else names(engine, stack), follow)
