"""Which of a model's boxes become detections."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from services.detector.messages import Frame
from services.detector.selection import select

PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)
BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [1, 0, 10, 10], [50, 50, 120, 90]], dtype=np.float32)
SCORES = np.array([0.5, 0.9, 0.8, 0.3], dtype=np.float32)
LABELS = ["dog", "dog", "cat", "dog"]


def chosen(labels: Mapping[str, float] | None, threshold: float = 0.1) -> list[tuple[str, float]]:
    found = select(Frame(PIXELS, 100, 80, labels, threshold), BOXES, SCORES, LABELS, 0.6)
    assert (found.width, found.height) == (100, 80)
    return [(item.label, round(item.score or 0, 2)) for item in found.detections]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"dog": 0.1}, [("dog", 0.9), ("dog", 0.3)]),
        ({"dog": 0.4, "cat": 0.1}, [("dog", 0.9), ("cat", 0.8)]),
        ({"cat": 0.85}, []),
        (None, [("dog", 0.9), ("cat", 0.8), ("dog", 0.3)]),
    ],
)
def test_duplicates_are_suppressed_within_a_label_only(
    labels: Mapping[str, float] | None, expected: list[tuple[str, float]]
) -> None:
    assert chosen(labels) == expected


def test_boxes_are_clipped_and_those_outside_are_dropped() -> None:
    boxes = np.array([[50, 50, 120, 90], [100, 0, 120, 9], [-9, -9, -1, -1]], dtype=np.float32)
    found = select(
        Frame(PIXELS, 100, 80, None, 0.0), boxes, np.array([0.5, 0.9, 0.9], dtype=np.float32), ["a"] * 3, 0.6
    )
    assert [item.box for item in found.detections] == [(50, 50, 100, 80)]


def test_no_box_at_all() -> None:
    frame = Frame(PIXELS, 100, 80, None, 0.0)
    assert select(frame, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], 0.6).detections == ()
