"""The watchdog: ends a run in which nothing moves any more."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pipeline.runtime.cancellation import CancellationToken

# How often a waiting run looks at the clock and at its cancellation token.
TICK_S = 0.5

# After the flow no rows show that the run moves: each later step gets this long, at least.
AFTERWARDS_S = 600.0

# How long the disk may take for the stacks: it may be what hangs.
DUMP_S = 5.0


def leave(reason: str) -> None:
    """End the process at once: its main thread waits for something that cannot be interrupted."""
    print(f"stopped: {reason}; what was committed until then is safe", file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """Ends a run in which nothing moves any more, and writes all stacks into a file.

    It has a thread of its own, since the main one may be what hangs, in a write to a disk that is gone. At first it
    cancels the run. When nothing has moved for as long again, the run cannot end by itself, and the process ends.
    """

    def __init__(
        self,
        stacks: Path,
        limit_s: float,
        cancellation: CancellationToken,
        waiting_for: Callable[[], str],
        tasks: Callable[[], str],
        leave: Callable[[str], None] = leave,
    ) -> None:
        """`stacks`: the file; `waiting_for`: what the run waits for; `tasks`: where its asynchronous tasks stand."""
        self.stacks = stacks
        self.limit_s = limit_s
        self.cancellation = cancellation
        self.waiting_for = waiting_for
        self.tasks = tasks
        self.leave = leave
        self.doing: str | None = None
        """What the run does after the flow."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.moved()

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def moved(self) -> None:
        """Something moved, or has a time limit of its own."""
        self._last = time.monotonic()

    def now(self, doing: str) -> None:
        """The flow has ended, and the run does this now."""
        self.doing, self.limit_s = doing, max(self.limit_s, AFTERWARDS_S)
        self.moved()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(TICK_S):
            before, looked = looked, time.monotonic()
            if looked - before > 10 * TICK_S:  # the process itself was stopped meanwhile
                self.moved()
            elif looked - self._last > self.limit_s:
                first, reason = self.cancellation.reason is None, self._reason()
                self.moved()
                if first:
                    self.cancellation.cancel(reason)
                else:
                    self.leave(reason)

    def _reason(self) -> str:
        stacks = f"; stacks in {self.stacks}" if self._dump() else ""
        if self.doing is None:
            return (
                f"no row ended for {self.limit_s:g} s ({self.waiting_for()}{stacks}): look at 'make logs', then run "
                "again to do the rest"
            )
        return f"{self.doing} did not end within {self.limit_s:g} s{stacks}: see that it can, then run again"

    def _dump(self) -> bool:
        """Write all stacks, from another thread; whether that was done in time."""
        written = threading.Event()

        def write() -> None:
            with contextlib.suppress(OSError), self.stacks.open("w") as handle:
                faulthandler.dump_traceback(handle, all_threads=True)
                handle.write("\n" + self.tasks())
                handle.flush()
                written.set()

        threading.Thread(target=write, name="stacks", daemon=True).start()
        return written.wait(DUMP_S)
