"""Errors: those that end a command with one line, and those that end one row."""

from __future__ import annotations

from typing import ClassVar


class UsageError(Exception):
    """Invalid input; the message is one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2.
    """


class RunStopped(Exception):
    """A run cannot go on and cannot write its end; the message says why and what to do.

    What was committed is safe. The command line exits with code 1.
    """


class RowError(Exception):
    """A row cannot be finished; the run goes on, and the message becomes the row's failure."""

    stage: ClassVar[str | None] = None
    """The stage that the failure names; None: the one in which the error was raised."""

    def __init__(self, reason: str, attempts: int = 1) -> None:
        super().__init__(reason)
        self.attempts = attempts
