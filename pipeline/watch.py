"""Take a run's rows as they come, and look up while none comes: is a service away, does nothing move, does all fail?"""

from __future__ import annotations

import contextlib
import faulthandler
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipeline.clients.connect import Clients
from pipeline.collector import Collector
from pipeline.display import Display
from pipeline.settings import Settings
from pipeline.stop import Stop

# How often a waiting run looks at the clock and at its brake.
TICK_S = 0.5


class Stream:
    """Runs an iterator in a thread, so that whoever takes its items can look up while none comes."""

    END = object()

    def __init__(self, items: Iterator[dict[str, Any]]) -> None:
        self._items = items
        # A few batches: the flow is held back when its rows are not taken.
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._fill, name="rows", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
        except BaseException as error:  # raised again where the items are taken
            self._queue.put(error)
        self._queue.put(self.END)

    def take(self, timeout_s: float) -> dict[str, Any] | None:
        """The next item, or None when none came in time.

        Raises:
            StopIteration: there are no more.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is self.END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        taken: dict[str, Any] = item
        return taken


def follow(
    stream: Stream, collector: Collector, clients: Clients, settings: Settings, stop: Stop, shown: Display
) -> None:
    """Take rows until there are no more or the run has to stop."""
    progress = collector.progress
    while stop.reason is None:
        try:
            row = stream.take(TICK_S)
        except StopIteration:
            return
        if stop.reason is not None:
            return  # what comes after the brake is not counted: the next run does it
        if row is not None:
            try:
                collector.add(row)
            except OSError as error:
                stop.pull(
                    f"cannot write {collector.parts.folder}: {error.strerror or error}: make room, then run again"
                )
        elif away := clients.away():
            progress.last_row = time.monotonic()  # an outage has a limit of its own
            shown.note(f"waiting for the {' and the '.join(away)} to come back")
        elif time.monotonic() - progress.last_row > settings.stall_limit_s:
            dump = collector.parts.folder.parent / "stall.txt"
            with contextlib.suppress(OSError), dump.open("w") as handle:  # a full disk must not hide the stall
                faulthandler.dump_traceback(handle, all_threads=True)
            stop.pull(
                f"no row ended for {settings.stall_limit_s:g} s ({clients.waiting_for()}; stacks in {dump}): look at "
                "'make logs', then run again to do the rest"
            )
        if progress.failure_rate() > settings.failure_limit:
            stop.pull(
                f"{progress.failure_rate():.0%} of the rows failed at a service, more than SPOTTER_FAILURE_LIMIT: see "
                "the reasons below, then run again with --retry-failed"
            )
        shown.update()
