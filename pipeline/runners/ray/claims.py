"""What a worker asks about contents that others may have seen."""

from __future__ import annotations

from typing import Any

import ray

from pipeline.stages.read import SeenContent


class Claims(SeenContent):
    """`SeenContent` of all workers together: the book remembers the contents."""

    def __init__(self, book: Any) -> None:
        super().__init__()
        self.book = book

    def add(self, key: str, path: bytes) -> bool:
        """See `SeenContent.add`."""
        mine: bool = ray.get(self.book.claim.remote(key, path))
        return mine
