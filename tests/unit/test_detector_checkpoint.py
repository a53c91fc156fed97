"""What is read of a checkpoint before its model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.detector.backends.closed_set import read as read_checkpoint
from services.detector.checkpoint import CHECKPOINT, Checkpoint, CheckpointError, InputSize

FIXED = {"do_resize": True, "size": {"height": 192, "width": 256}, "resample": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, {"id2label": {"0": "dog", "1": "cat"}}, FIXED)
    return tmp_path


def write(folder: Path, config: Any, processor: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def test_a_folder(folder: Path) -> None:
    expected = Checkpoint(str(folder), None, frozenset({"dog", "cat"}), InputSize(exact=(256, 192), resample=3))
    assert read_checkpoint(str(folder), None) == expected


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"shortest_edge": 400, "longest_edge": 700}}, InputSize(longest=700)),
        ({"size": {"max_height": 400, "max_width": 400}}, InputSize()),
        ({"size": 800, "max_size": 1333}, InputSize()),
        ({**FIXED, "do_resize": False}, InputSize()),
        ({}, InputSize()),
    ],
)
def test_a_processor_without_a_fixed_size_leaves_room_for_its_own_scaling(
    folder: Path, processor: dict[str, Any], size: InputSize
) -> None:
    write(folder, {"id2label": {"0": "dog"}}, processor)
    assert read_checkpoint(str(folder), None).input_size == size


def test_input_sizes() -> None:
    assert InputSize(exact=(256, 192)).of(4000, 10) == (256, 192)
    assert InputSize(longest=100).of(400, 200) == (100, 50)
    assert InputSize(longest=100).of(10, 20) == (10, 20)
    assert InputSize(longest=100).of(9000, 1) == (100, 1)


def test_a_checkpoint_survives_the_way_to_a_worker(folder: Path) -> None:
    for checkpoint in (read_checkpoint(str(folder), None), Checkpoint("a/b", "c0ffee", frozenset({"x"}), InputSize())):
        assert CHECKPOINT.validate_json(CHECKPOINT.dump_json(checkpoint)) == checkpoint


@pytest.mark.parametrize("model", ["no-such-folder", "samples/models/no-such-folder", "/no/such/folder", "a b/c"])
def test_neither_folder_nor_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"DETECTOR_MODEL=.* is neither a file nor a folder .* nor a hub id"):
        read_checkpoint(model, None)


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="DETECTOR_REVISION='main' has no meaning"):
        read_checkpoint(str(folder), "main")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_checkpoint(str(folder), None)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_file_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(str(folder), None)


def test_a_model_without_labels_is_no_detector(folder: Path) -> None:
    write(folder, {"model_type": "bert"}, FIXED)
    with pytest.raises(CheckpointError, match="no labels"):
        read_checkpoint(str(folder), None)
