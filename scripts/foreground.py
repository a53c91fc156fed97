"""Another program in this one's place, for as long as it takes: its terminal, its signals, its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType

# What would end this program. The last is the end of its terminal; `nohup` has it ignored, and that stays so.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def has_terminal() -> bool:
    """Whether somebody may type Ctrl-C here, which then reaches all that runs in the foreground."""
    return sys.stdin.isatty()


def run(
    command: Sequence[str], *, in_terminal: bool | None = None, send: Callable[[int], bool] = lambda _: False
) -> int:
    """Run a command to its end; its exit code, or 128 and the number of the signal that ended it.

    A signal that would end this program goes to the command, which ends in its own way, and this program waits for it.
    The end of a terminal asks it to end as SIGTERM does, so that it writes what it has. Ctrl-C in a terminal reaches
    both at once: there it is not passed on a second time. `send` may pass a signal on in another way, and says whether
    it could. Without a terminal the command has no input.
    """
    in_terminal = has_terminal() if in_terminal is None else in_terminal
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        wanted = signal.SIGTERM if signum == signal.SIGHUP else signum
        if child is None:
            early.append(wanted)
        elif not (in_terminal and signum == signal.SIGINT) and not send(wanted):
            child.send_signal(wanted)

    # Before the command begins: a signal that comes meanwhile is for it, too.
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        stdin = None if in_terminal else subprocess.DEVNULL
        child = subprocess.Popen(command, stdin=stdin, start_new_session=not in_terminal)
        for signum in early:
            child.send_signal(signum)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
