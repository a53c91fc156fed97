"""Exported detectors of every family give back the boxes that were put into their graphs, in the image's own pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from services.detector.backends.onnx_runtime import OnnxDetector, read
from services.detector.exported.anchors import anchors
from services.detector.messages import Found, Frame
from services.detector.settings import Settings
from tests.onnx_graphs import ultralytics, write_graph

NAMES = ["dog", "cat", "ball"]

# An image of 128 x 96 letterboxed into 64 x 64: half its size, 8 rows of grey above and below.
WIDTH, HEIGHT = 128, 96
DOG, CAT = (20.0, 10.0, 60.0, 50.0), (70.0, 30.0, 110.0, 90.0)


def letterboxed(box: tuple[float, ...]) -> npt.NDArray[Any]:
    """`xyxy` of the image in pixels of the input."""
    return np.array(box, np.float32) / 2 + np.array([0, 8, 0, 8], np.float32)


def stretched(box: tuple[float, ...]) -> npt.NDArray[Any]:
    """`xyxy` of the image in pixels of an input of 64 x 64."""
    return np.array(box, np.float32) * np.array([64 / WIDTH, 64 / HEIGHT] * 2, np.float32)


def centred(box: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`xyxy` to centre and size."""
    return np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def load(path: Path, **settings: Any) -> OnnxDetector:
    checkpoint = read(str(path), None)
    return OnnxDetector(Settings(model=str(path), **settings), checkpoint)


def found(path: Path, label: str = "dog", threshold: float = 0.4, images: int = 1) -> list[Found]:
    """What a model finds in images of 128 x 96, scaled as the service scales them."""
    size = read(str(path), None).input_size.of(WIDTH, HEIGHT)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    outcomes = load(path).detect([Frame(pixels, WIDTH, HEIGHT, {label: threshold}, threshold)] * images)
    assert all(isinstance(each, Found) for each in outcomes), outcomes
    return [each for each in outcomes if isinstance(each, Found)]


def assert_finds_both(path: Path) -> None:
    for images in (1, 3):
        for label, box, score in (("dog", DOG, 0.9), ("cat", CAT, 0.6)):
            for each in found(path, label, images=images):
                (item,) = each.detections
                assert item.label == label
                assert item.score == pytest.approx(score, abs=1e-5)
                assert item.box == pytest.approx(box, abs=1e-3)
                assert (each.width, each.height) == (WIDTH, HEIGHT)
    assert found(path, "ball")[0].detections == ()


def describe(path: Path, **keys: Any) -> Path:
    """Write the description beside a model."""
    path.with_suffix(".yaml").write_text(yaml.safe_dump(keys))
    return path


def yolo_rows(count: int = 84) -> npt.NDArray[Any]:
    """YOLO v8 and 11: 4 + labels rows, a column for each place; the dog twice, to be suppressed."""
    rows = np.zeros((4 + len(NAMES), count), np.float32)
    rows[:4, 5], rows[4, 5] = centred(letterboxed(DOG)), 0.9
    rows[:4, 6], rows[4, 6] = centred(letterboxed(DOG)) + 0.5, 0.8
    rows[:4, 40], rows[5, 40] = centred(letterboxed(CAT)), 0.6
    return rows


def end_to_end_rows() -> npt.NDArray[Any]:
    rows = np.zeros((20, 6), np.float32)
    rows[0], rows[1] = (*letterboxed(DOG), 0.9, 0), (*letterboxed(CAT), 0.6, 1)
    return rows


def yolox_rows(decoded: bool) -> npt.NDArray[Any]:
    """YOLOX: a row for each cell of grids with strides 8, 16 and 32; the input's corner holds the image."""
    rows = np.zeros((64 + 16 + 4, 5 + len(NAMES)), np.float32)
    rows[:, 2:4] = 0.0 if not decoded else 1.0
    for cell, stride, x, y, box, scores in (
        (3 * 8 + 2, 8, 2, 3, DOG, (0.9, 1.0, 0.0, 0.0)),
        (64 + 1 * 4 + 3, 16, 3, 1, CAT, (0.75, 0.0, 0.8, 0.0)),
    ):
        centre_x, centre_y, width, height = centred(np.array(box, np.float32) / 2)
        place = (centre_x / stride - x, centre_y / stride - y, np.log(width / stride), np.log(height / stride))
        rows[cell] = ((centre_x, centre_y, width, height) if decoded else place) + scores
    return rows


def detr_outputs(no_object: bool) -> dict[str, npt.NDArray[Any]]:
    logits = np.full((10, len(NAMES) + no_object), -20, np.float32)
    logits[0, 0], logits[1, 1] = logit(0.9), logit(0.6)
    if no_object:
        logits[:, -1] = 20
        logits[0], logits[1] = np.log([0.9, 0.05, 0.02, 0.03]), np.log([0.1, 0.6, 0.1, 0.2])
    boxes = np.full((10, 4), 0.5, np.float32)
    boxes[0], boxes[1] = centred(stretched(DOG)) / 64, centred(stretched(CAT)) / 64
    return {"logits": logits, "pred_boxes": boxes}


def test_yolo_without_suppression(tmp_path: Path) -> None:
    assert_finds_both(write_graph(tmp_path / "m.onnx", {"output0": yolo_rows()}, metadata=ultralytics(NAMES)))


