"""What Ctrl-C does to a run: it ends early, and nothing keeps it from writing down what was done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from pipeline.runtime.cancellation import Stop

INTERRUPTED = "interrupted"

# Ctrl-C, and how a container or a scheduler asks a process to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class OneInterrupt:
    """Within the block the first of SIGNALS pulls the run's brake, the next ones do nothing.

    None is raised there: an exception between any two instructions could part an image from its detections. One Ctrl-C
    can come several times: a terminal sends it to `docker` and to its Compose plugin, and each passes it on. After
    `hold` the first one does nothing before the block ends, and is raised then.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.braked = self.held = self.late = False

    def __enter__(self) -> OneInterrupt:
        self._here = threading.current_thread() is threading.main_thread()  # others get no signals
        if self._here:
            self._before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.held:
            self.late = True
        else:
            self.braked = True
            self.stop.pull(INTERRUPTED)

    def hold(self) -> None:
        """What follows is to be done to its end."""
        self.held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if kind is None and self.late and not self.braked:
            raise KeyboardInterrupt
