"""The contents that were seen, for all workers together: a picture is asked about once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray

from pipeline.stages.read import SeenContent


class Book:
    """An actor beside the driver: which image each content belongs to.

    An image that is read again, because its worker died, finds its content its own.
    """

    def __init__(self, seen: Iterable[str]) -> None:
        self.owner: dict[str, bytes | None] = dict.fromkeys(seen)

    def claim(self, key: str, path: bytes) -> bool:
        """Whether the content is this image's to ask about."""
        return self.owner.setdefault(key, path) == path


class Claims(SeenContent):
    """`SeenContent` of all workers together: the book remembers the contents."""

    def __init__(self, book: Any) -> None:
        super().__init__()
        self.book = book

    def add(self, key: str, path: bytes) -> bool:
        """See `SeenContent.add`."""
        mine: bool = ray.get(self.book.claim.remote(key, path))
        return mine
