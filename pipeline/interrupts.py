"""What Ctrl-C does to a run: the first one ends it early, and none keeps it from writing down what was done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class OneInterrupt:
    """Within the block the first SIGINT raises KeyboardInterrupt, the next ones do nothing.

    One Ctrl-C can come several times: a terminal sends it to `docker` and to its Compose plugin, and each passes it on.
    After `hold` none is raised before the block ends; at its end one is, unless one was raised before.
    """

    def __init__(self) -> None:
        self.raised = self.held = self.late = False

    def __enter__(self) -> OneInterrupt:
        self._here = threading.current_thread() is threading.main_thread()  # others get no signals
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.held or self.raised:
            self.late = True
            return
        self.raised = True
        raise KeyboardInterrupt

    def hold(self) -> None:
        """What follows is to be done to its end."""
        self.held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before)
        if kind is None and self.late and not self.raised:
            raise KeyboardInterrupt
