"""The command line that all benches share: options with their defaults, one console, errors and exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import UsageError
from scripts.environments import EnvironmentFailed
from scripts.settings import StackError


class BenchFailed(Exception):
    """A bench could not finish its measurement; the message says why."""


class Options(argparse.ArgumentParser):
    """A bench's options; its module's docstring is the description."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def option(self, name: str, default: Any, text: str, **how: Any) -> None:
        """Add an option; the help shows its default, whose type the value gets."""
        how.setdefault("type", type(default))
        self.add_argument(name, default=default, help=f"{text} (default: %(default)s)", **how)


def make_console() -> Console:
    """The terminal; a file or pipe gets lines of 160 characters, because nothing has to fit a window there."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 160
    return console


def figures(first: str, heads: Sequence[str], last: str | None = None) -> Table:
    """An empty table: a column of names, columns of numbers, and maybe a column of notes."""
    table = Table(first, box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right")
    if last is not None:
        table.add_column(last)
    return table


def run(bench: Callable[[], Sequence[str]]) -> int:
    """Run a bench, which returns one line for each figure that is below its limit; print errors to stderr.

    Returns:
        The exit code. 0: all figures are within their limits. 1: one is not, or the bench failed. 2: a usage error.
        130: interrupted.
    """
    try:
        problems, code = bench(), 1
    except UsageError as error:
        problems, code = [str(error)], 2
    except (BenchFailed, StackError, EnvironmentFailed, subprocess.CalledProcessError) as error:
        problems, code = [str(error)], 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return code if problems else 0
