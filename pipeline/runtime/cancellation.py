"""A run's emergency brake: any stage can pull it, the run sees it and ends with the reason."""

from __future__ import annotations

import threading


class Stopped(Exception):
    """The run is ending; the row is left for the next one."""


class Stop:
    """Set once, with the first reason; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come while its thread holds it
        self.reason: str | None = None

    def __reduce__(self) -> tuple[type[Stop], tuple[()]]:
        """A copy elsewhere has a brake of its own."""
        return Stop, ()

    def pull(self, reason: str) -> None:
        """End the run for this reason, unless it is ending already."""
        with self._lock:
            self.reason = self.reason or reason

    def check(self) -> None:
        """Leave a stage when the run is ending.

        Raises:
            Stopped: it is.
        """
        if self.reason is not None:
            raise Stopped(self.reason)
