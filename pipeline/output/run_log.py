"""The log of a run, `run.log` in its folder: what happened and when, for an incident that the tables do not explain."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from pipeline.output.run_folder import LOG


class QuietHandler(logging.FileHandler):
    """Appends to a file; a log that cannot be written ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line; the first one opens the file."""
        with suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        """Close the file, which tries once more to write what a full disk did not take."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the line out."""


class Redacting(logging.Formatter):
    """Writes UTC times, and `***` in the place of secrets."""

    def __init__(self, secrets: list[str]) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.secrets = secrets
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record)
        for secret in self.secrets:
            line = line.replace(secret, "***")
        return line


@contextmanager
def run_log(folder: Path, level: str, secret: SecretStr | None) -> Iterator[None]:
    """Append what the pipeline logs, from this level on, to the run's log until the block ends."""
    handler = QuietHandler(folder / LOG, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(Redacting([secret.get_secret_value()] if secret else []))
    logger = logging.getLogger("pipeline")
    before = logger.level
    logger.setLevel(level.upper())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
