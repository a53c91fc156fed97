"""From a model's boxes to those of an answer: the labels that are looked for, inside the image, each object once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.detector.messages import Detection, Found, Frame
from services.detector.nms import non_maximum_suppression


def select(
    frame: Frame,
    boxes: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    labels: Sequence[str],
    max_iou: float,
) -> Found:
    """Keep the boxes that the frame asks for, clipped to the image; suppress duplicates within each label.

    Two labels never suppress each other: a person on a horse stays two objects.

    Args:
        frame: names the labels and their lowest scores; a score must be greater.
        boxes: `(n, 4)`, `xyxy`, pixels of the upright image; may reach beyond it.
        scores: `(n,)`, 0..1.
        labels: of each box.
        max_iou: a box that overlaps a better one of its label by more is dropped.

    Returns:
        The detections, by descending score; of equal scores, in the model's order.
    """
    least = [frame.least(label) for label in labels]
    wanted = np.array([at is not None and score > at for at, score in zip(least, scores, strict=True)], dtype=bool)
    limits = np.array([frame.width, frame.height, frame.width, frame.height], dtype=np.float32)
    clipped = np.clip(boxes.reshape(-1, 4), 0, limits)
    wanted &= (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    kept: list[int] = []
    candidates: list[int] = np.flatnonzero(wanted).tolist()
    for label in {labels[index] for index in candidates}:
        own = np.array([index for index in candidates if labels[index] == label])
        kept += own[non_maximum_suppression(clipped[own], scores[own], max_iou)].tolist()
    detections = []
    for index in sorted(kept, key=lambda index: (-scores[index], index)):
        x1, y1, x2, y2 = clipped[index].tolist()
        detections.append(Detection((x1, y1, x2, y2), labels[index], float(scores[index])))
    return Found(tuple(detections), frame.width, frame.height)
