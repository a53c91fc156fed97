"""Exported detectors that cannot be served: one clear line, before a request comes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from services.detector.backends import DetectorError, backend
from services.detector.backends.onnx_runtime import OnnxDetector, read
from services.detector.checkpoint import CheckpointError
from services.detector.messages import Failed, Found, Frame
from services.detector.settings import Settings
from tests.conftest import ROOT
from tests.onnx_graphs import ultralytics, write_graph

NAMES = ["dog", "cat", "ball"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A YOLO that describes itself and finds nothing."""
    outputs = {"output0": np.zeros((7, 84), np.float32)}
    return write_graph(tmp_path / "m.onnx", outputs, metadata=ultralytics(NAMES))


def refused(path: Path) -> str:
    """Why a model is refused before it is loaded."""
    with pytest.raises(CheckpointError) as caught:
        read(str(path), None)
    (line,) = str(caught.value).splitlines()
    return line


def stopped(path: Path, **settings: Any) -> str:
    """Why a model is refused when it is loaded."""
    with pytest.raises(DetectorError) as caught:
        OnnxDetector(Settings(model=str(path), **settings), read(str(path), None))
    (line,) = str(caught.value).splitlines()
    return line


def write(path: Path, text: str) -> Path:
    path.with_suffix(".yaml").write_text(text)
    return path


