"""Non-maximum suppression."""

import numpy as np

from services.detector.nms import non_maximum_suppression


def kept(boxes: list[tuple[float, float, float, float]], scores: list[float], max_iou: float = 0.6) -> list[int]:
    return non_maximum_suppression(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32), max_iou
    )


def test_nothing_in_nothing_out() -> None:
    assert kept([], []) == []


def test_a_duplicate_goes_and_the_better_one_stays() -> None:
    assert kept([(0, 0, 10, 10), (1, 0, 11, 10), (50, 50, 60, 60)], [0.5, 0.9, 0.7]) == [1, 2]


def test_the_limit_itself_is_kept() -> None:
    # Intersection 5 x 10 of union 10 x 10: an IoU of exactly one half.
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 5.0, 10.0)]
    assert kept(boxes, [0.9, 0.8], max_iou=0.5) == [0, 1]
    assert kept(boxes, [0.9, 0.8], max_iou=0.49) == [0]


def test_a_dropped_box_drops_no_other() -> None:
    # The second overlaps the first, the third overlaps only the second.
    assert kept([(0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)], [0.9, 0.8, 0.7], max_iou=0.3) == [0, 2]


def test_equal_scores_keep_their_order() -> None:
    assert kept([(0, 0, 1, 1), (5, 5, 6, 6), (9, 9, 10, 10)], [0.5, 0.5, 0.5]) == [0, 1, 2]


def test_boxes_without_area_do_not_divide_by_zero() -> None:
    with np.errstate(all="raise"):
        assert kept([(1, 1, 1, 1), (2, 2, 2, 2)], [0.9, 0.8]) == [0, 1]
