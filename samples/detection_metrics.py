"""How good a detector is: average precision as COCO computes it, and in how many pictures it counts right.

Training and its evaluation run in the detector's environments, which have no pycocotools; a test holds these figures to
those of `pipeline.output.evaluation`, which pycocotools makes. Boxes are `xyxy`; the unit does not matter as long as it
is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# COCO's evaluation reads the precision at these recalls (cocoeval's recThrs).
RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ScoredBoxes:
    """What a detector found of one label in one picture: N x 4 boxes and N scores, in any order."""

    boxes: FloatArray
    scores: FloatArray

    def above(self, threshold: float) -> ScoredBoxes:
        """Return the boxes whose score is at least `threshold`."""
        keep = self.scores >= threshold
        return ScoredBoxes(self.boxes[keep], self.scores[keep])


@dataclass(frozen=True)
class Counts:
    """Matches over all pictures at one score threshold."""

    found: int
    missed: int
    false: int
    exact_pictures: int
    pictures: int

    @property
    def recall(self) -> float:
        """Part of the true boxes that were found; NaN when there are none."""
        total = self.found + self.missed
        return self.found / total if total else float("nan")

    @property
    def exact_rate(self) -> float:
        """Part of the pictures where every true box was found and nothing else; NaN without pictures."""
        return self.exact_pictures / self.pictures if self.pictures else float("nan")


def iou_matrix(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the N x M intersections over unions of N x 4 and M x 4 boxes; 0 where the union has no area."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (bottom_right - top_left).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(a)[:, None] + _areas(b)[None, :] - shared
    ious: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ious


def match(found: ScoredBoxes, truth: FloatArray, iou_threshold: float) -> NDArray[np.bool_]:
    """Say of each found box, in the order of falling score, whether it matches a true box of its own.

    As in COCO, each takes the true box with the highest IoU among those that no higher score has taken.
    """
    order = np.argsort(-found.scores, kind="stable")
    ious = iou_matrix(found.boxes[order], truth)
    matched = np.zeros(len(order), dtype=np.bool_)
    if len(truth) == 0:
        return matched
    for row, candidates in enumerate(ious):
        best = int(candidates.argmax())
        if candidates[best] >= iou_threshold:
            matched[row] = True
            ious[:, best] = -1.0
    return matched


def average_precision(found: Sequence[ScoredBoxes], truth: Sequence[FloatArray], iou_threshold: float = 0.5) -> float:
    """Return the average precision of one label over pictures: COCO's, interpolated at 101 recalls.

    `found` and `truth` go picture by picture; a truth is an M x 4 array. NaN when no picture holds a true box.
    """
    total = sum(len(boxes) for boxes in truth)
    if total == 0:
        return float("nan")
    pairs = list(zip(found, truth, strict=True))
    scores = np.concatenate([-np.sort(-boxes.scores) for boxes, _ in pairs])
    hits = np.concatenate([match(boxes, true, iou_threshold) for boxes, true in pairs])
    hits = hits[np.argsort(-scores, kind="stable")]
    true_positives = np.cumsum(hits)
    recall = true_positives / total
    precision = true_positives / np.arange(1, len(hits) + 1)
    # The best precision at this recall or a higher one; 0 at recalls that are never reached.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALL_POINTS, side="left")].mean())


def count_matches(
    found: Sequence[ScoredBoxes], truth: Sequence[FloatArray], score_threshold: float, iou_threshold: float = 0.5
) -> Counts:
    """Count what a detector that reports only scores of at least `score_threshold` finds, misses and makes up."""
    hits = missed = false = exact = 0
    for boxes, true in zip(found, truth, strict=True):
        matched = match(boxes.above(score_threshold), true, iou_threshold)
        here = int(matched.sum())
        hits += here
        missed += len(true) - here
        false += len(matched) - here
        exact += here == len(true) == len(matched)
    return Counts(hits, missed, false, exact, len(truth))


def _areas(boxes: FloatArray) -> FloatArray:
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    return np.asarray(sides[:, 0] * sides[:, 1])