def test_yolo_of_a_fixed_batch_of_one(tmp_path: Path) -> None:
    shape = (1, 3, 64, 64)
    assert_finds_both(write_graph(tmp_path / "m.onnx", {"output0": yolo_rows()}, shape, metadata=ultralytics(NAMES)))


def test_a_fixed_batch_of_four_is_filled(tmp_path: Path) -> None:
    shape = (4, 3, 64, 64)
    path = write_graph(tmp_path / "m.onnx", {"output0": yolo_rows()}, shape, metadata=ultralytics(NAMES))
    assert len(found(path, images=6)) == 6


def test_sizes_that_the_graph_leaves_open_come_from_the_metadata(tmp_path: Path) -> None:
    shape = ("batch", 3, "height", "width")
    assert_finds_both(write_graph(tmp_path / "m.onnx", {"output0": yolo_rows()}, shape, metadata=ultralytics(NAMES)))


@pytest.mark.parametrize("inside", ["no", "end2end", "nms"])
def test_ultralytics_export_with_open_sizes(tmp_path: Path, inside: str) -> None:
    """Its outputs have no sizes, so its metadata says whether suppression is inside."""
    said = ultralytics(NAMES) | {
        "end2end": str(inside == "end2end"),
        "args": f"{{'batch': 1, 'nms': {inside == 'nms'}}}",
    }
    outputs = {"output0": yolo_rows() if inside == "no" else end_to_end_rows()}
    shape = ("batch", 3, "height", "width")
    assert_finds_both(write_graph(tmp_path / "m.onnx", outputs, shape, metadata=said, open_outputs=True))


def test_half_precision_input(tmp_path: Path) -> None:
    outputs = {"output0": yolo_rows()}
    assert_finds_both(write_graph(tmp_path / "m.onnx", outputs, dtype="float16", metadata=ultralytics(NAMES)))


def test_yolo_end_to_end(tmp_path: Path) -> None:
    assert_finds_both(write_graph(tmp_path / "m.onnx", {"output0": end_to_end_rows()}, metadata=ultralytics(NAMES)))


@pytest.mark.parametrize("decoded", [False, True])
def test_yolox(tmp_path: Path, decoded: bool) -> None:
    path = write_graph(tmp_path / "m.onnx", {"output": yolox_rows(decoded)})
    assert_finds_both(describe(path, family="yolox", labels=NAMES, boxes="decoded" if decoded else "grid"))


@pytest.mark.parametrize("no_object", [False, True])
def test_detr_as_transformers_exports_it(tmp_path: Path, no_object: bool) -> None:
    path = write_graph(tmp_path / "m.onnx", detr_outputs(no_object))
    assert_finds_both(describe(path, labels=NAMES, channels="rgb", resize="stretch", scale=1 / 255))


def test_detr_with_suppression_of_its_own(tmp_path: Path) -> None:
    outputs: dict[str, npt.NDArray[Any]] = {
        "labels": np.array([0, 1, 2], np.int64),
        "boxes": np.stack([stretched(DOG), stretched(CAT), stretched((0, 0, 9, 9))]),
        "scores": np.array([0.9, 0.6, 0.1], np.float32),
    }
    path = write_graph(tmp_path / "m.onnx", outputs, more_inputs={"orig_target_sizes": ("batch", 2)})
    assert_finds_both(describe(path, family="detr-postprocessed", labels=NAMES))


@pytest.mark.parametrize("scores", ["probabilities", "logits", "softmax"])
@pytest.mark.parametrize("boxes", ["y1x1y2x2", "x1y1x2y2", "anchors"])
def test_ssd(tmp_path: Path, boxes: str, scores: str) -> None:
    base = anchors((64, 64), {"layers": 2})
    table = np.zeros((len(base), 4), np.float32)
    values = np.full((len(base), 4), {"probabilities": 0.0, "logits": -20.0, "softmax": -20.0}[scores], np.float32)
    if scores == "softmax":
        values[:, 0] = 0.0
    for place, column, box, score in ((7, 1, DOG, 0.9), (30, 2, CAT, 0.6)):
        x1, y1, x2, y2 = stretched(box) / 64
        values[place, column] = score if scores == "probabilities" else logit(score)  # of softmax: beside one of 0
        if boxes == "anchors":
            y, x, height, width = base[place]
            centre = ((y1 + y2) / 2 - y) / height * 10, ((x1 + x2) / 2 - x) / width * 10
            table[place] = (*centre, np.log((y2 - y1) / height) * 5, np.log((x2 - x1) / width) * 5)
        else:
            table[place] = (y1, x1, y2, x2) if boxes == "y1x1y2x2" else (x1, y1, x2, y2)
    path = write_graph(tmp_path / "m.onnx", {"a": table[:, None], "b": values}, ("batch", 64, 64, 3), dtype="uint8")
    keys = {"labels": {1: "dog", 2: "cat", 3: "ball"}, "family": "ssd", "channels": "rgb", "resize": "stretch"}
    forms = {"boxes": boxes, "scores": scores, "outputs": {"boxes": "a", "scores": "b"}}
    assert_finds_both(describe(path, **keys, **forms, **({"anchors": {"layers": 2}} if boxes == "anchors" else {})))


def test_the_anchors_of_a_mobilenet_ssd() -> None:
    base = anchors((300, 300), {})
    assert len(base) == 1917
    assert base[0] == pytest.approx((0.5 / 19, 0.5 / 19, 0.1, 0.1))
    assert base[-1] == pytest.approx((0.5, 0.5, 0.974679, 0.974679), abs=1e-5)
