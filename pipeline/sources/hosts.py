"""Hosts of images: those that do not answer are left alone for a while, so that one dead host costs seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pipeline.sources.objects import StoreError, Unreachable

# After so many images in a row that a host did not give, further ones fail at once. Each was tried several times.
MOST_FAILED = 3
# So long; then one image is tried again. A host that comes back loses the images of a minute, and `--retry-failed` asks
# for them again.
PAUSE_S = 60.0


def host_of(address: str) -> str:
    """The host of an address, or its bucket: what fails as one."""
    parts = urlsplit(address)
    return f"s3://{parts.netloc}" if parts.scheme.lower() == "s3" else parts.netloc


class Hosts:
    """Which hosts answered when they were last asked; safe from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failed: dict[str, int] = {}
        """Images in a row that a host did not give; 0: it answered last."""
        self._again_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def answers(self, address: str) -> bool:
        """Whether the host of an address answered when it was last asked."""
        return self._failed.get(host_of(address)) == 0

    def note(self, address: str, *, answered: bool) -> int:
        """Note that a host answered, or did not; the number of times in a row that it did not."""
        host = host_of(address)
        with self._lock:
            failed = self._failed[host] = 0 if answered else self._failed.get(host, 0) + 1
            self._again_at[host] = self.clock() + PAUSE_S
        return failed

    @contextmanager
    def asked(self, address: str) -> Iterator[None]:
        """Ask the host of an address in the block.

        Raises:
            StoreError: what the block raised, or at once an Unreachable for a host that did not answer lately.
        """
        host = host_of(address)
        with self._lock:
            failed = self._failed.get(host, 0)
            if failed >= MOST_FAILED:
                if self.clock() < self._again_at[host]:
                    raise Unreachable(f"{host} gave none of the last {failed} images and was not asked for this one")
                self._again_at[host] = self.clock() + PAUSE_S
        try:
            yield
        except Unreachable:
            self.note(address, answered=False)
            raise
        except StoreError:  # it says that there is no such image, for example
            self.note(address, answered=True)
            raise
        self.note(address, answered=True)
