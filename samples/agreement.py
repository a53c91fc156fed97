"""Compare a run's rows with the drawn truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = ("breed", "coat_color", "facing")

# A detection matches a drawn dog from this overlap on: the usual bound of detection metrics.
LEAST_IOU = 0.5


@dataclass
class Agreement:
    """How many drawn dogs a run found, and how many of its answers about them are right."""

    drawn: int = 0
    found: int = 0
    false: int = 0
    """Detections without a drawn dog, or of a dog that another detection matches."""
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))

    def shortfalls(self, least_found: float, least_right: float) -> list[str]:
        """One line for each share below its limit: of found dogs, and of right answers about them."""
        short = []
        if self.found < least_found * self.drawn:
            short.append(f"{self.found} of {self.drawn} dogs found, at least {least_found:.0%} expected")
        for name, right in self.right.items():
            if right < least_right * self.found:
                short.append(f"{name} right for {right} of {self.found} dogs, at least {least_right:.0%} expected")
        return short


def iou(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes, xyxy."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)


def compare(detections: Iterable[Mapping[str, Any]], truth: Mapping[str, Any]) -> Agreement:
    """Pair each drawn dog with a detection of its own, best scores first, and count the pairs' right answers.

    `detections` are rows of a run's detections.parquet; `truth` is `images` of truth.json, by file name.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in truth}
    for row in detections:
        rows[Path(row["path"]).name].append(row)
    agreement = Agreement()
    for name, picture in truth.items():
        free = [thing for thing in picture["objects"] if thing["label"] == "dog"]
        agreement.drawn += len(free)
        for row in sorted(rows[name], key=lambda row: -row["score"]):
            best = max(free, key=lambda dog: iou(row["box"], dog["box"]), default=None)
            if best is None or iou(row["box"], best["box"]) < LEAST_IOU:
                agreement.false += 1
                continue
            free.remove(best)
            agreement.found += 1
            for name_of_field in FIELDS:
                agreement.right[name_of_field] += row[name_of_field] == best[name_of_field]
    return agreement
