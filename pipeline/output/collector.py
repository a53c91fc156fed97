"""From the flow's rows, which come in any order, to complete images."""

from __future__ import annotations

from typing import Any

from pipeline.metrics.stage import COLLECT
from pipeline.metrics.traces import TracedStep, row_name
from pipeline.output import rows
from pipeline.output.parts import Parts
from pipeline.runtime.progress import Progress
from pipeline.runtime.runtime import Runtime


class Collector:
    """Holds the rows of an image until all of its detections have ended, then hands them to the parts."""

    def __init__(self, parts: Parts, progress: Progress, runtime: Runtime) -> None:
        self.parts = parts
        self.progress = progress
        self.runtime = runtime
        self.open: dict[bytes, list[dict[str, Any]]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Take one row of the flow: a detection, or an image that has none.

        Raises:
            OSError: a part cannot be written.
        """
        stage, traces = self.runtime.metrics.stages[COLLECT], self.runtime.metrics.traces
        began = stage.begin()
        self._add(row)
        ended = stage.end(began)
        if (key := row["key"]) is not None and traces.samples(key):
            traces.add(key, TracedStep(COLLECT, row_name(key, row["index"]), began, ended))

    def _add(self, row: dict[str, Any]) -> None:
        detections = self.open.setdefault(row["path"], [])
        if row["index"] is not None:
            detections.append(rows.detection_row(row))
            self.progress.row(detections[-1]["stage"])
        else:
            failed = row["image_failure"]
            self.progress.row(failed["stage"] if failed else None)
        if len(detections) < (row["detections"] or 0):
            return
        image = rows.image_row(row)
        self.progress.image(image["outcome"], detections)
        self.parts.add(image, self.open.pop(row["path"]))
