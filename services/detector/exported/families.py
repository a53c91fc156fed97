"""The families of exported detectors: how to recognise one, and what its outputs mean.

To add one: a function from outputs to `Candidates`, and its line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.detector.exported.anchors import decode_anchors
from services.detector.exported.graph import Graph, Shape

Floats = npt.NDArray[np.float32]

YOLO_STRIDES = (8, 16, 32)
YOLO_STRIDES_P6 = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes `(n, 4)`, `xyxy` in pixels of the model's input, and their scores in 0..1.

    `scores` is `(n, classes)`; or `(n,)`, where `classes` `(n,)` has the class index of each box.
    """

    boxes: Floats
    scores: Floats
    classes: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a family's function needs to know beside the outputs."""

    width: int
    height: int
    boxes: str
    scores: str
    labels: int
    """The number of labels."""
    anchors: Mapping[str, float]


class Misfit(Exception):
    """The outputs are not those of this family; the message says what differs."""


Outputs = Mapping[str, Any]
Read = Callable[[Outputs, Meaning], Candidates]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of exported detector.

    `name` is the value of `family:` in a description. `outputs` are its roles, by which `read` gets one image's arrays.
    `boxes` and `scores` are the forms that the family knows, the usual one first. `defaults` is its usual
    preprocessing; None: it has none, and the description gives it.
    """

    name: str
    title: str
    outputs: tuple[str, ...]
    recognise: Callable[[Graph, int | None, tuple[int, int]], bool]
    read: Read
    defaults: Mapping[str, Any] | None
    boxes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()


def corners(boxes: Floats) -> Floats:
    """Centre x, centre y, width, height to `xyxy`."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow at either end."""
    small = np.exp(-np.abs(values))
    share: Floats = np.where(values >= 0, 1, small) / (1 + small)
    return share


