"""Take a run's rows as they come, and look up while none comes: is a service away, does nothing move, does all fail?"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.clients.connect import Clients
from pipeline.output.breakdown import FlowFailed
from pipeline.output.collector import Collector
from pipeline.output.run_folder import STALL
from pipeline.runtime.cancellation import Stop
from pipeline.runtime.display import Display
from pipeline.settings import Settings

# How often a waiting run looks at the clock and at its brake.
TICK_S = 0.5

# What follows the flow has no rows to show that it moves: it gets the default limit of rows, at least.
AFTERWARDS_S = 600.0

# How long a disk may take for the stacks: it may be what hangs.
DUMP_S = 5.0


class Stream:
    """Runs an iterator in a thread, so that whoever takes its items can look up while none comes."""

    END = object()

    def __init__(self, items: Iterator[dict[str, Any]]) -> None:
        self._items = items
        # A few batches. Daft (0.7.26) goes on all the same, and keeps what is not taken: 16,000 rows were seen, with a
        # disk that stood still.
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._fill, name="rows", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
        except BaseException as error:  # a panic of Daft's is no Exception
            self._queue.put(error)
        self._queue.put(self.END)

    def take(self, timeout_s: float) -> dict[str, Any] | None:
        """The next item, or None when none came in time.

        Raises:
            StopIteration: there are no more.
            FlowFailed: there are no more, because of an error.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is self.END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise FlowFailed from item
        taken: dict[str, Any] = item
        return taken


def leave(reason: str) -> None:
    """End the process: its main thread waits for something that nothing can take it away from."""
    print(f"stopped: {reason}; what was committed until then is safe", file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """Ends a run in which nothing moves any more, and leaves all stacks in the run's folder.

    A thread of its own, since the main one may be what hangs: in a write to a disk that is gone. At first it pulls the
    brake. When nothing has moved for as long again, the run cannot end by itself, and is left.
    """

    def __init__(
        self, folder: Path, limit_s: float, stop: Stop, clients: Clients, left: Callable[[str], None] = leave
    ) -> None:
        self.folder = folder
        self.limit_s = limit_s
        self.stop = stop
        self.clients = clients
        self.left = left
        self.doing: str | None = None
        """What follows the flow."""
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
        """Something did, or is known to need its time."""
        self._last = time.monotonic()

    def now(self, doing: str) -> None:
        """The flow has ended; this is done now."""
        self.doing, self.limit_s = doing, max(self.limit_s, AFTERWARDS_S)
        self.moved()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(TICK_S):
            before, looked = looked, time.monotonic()
            if looked - before > 10 * TICK_S:  # the process itself was stopped, and has only just gone on
                self.moved()
            elif looked - self._last > self.limit_s:
                first, reason = self.stop.reason is None, self._reason()
                self.moved()
                if first:
                    self.stop.pull(reason)
                else:
                    self.left(reason)

    def _reason(self) -> str:
        stacks = f"; stacks in {self.folder / STALL}" if self._dump() else ""
        if self.doing is None:
            waiting = self.clients.waiting_for()
            return (
                f"no row ended for {self.limit_s:g} s ({waiting}{stacks}): look at 'make logs', then run again to do "
                "the rest"
            )
        return f"{self.doing} did not end within {self.limit_s:g} s{stacks}: see that it can, then run again"

    def _dump(self) -> bool:
        """Write all stacks, in a thread of its own; whether it was done in time."""
        written = threading.Event()

        def write() -> None:
            with contextlib.suppress(OSError), (self.folder / STALL).open("w") as handle:
                faulthandler.dump_traceback(handle, all_threads=True)
                handle.write("\n" + waiting_tasks(self.clients))
                handle.flush()
                written.set()

        threading.Thread(target=write, name="stacks", daemon=True).start()
        return written.wait(DUMP_S)


def waiting_tasks(clients: Clients) -> str:
    """Where the tasks of the clients' event loops wait, and how many at each place: a line a place."""
    connections = (http.connection for http in (clients.detector.http, clients.model.http))
    places: Counter[str] = Counter()
    for loop in {connection.loop for connection in connections if connection}:
        with contextlib.suppress(RuntimeError):  # they come and go while we look
            places.update(where(task.get_coro()) for task in asyncio.all_tasks(loop))
    return "".join(f"{number} tasks: {place}\n" for place, number in places.most_common())


def where(waiting: Any) -> str:
    """The lines at which a coroutine, and what it waits for, stand: the outermost first."""
    lines = []
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = waiting.cr_await
    return " > ".join(lines) or "done"


def follow(
    stream: Stream,
    collector: Collector,
    clients: Clients,
    settings: Settings,
    stop: Stop,
    watchdog: Watchdog,
    shown: Display,
) -> None:
    """Take rows until there are no more or the run has to stop.

    Raises:
        FlowFailed: there are no more, because of an error.
        OSError: a part cannot be written.
    """
    progress = collector.progress
    while stop.reason is None:
        try:
            row = stream.take(TICK_S)
        except StopIteration:
            return
        if stop.reason is not None:
            return  # what comes after the brake is not counted: the next run does it
        if row is not None:
            collector.add(row)
            watchdog.moved()
        elif away := clients.away():
            watchdog.moved()  # an outage has a limit of its own
            shown.note(f"waiting for the {' and the '.join(away)} to come back")
        if progress.failure_rate() > settings.failure_limit:
            stop.pull(
                f"{progress.failure_rate():.0%} of the rows failed at a service, more than SPOTTER_FAILURE_LIMIT: see "
                "the reasons below, then run again with --retry-failed"
            )
        shown.update()
