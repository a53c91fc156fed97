"""From the flow's rows, which come in any order, to complete images."""

from __future__ import annotations

from typing import Any

from pipeline import tables
from pipeline.metrics.stage import Account
from pipeline.output.parts import Parts
from pipeline.runtime.progress import Progress


class Collector:
    """Holds the rows of an image until all of its detections have ended, then hands them to the parts."""

    def __init__(self, parts: Parts, progress: Progress, account: Account) -> None:
        self.parts = parts
        self.progress = progress
        self.account = account
        self.open: dict[bytes, list[dict[str, Any]]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Take one row of the flow: a detection, or an image that has none.

        Raises:
            OSError: a part cannot be written.
        """
        began = self.account.collect.begin()
        self._add(row)
        self.account.finish(self.account.collect, began, key=row["key"], index=row["at"] and row["at"]["index"])

    def _add(self, row: dict[str, Any]) -> None:
        rows = self.open.setdefault(row["path"], [])
        failed = row["image_failure"]
        if row["at"] is not None:
            rows.append(tables.detection_row(row, self.parts.schemas["detections"]))
            self.progress.row(rows[-1]["stage"])
        else:
            self.progress.row(failed["stage"] if failed else None)
        if len(rows) < (row["detections"] or 0):
            return
        image = tables.image_row(row)
        self.progress.image(image["outcome"], rows)
        self.parts.add(image, self.open.pop(row["path"]))
