"""Exported detectors over HTTP, through the real service: known boxes, batches, wrong labels, wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.onnx_graphs import ultralytics, write_graph
from tests.services.detector_process import Launch, Start
from tests.services.test_detector_service import ask, ask_at_once, encoded, metric, metrics, request

NAMES = ["dog", "cat", "ball"]

pytestmark = pytest.mark.slow


@pytest.fixture(params=["batch", 1, 3])
def yolo(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A YOLO, for any batch or a fixed one: a dog in the input's left half, a cat in the right one."""
    rows = np.zeros((7, 84), np.float32)
    rows[:5, 1], rows[:6, 2] = (16, 32, 32, 16, 0.9), (48, 32, 16, 16, 0, 0.7)
    return write_graph(tmp_path / "m.onnx", {"output0": rows}, (request.param, 3, 64, 64), metadata=ultralytics(NAMES))


def test_boxes_come_back_in_pixels_of_each_image(start_detector: Start, yolo: Path) -> None:
    url = start_detector(DETECTOR_MODEL=str(yolo), DETECTOR_MAX_WAIT_MS="500")
    images = [encoded(Image.new("RGB", size, "gray")) for size in ((64, 64), (128, 128), (640, 480), (100, 200))]
    expected = [[(0, 24, 32, 40)], [(0, 48, 64, 80)], [(0, 160, 320, 320)], [(0, 75, 50, 125)]]
    replies = ask_at_once(url, [request(image) for image in images] * 4)
    for reply, boxes in zip(replies, expected * 4, strict=True):
        assert [item["label"] for item in reply.boxes] == ["dog"]
        assert [item["box"] for item in reply.boxes] == [pytest.approx(box, abs=1e-3) for box in boxes]
    text = metrics(url)
    assert metric(text, "detector_batch_size_sum") / metric(text, "detector_batch_size_count") > 1.5
    assert ask(url, request(images[0], "zebra")).status == 422


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("cut", "is not a whole ONNX file"),
        ("labels", "4 labels"),
        ("lost", "is neither a file nor a folder"),
    ],
)
def test_a_wrong_file_ends_at_once_with_one_line(
    launch_detector: Launch, tmp_path: Path, change: str, reason: str
) -> None:
    path = write_graph(tmp_path / "m.onnx", {"output0": np.zeros((7, 84), np.float32)}, metadata=ultralytics(NAMES))
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    if change == "labels":
        path.with_suffix(".yaml").write_text("labels: [a, b, c, d]")
    if change == "lost":
        path.unlink()
    service = launch_detector(DETECTOR_MODEL=str(path))
    assert service.wait() == 2
    assert reason in service.log
    assert len(service.log.splitlines()) == 1


def test_a_graph_that_the_runtime_refuses_ends_the_start(launch_detector: Launch, tmp_path: Path) -> None:
    """The file is whole, but an operator in it does not exist."""
    path = write_graph(tmp_path / "m.onnx", {"output0": np.zeros((7, 84), np.float32)}, metadata=ultralytics(NAMES))
    path.write_bytes(path.read_bytes().replace(b"ReduceMean", b"ReduceMoan"))
    service = launch_detector(DETECTOR_MODEL=str(path))
    assert service.wait() == 1
    assert f"error: cannot load the model {path}: " in service.log
