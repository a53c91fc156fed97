"""Another program in this one's place, for as long as it takes: its terminal, its signals, its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def run(command: Sequence[str]) -> int:
    """Run a command to its end; its exit code, or 128 and the number of the signal that ended it.

    A signal that would end this program goes to the command, which ends in its own way, and this program waits for it.
    Ctrl-C in a terminal reaches both at once: there it is not passed on a second time.
    """
    in_terminal = sys.stdin.isatty()
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(signum)
        elif not (in_terminal and signum == signal.SIGINT):
            child.send_signal(signum)

    # Before the command begins: a signal that comes meanwhile is for it, too.
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, start_new_session=not in_terminal)
        for signum in early:
            child.send_signal(signum)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
