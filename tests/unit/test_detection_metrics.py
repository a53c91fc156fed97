"""Average precision and counts against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samples.detection_metrics import (
    FloatArray,
    ScoredBoxes,
    average_precision,
    count_matches,
    iou_matrix,
    match,
)

A = (0, 0, 10, 10)
B = (100, 100, 110, 110)
C = (200, 200, 210, 210)
NOWHERE = (500, 500, 510, 510)


def boxes(*corners: tuple[float, float, float, float]) -> FloatArray:
    return np.array(corners, np.float64).reshape(-1, 4)


def found(*scored: tuple[tuple[float, float, float, float], float]) -> ScoredBoxes:
    return ScoredBoxes(boxes(*(box for box, _ in scored)), np.array([score for _, score in scored], np.float64))


def test_iou_is_shared_area_over_union() -> None:
    # Two 10 x 10 boxes that share 5 x 10: 50 / (100 + 100 - 50).
    ious = iou_matrix(boxes(A, (5, 0, 15, 10)), boxes(A, B))
    assert ious == pytest.approx(np.array([[1.0, 0.0], [1 / 3, 0.0]]))


def test_iou_of_boxes_without_area_is_zero() -> None:
    assert iou_matrix(boxes((3, 3, 3, 3)), boxes((3, 3, 3, 3))).tolist() == [[0.0]]


def test_a_second_box_on_the_same_object_does_not_match() -> None:
    assert match(found((A, 0.6), (A, 0.9)), boxes(A), 0.5).tolist() == [True, False]


def test_the_higher_score_chooses_first_and_takes_the_best_overlap() -> None:
    # The weaker box lies exactly on the object that the stronger one overlaps best, and the other is too far off.
    near, shifted = (0, 0, 10, 10), (0, 1, 10, 11)
    assert match(found((near, 0.5), (shifted, 0.9)), boxes(near, C), 0.5).tolist() == [True, False]


def test_perfect_detections_have_an_average_precision_of_one() -> None:
    assert average_precision([found((A, 0.9), (B, 0.8)), found((C, 0.7))], [boxes(A, B), boxes(C)]) == 1.0


def test_order_is_by_score_over_all_pictures() -> None:
    # Sorted: hit, miss, hit of 2 objects: precision 1 up to recall 0.5 (51 points), 2/3 above (50 points).
    value = average_precision([found((A, 0.9)), found((NOWHERE, 0.8), (B, 0.7))], [boxes(A), boxes(B)])
    assert value == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_recall_that_is_never_reached_counts_as_precision_zero() -> None:
    # One of two objects: precision 1 at the 51 recalls from 0 to 0.5, 0 at the other 50.
    assert average_precision([found((A, 0.9))], [boxes(A, B)]) == pytest.approx(51 / 101)


def test_precision_at_a_recall_is_the_best_at_this_recall_or_above() -> None:
    # miss, hit, hit: the raw precisions at the hits are 1/2 and 2/3; the first is raised to 2/3.
    assert average_precision([found((NOWHERE, 0.9), (A, 0.8), (B, 0.7))], [boxes(A, B)]) == pytest.approx(2 / 3)


def test_a_stricter_overlap_turns_a_hit_into_a_miss() -> None:
    loose = [found(((0, 0, 10, 6), 0.9))]  # IoU 0.6
    assert average_precision(loose, [boxes(A)], iou_threshold=0.5) == 1.0
    assert average_precision(loose, [boxes(A)], iou_threshold=0.75) == 0.0


def test_average_precision_without_objects_is_undefined() -> None:
    assert math.isnan(average_precision([found((A, 0.9))], [boxes()]))


def test_average_precision_without_detections_is_zero() -> None:
    assert average_precision([found()], [boxes(A)]) == 0.0


def test_counts_of_four_pictures() -> None:
    pictures = [
        (found((A, 0.9), (B, 0.8)), boxes(A, B)),  # exact
        (found((A, 0.9), (A, 0.8)), boxes(A)),  # one duplicate
        (found((NOWHERE, 0.9)), boxes(A)),  # right number, wrong place
        (found((A, 0.3)), boxes()),  # exact: the score is below the threshold
    ]
    counts = count_matches([one for one, _ in pictures], [truth for _, truth in pictures], score_threshold=0.5)
    assert (counts.found, counts.missed, counts.false) == (3, 1, 2)
    assert counts.recall == pytest.approx(3 / 4)
    assert counts.exact_rate == pytest.approx(2 / 4)


def test_rates_of_nothing_are_undefined() -> None:
    counts = count_matches([], [], score_threshold=0.5)
    assert math.isnan(counts.recall)
    assert math.isnan(counts.exact_rate)


def test_pictures_and_truths_must_go_together() -> None:
    with pytest.raises(ValueError, match="zip"):
        average_precision([found((A, 0.9))], [boxes(A), boxes(B)])
