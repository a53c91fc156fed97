"""A run's progress, and the share of rows that fail at a service."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from pipeline import tables

# Fewer rows than this say nothing about a run.
JUDGED_ROWS = 50

# Only the last rows count: otherwise a key that is revoked after 50,000 answers would fail as many before the run ends.
LATELY_ROWS = 1000


@dataclass
class Progress:
    """Images count when all of their detections have ended."""

    total: int
    images: Counter[str] = field(default_factory=Counter)
    """Of tables.IMAGE_OUTCOMES and tables.DUPLICATE."""
    detections: Counter[str] = field(default_factory=Counter)
    """Of tables.DETECTION_OUTCOMES."""
    rows: int = 0
    """Rows that came out of the flow: detections, and images without one."""
    lately: deque[bool] = field(default_factory=lambda: deque(maxlen=LATELY_ROWS))
    """Of the last rows: whether a service failed them."""

    @property
    def done(self) -> int:
        """Images that have ended."""
        return self.images.total()

    @property
    def failures(self) -> int:
        """Images and detections that failed."""
        return self.images[tables.FAILED] + self.detections[tables.FAILED]

    def row(self, stage_failed: str | None) -> None:
        """Count one row of the flow."""
        self.rows += 1
        self.lately.append(stage_failed in ("fetch", "detect", "ask"))

    def image(self, outcome: str, detections: list[dict[str, Any]]) -> None:
        """Count one complete image."""
        self.images[outcome] += 1
        self.detections.update(row["outcome"] for row in detections)

    def failure_rate(self) -> float:
        """The share of the last rows that a service failed; 0 while there are too few to judge."""
        return sum(self.lately) / len(self.lately) if len(self.lately) >= JUDGED_ROWS else 0.0
