"""Non-maximum suppression without torchvision, whose CUDA builds do not import beside a CPU torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def non_maximum_suppression(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], max_iou: float
) -> list[int]:
    """Keep each box unless a better box of the same object is already kept.

    Args:
        boxes: `(n, 4)`, `xyxy`, all of one label.
        scores: `(n,)`; of equal scores, the first box wins.
        max_iou: a box is dropped if its intersection over union with a kept one is greater.

    Returns:
        Indices of the kept boxes, by descending score.
    """
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-scores, kind="stable")
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[waiting, :2])
        high = np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        overlap = np.prod(np.clip(high - low, 0, None), axis=1)
        union = areas[best] + areas[waiting] - overlap
        # Multiplied, not divided: two boxes without area have no union.
        waiting = waiting[overlap <= max_iou * union]
    return kept
