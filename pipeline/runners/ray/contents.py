"""The contents that were seen, for all workers together: a picture is asked about once.

The actor's process imports this module: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable


class Book:
    """An actor beside the driver: which image each content belongs to.

    An image that is read again, because its worker died, finds its content its own.
    """

    def __init__(self, seen: Iterable[str]) -> None:
        self.owner: dict[str, bytes | None] = dict.fromkeys(seen)

    def claim(self, key: str, path: bytes) -> bool:
        """Whether the content is this image's to ask about."""
        return self.owner.setdefault(key, path) == path
