"""Errors: those that end a command with one line, and those that end one row."""

from __future__ import annotations

from typing import ClassVar


class UsageError(Exception):
    """Invalid input; the message is one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2. Raise one of the kinds below.
    """


class InvalidSetting(UsageError):
    """A setting has an invalid value, contradicts another, or does not exist."""


class InvalidJob(UsageError):
    """A job file is invalid."""


class NotFound(UsageError):
    """A job, image, column or run does not exist."""


class Unreadable(UsageError):
    """An input is there, but cannot be read, or is not of a supported kind."""


class Unwritable(UsageError):
    """An output folder cannot be made, written or locked."""


class BucketUnusable(UsageError):
    """An object store cannot be reached, or refuses a request."""


class FolderInUse(UsageError):
    """Another run writes to the output folder now."""


class OtherRun(UsageError):
    """The output folder holds another run, or other files."""


class ServiceUnreachable(UsageError):
    """A service does not answer."""


class ServiceRefuses(UsageError):
    """A service refuses the key or a request, or answers in an unexpected form."""


class ModelNotServed(UsageError):
    """The model server does not serve the model, or serves several and none is chosen."""


class ClusterUnusable(UsageError):
    """A Ray cluster cannot be reached, or its nodes lack what a worker needs."""


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
