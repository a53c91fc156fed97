"""A run's cancellation token: any stage can end the run; all others see it, and the reason."""

from __future__ import annotations

import threading

from pipeline.errors import RowError
from pipeline.runtime.in_process import InProcess


class Cancelled(RowError):
    """The run is ending; the next run does this row."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, attempts=0)


class CancellationToken(InProcess):
    """Cancelled once, with the first reason; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may run while its thread holds the lock
        self.reason: str | None = None

    def cancel(self, reason: str) -> None:
        """End the run for this reason, unless it is ending already."""
        with self._lock:
            self.reason = self.reason or reason

    def check(self) -> None:
        """Leave a stage when the run is ending.

        Raises:
            Cancelled: the run is ending.
        """
        if self.reason is not None:
            raise Cancelled(self.reason)