def softmax(values: Floats) -> Floats:
    """Along the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    share: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return share


def cells(width: int, height: int, strides: tuple[int, ...]) -> int:
    """How many grid cells a YOLO has for an input."""
    return sum((width // stride) * (height // stride) for stride in strides)


def rows(value: Any, columns: int | None = None) -> Floats:
    """An output as `(n, columns)`.

    Raises:
        Misfit: it has another number of columns.
    """
    table: Floats = np.asarray(value, dtype=np.float32)
    table = table.reshape(-1, table.shape[-1])
    if columns is not None and table.shape[1] != columns:
        raise Misfit(f"{table.shape[1]} columns, expected {columns}")
    return table


def _yolo(outputs: Outputs, meaning: Meaning) -> Candidates:
    """4 + classes rows, a column for each place: centre, size in pixels, then scores of the classes."""
    value = np.asarray(outputs["output"], dtype=np.float32)
    table = value.reshape(value.shape[-2:]).T
    return Candidates(corners(table[:, :4]), table[:, 4:])


def _end_to_end(outputs: Outputs, meaning: Meaning) -> Candidates:
    """A row for each object: `xyxy` in pixels, score, class; padded with rows of zeros."""
    table = rows(outputs["output"], 6)
    return Candidates(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def _yolox(outputs: Outputs, meaning: Meaning) -> Candidates:
    """A row for each place: centre, size, objectness, scores of the classes.

    YOLOX's own export leaves centre and size as offsets in a grid of each stride, and logarithms of strides.
    """
    table = rows(outputs["output"])
    boxes = table[:, :4]
    if meaning.boxes == "grid":
        places, strides = _grid(meaning.width, meaning.height, len(table))
        boxes = np.concatenate([(boxes[:, :2] + places) * strides, np.exp(boxes[:, 2:]) * strides], axis=1)
    return Candidates(corners(boxes), table[:, 4:5] * table[:, 5:])


def _grid(width: int, height: int, count: int) -> tuple[Floats, Floats]:
    """The cell (x, y) and the stride of each of a YOLOX model's places."""
    for strides in (YOLO_STRIDES, YOLO_STRIDES_P6):
        if cells(width, height, strides) == count:
            break
    else:
        raise Misfit(
            f"{count} places, expected {cells(width, height, YOLO_STRIDES)} for an input of {width} x {height}"
        )
    places, steps = [], []
    for stride in strides:
        across, down = width // stride, height // stride
        y, x = np.divmod(np.arange(across * down), across)
        places.append(np.stack([x, y], axis=1))
        steps.append(np.full((across * down, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(steps).astype(np.float32)


def _detr(outputs: Outputs, meaning: Meaning) -> Candidates:
    """Boxes as centre and size in parts of the input; logits of the labels, or of the labels and "no object"."""
    share = np.array([meaning.width, meaning.height] * 2, dtype=np.float32)
    logits = rows(outputs["logits"])
    scores = softmax(logits)[:, :-1] if logits.shape[1] == meaning.labels + 1 else sigmoid(logits)
    return Candidates(corners(rows(outputs["pred_boxes"], 4) * share), scores)


def _detr_postprocessed(outputs: Outputs, meaning: Meaning) -> Candidates:
    """`xyxy` in pixels of the size that the model was given as `orig_target_sizes`: its own input's."""
    classes = np.asarray(outputs["labels"]).reshape(-1).astype(np.int64)
    return Candidates(rows(outputs["boxes"], 4), np.asarray(outputs["scores"], np.float32).reshape(-1), classes)


def _ssd(outputs: Outputs, meaning: Meaning) -> Candidates:
    """A box in parts of the input, or relative to its anchor, and scores of the classes, for each place."""
    boxes, scores = rows(outputs["boxes"], 4), rows(outputs["scores"])
    if len(boxes) != len(scores):
        raise Misfit(f"{len(boxes)} boxes, but scores for {len(scores)}")
    if meaning.boxes == "anchors":
        boxes = decode_anchors(boxes, (meaning.width, meaning.height), meaning.anchors)
    if meaning.boxes != "x1y1x2y2":
        boxes = boxes[:, [1, 0, 3, 2]]
    turn: dict[str, Callable[[Floats], Floats]] = {"logits": sigmoid, "softmax": softmax}
    share = np.array([meaning.width, meaning.height] * 2, dtype=np.float32)
    return Candidates(boxes * share, turn[meaning.scores](scores) if meaning.scores in turn else scores)


def _one(graph: Graph) -> Shape | None:
    """The shape of the only output, without the batch."""
    shape = graph.outputs[0].shape
    return shape[-2:] if len(graph.outputs) == 1 and shape is not None and len(shape) in (2, 3) else None


def _named(graph: Graph, *names: str) -> bool:
    return set(names) <= {value.name for value in graph.outputs}


def _is_yolo(graph: Graph, labels: int | None, size: tuple[int, int]) -> bool:
    shape = _one(graph)
    return shape is not None and labels is not None and shape[0] == 4 + labels


def _is_yolox(graph: Graph, labels: int | None, size: tuple[int, int]) -> bool:
    shape = _one(graph)
    if shape is None or labels is None or shape[1] != 5 + labels:
        return False
    # With one label, a row has six numbers as in an end-to-end model, which has far fewer rows.
    counts = [cells(*size, strides) * boxes for strides in (YOLO_STRIDES, YOLO_STRIDES_P6) for boxes in (1, 3)]
    return shape[0] in (None, *counts)


def _is_end_to_end(graph: Graph, labels: int | None, size: tuple[int, int]) -> bool:
    shape = _one(graph)
    return shape is not None and shape[1] == 6 and not _is_yolox(graph, labels, size)


def _is_ssd(graph: Graph, labels: int | None, size: tuple[int, int]) -> bool:
    return _named(graph, "boxes", "scores") and len(graph.outputs) == 2


RGB = {"channels": "rgb", "scale": 1 / 255}
# Ultralytics' letterbox: centred, on grey 114.
LETTERBOX = {**RGB, "resize": "letterbox"}

_FAMILIES = (
    Family(
        "yolo",
        "YOLO v8, v9, 11, 12, 26: no suppression inside",
        ("output",),
        _is_yolo,
        _yolo,
        LETTERBOX,
    ),
    Family(
        "yolo-end-to-end",
        "YOLO v10, 26, and exports with suppression inside",
        ("output",),
        _is_end_to_end,
        _end_to_end,
        LETTERBOX,
    ),
    Family(
        "yolox",
        "YOLOX; with `boxes: decoded` also YOLO v5",
        ("output",),
        _is_yolox,
        _yolox,
        {"channels": "bgr", "scale": 1.0, "resize": "corner"},
        boxes=("grid", "decoded"),
    ),
    Family(
        "detr",
        "RT-DETR, D-FINE, DETR as transformers' models are exported",
        ("logits", "pred_boxes"),
        lambda graph, labels, size: _named(graph, "logits", "pred_boxes"),
        _detr,
        {**RGB, "resize": "stretch"},
    ),
    Family(
        "detr-postprocessed",
        "RT-DETR, D-FINE, DEIM as their own repositories export them",
        ("labels", "boxes", "scores"),
        lambda graph, labels, size: _named(graph, "labels", "boxes", "scores"),
        _detr_postprocessed,
        {**RGB, "resize": "stretch"},
    ),
    Family(
        "ssd",
        "SSD without suppression inside",
        ("boxes", "scores"),
        _is_ssd,
        _ssd,
        None,
        boxes=("y1x1y2x2", "x1y1x2y2", "anchors"),
        scores=("probabilities", "logits", "softmax"),
    ),
)
FAMILIES = {family.name: family for family in _FAMILIES}
"""The first that recognises a graph is taken, unless the description names another."""
