"""moondream2 before it is loaded: which files are a checkpoint of it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.detector.backends import closed_set, moondream2, open_vocabulary
from services.detector.checkpoint import CheckpointError, Files, InputSize
from services.detector.messages import Detection, Frame

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(folder: Path, config: dict[str, Any], *modules: str) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name in modules:
        (folder / name).write_text("raise AssertionError('read() must not run it')")
    return str(folder)


def test_its_own_config_names_it(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, {"model_type": "moondream1"}, "moondream.py")
    assert [each.claims(Files(model, None)) for each in (moondream2, closed_set, open_vocabulary)] == [
        True,
        False,
        False,
    ]
    read = moondream2.read(model, None)
    assert (read.labels, read.revision, read.input_size) == (None, None, InputSize(longest=3304))


@pytest.mark.parametrize(
    ("config", "modules", "reason"),
    [
        ({"model_type": "moondream1"}, [], r"has no moondream\.py"),
        ({"model_type": "detr"}, ["moondream.py"], "model_type 'detr'.*takes moondream1 only"),
        ({}, ["moondream.py"], "model_type None"),
    ],
)
def test_another_model_and_one_without_code_are_refused(
    tmp_path: Path, config: dict[str, Any], modules: list[str], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        moondream2.read(checkpoint(tmp_path, config, *modules), None)


@pytest.mark.parametrize("revision", [None, "main", "2025-06-21", COMMIT[:39], COMMIT.upper()])
def test_code_from_the_hub_needs_a_commit(revision: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"set DETECTOR_REVISION to the commit that you have read, by its 40"):
        moondream2.read("vikhyatk/moondream2", revision)


def test_with_a_commit_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint(tmp_path, {"model_type": "moondream1"}, "moondream.py")
    asked = []

    def fetch(model: str, revision: str | None, name: str) -> Path:
        asked.append((model, revision, name))
        return tmp_path / name

    monkeypatch.setattr("services.detector.checkpoint._fetch", fetch)
    read = moondream2.read("vikhyatk/moondream2", COMMIT)
    assert asked[0] == ("vikhyatk/moondream2", COMMIT, "config.json")
    assert (read.model, read.revision) == ("vikhyatk/moondream2", tmp_path.name)


def test_boxes_are_clipped_and_have_no_score() -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    frame = Frame(pixels, 200, 100, {"dog": 1.0}, 1.0)
    box = {"x_min": -0.2, "y_min": 0.5, "x_max": 0.5, "y_max": 1.3}
    beyond = {"x_min": 1.1, "y_min": 0.0, "x_max": 1.4, "y_max": 1.0}
    found = moondream2.found(frame, [("dog", box), ("dog", beyond), ("dog", box)], max_iou=0.6)
    assert found.detections == (Detection((0.0, 50.0, 100.0, 100.0), "dog", None),)
    assert (found.width, found.height) == (200, 100)
    assert moondream2.found(frame, [], max_iou=0.6).detections == ()
