"""A flow's rows from a thread of its own, so that the run can look at the clock while none comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any


class FlowFailed(Exception):
    """The flow ended with an error, which is the cause of this one."""


class Stream:
    """Runs an iterator in a thread; `take` waits for an item for a bounded time."""

    END = object()

    def __init__(self, items: Iterator[dict[str, Any]]) -> None:
        self._items = items
        # A few batches. Daft (0.7.26) does not wait for a full queue: it keeps rows that are not taken; 16,000 were
        # seen while a disk stood still.
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._fill, name="rows", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
        except BaseException as error:  # a panic in Daft is not an Exception
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
