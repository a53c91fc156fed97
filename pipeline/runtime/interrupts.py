"""Ctrl-C ends a run early, and the run still writes what was done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from pipeline.runtime.cancellation import CancellationToken

INTERRUPTED = "interrupted"

# Ctrl-C, and the signal by which a container or a scheduler ends a process.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class OneInterrupt:
    """Within the block the first of SIGNALS cancels the run, and further ones do nothing.

    None raises an exception there: raised between any two instructions, it could part an image from its detections. One
    Ctrl-C can arrive several times: a terminal sends it to `docker` and to its Compose plugin, and each passes it on.
    After `hold` the first signal does nothing until the block ends, and is raised then.
    """

    def __init__(self, cancellation: CancellationToken) -> None:
        self.cancellation = cancellation
        self.cancelled = self.held = self.late = False

    def __enter__(self) -> OneInterrupt:
        self._here = threading.current_thread() is threading.main_thread()  # other threads get no signals
        if self._here:
            self._before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.held:
            self.late = True
        else:
            self.cancelled = True
            self.cancellation.cancel(INTERRUPTED)

    def hold(self) -> None:
        """Let what follows run to its end."""
        self.held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if kind is None and self.late and not self.cancelled:
            raise KeyboardInterrupt
