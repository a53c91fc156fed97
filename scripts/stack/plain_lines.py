"""When a command without a terminal shows its progress."""

from __future__ import annotations

import time

from rich.console import Console

PLAIN_LINE_S = 15.0


class PlainLines:
    """A line of progress every PLAIN_LINE_S seconds; in a terminal none, where a line changes in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.next_s = time.monotonic() + PLAIN_LINE_S

    def due(self) -> bool:
        """Whether it is time for a line."""
        if self.console.is_terminal or time.monotonic() < self.next_s:
            return False
        self.next_s += PLAIN_LINE_S
        return True