def changed(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n\x1a\n" * 9, b"PK"]
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "m.onnx" in refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short(tmp_path: Path, share: float) -> None:
    whole = (ROOT / "samples/models/tiny-detector/model.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert "not a whole ONNX file" in refused(tmp_path / "m.onnx")


def test_no_byte_of_a_file_makes_the_reader_fail_in_another_way(path: Path) -> None:
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read(str(path), None)


def test_operators_of_another_runtime_are_named(path: Path) -> None:
    node = helper.make_node("EfficientNMS_TRT", ["images"], ["x"], domain="TRT")
    assert "TRT.EfficientNMS_TRT" in refused(changed(path, lambda model: model.graph.node.append(node)))


def test_lost_weights_are_named(tmp_path: Path, path: Path) -> None:
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    read(str(path), None)
    (tmp_path / "m.onnx_data").unlink()
    assert "m.onnx_data" in refused(path)


@pytest.mark.parametrize("count", [2, 4, 80])
def test_a_wrong_number_of_labels_is_told_with_the_shape(path: Path, count: int) -> None:
    line = refused(write(path, f"labels: {[f'label {number}' for number in range(count)]}"))
    assert f"{count} labels" in line
    assert "7 x 84" in line


def test_a_wrong_number_of_labels_is_told_where_only_a_run_shows_the_classes(tmp_path: Path) -> None:
    outputs = {"logits": np.zeros((5, 3), np.float32), "pred_boxes": np.full((5, 4), 0.5, np.float32)}
    path = write_graph(tmp_path / "m.onnx", outputs)
    assert "3 classes, but 5 labels" in stopped(write(path, "family: detr\nlabels: [a, b, c, d, e]"))


def test_a_graph_that_says_nothing_names_the_file_to_write(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", {"output0": np.zeros((7, 84), np.float32)})
    assert "m.yaml with `labels:" in refused(path)
    assert "m.yaml with `family: yolo`" in refused(write(path, "labels: [a, b, c]"))
    read(str(write(path, "labels: [a, b, c]\nfamily: yolo")), None)


def test_an_input_size_that_nobody_says(tmp_path: Path) -> None:
    outputs = {"output0": np.zeros((7, 84), np.float32)}
    path = write_graph(tmp_path / "m.onnx", outputs, ("batch", 3, "height", "width"))
    assert "m.yaml with `size:" in refused(write(path, "labels: [a, b, c]\nfamily: yolo"))


def test_an_input_that_cannot_be_filled_in(tmp_path: Path) -> None:
    outputs = {"output0": np.zeros((7, 84), np.float32)}
    more = {"scale_factor": ("batch", 2)}
    path = write_graph(tmp_path / "m.onnx", outputs, metadata=ultralytics(NAMES), more_inputs=more)
    assert "scale_factor (? x 2)" in refused(path)


def test_outputs_of_no_family(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", {"features": np.zeros((9, 9, 9), np.float32)})
    line = refused(write(path, "labels: [a]\nchannels: rgb"))
    assert "features (? x 9 x 9 x 9)" in line
    assert "family" in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("labels: [a, b, c]\nfamily: yolo\ncolour: rgb", "colour is not a key"),
        ("family: yolo99", "yolo99 is unknown"),
        ("channels: gray", "channels: input should be 'rgb' or 'bgr'"),
        ("boxes: polar", "boxes: polar"),
        ("outputs: {output: nothing}", "no output output: nothing"),
        ("outputs: {output: output0, masks: m}", "masks"),
        ("size: [640]", "size"),
        ("labels: {a: 1}", "labels"),
        ("labels: []", "labels"),
        ("[1, 2]", "not a map"),
        ("{", "cannot be read as YAML"),
        ("batch: 0", "batch"),
        ("size: [32, 32]", "size: (32, 32), but the graph fixes (64, 64)"),
        ("anchors: {layers: 2}", "need `boxes: anchors`"),
    ],
)
def test_a_wrong_description(path: Path, text: str, reason: str) -> None:
    line = refused(write(path, text))
    assert reason in line
    assert "m.yaml" in line or "m.onnx" in line


def test_another_task_of_ultralytics(tmp_path: Path) -> None:
    outputs = {"output0": np.zeros((7, 84), np.float32)}
    path = write_graph(tmp_path / "m.onnx", outputs, metadata=ultralytics(NAMES, task="segment"))
    assert "segment" in refused(path)


def test_several_files_in_a_folder(path: Path, tmp_path: Path) -> None:
    assert read(str(tmp_path), None).labels == frozenset(NAMES)
    (tmp_path / "other.onnx").write_bytes(path.read_bytes())
    assert "m.onnx, other.onnx" in refused(tmp_path)


def test_the_backend_is_chosen_by_the_files(path: Path, tmp_path: Path) -> None:
    kinds = {model: backend(Settings(model=str(model))).__name__ for model in (path, tmp_path)}  # type: ignore[attr-defined]
    assert all(name.endswith("onnx_runtime") for name in kinds.values())
    assert backend(Settings(model="samples/models/tiny-detector")).__name__.endswith("closed_set")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "cuda"}, "DETECTOR_DEVICE=cuda"),
        ({"dtype": "float16"}, "DETECTOR_DTYPE=float16"),
        ({"memory_share": 0.5}, "DETECTOR_MEMORY_SHARE=0.5"),
    ],
)
def test_settings_that_do_not_apply(path: Path, settings: dict[str, Any], reason: str) -> None:
    assert reason in stopped(path, **settings)


def test_an_environment_without_onnx_runtime_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "take the environment detector-cpu" in stopped(path)


def test_places_that_are_not_a_yolox_grid(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", {"output": np.zeros((50, 8), np.float32)})
    assert "50 places, expected 84" in stopped(write(path, "labels: [a, b, c]\nfamily: yolox"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_end_the_start(tmp_path: Path, value: float) -> None:
    outputs = {"output0": np.full((7, 84), value, np.float32)}
    path = write_graph(tmp_path / "m.onnx", outputs, metadata=ultralytics(NAMES))
    assert "not finite" in stopped(path)


def test_a_class_without_a_label_fails_its_image_alone(tmp_path: Path) -> None:
    rows = np.zeros((20, 6), np.float32)
    rows[0] = (1, 1, 9, 9, 0.7, 5)
    path = write_graph(tmp_path / "m.onnx", {"output0": rows}, metadata=ultralytics(NAMES))
    model = OnnxDetector(Settings(model=str(path)), read(str(path), None))
    pixels = np.zeros((64, 64, 3), np.uint8)
    low, high = model.detect([Frame(pixels, 64, 64, {"dog": at}, at) for at in (0.4, 0.8)])
    assert isinstance(low, Failed)
    assert "class 5" in low.reason
    assert isinstance(high, Found)
