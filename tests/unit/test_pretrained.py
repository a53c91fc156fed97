"""What the detector reads of a transformers checkpoint without torch, and how it prepares pictures and prompts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.detector.backends import closed_set, open_vocabulary
from services.detector.checkpoint import CheckpointError, Files, InputSize
from services.detector.pretrained.network import alike
from services.detector.pretrained.prompts import PhrasePrompts, QueryPrompts, enlarge

SIZE = {"size": {"height": 96, "width": 96}}


def checkpoint(folder: Path, config: dict[str, Any], **files: Any) -> str:
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def test_the_image_processor_may_be_a_part_of_processor_config(tmp_path: Path) -> None:
    config = {"model_type": "detr", "id2label": {"0": "dog"}, "use_timm_backbone": False}
    model = checkpoint(tmp_path, config, processor_config={"image_processor": SIZE})
    assert closed_set.read(model, None).input_size == InputSize(exact=(96, 96))


def test_a_processor_config_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "detr", "id2label": {"0": "dog"}}
    with pytest.raises(CheckpointError, match="no image_processor"):
        closed_set.read(checkpoint(tmp_path, config, processor_config={"tokenizer": {}}), None)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino", "owlv2"])
def test_a_model_of_free_text_has_no_labels(tmp_path: Path, kind: str) -> None:
    model = checkpoint(tmp_path, {"model_type": kind}, preprocessor_config=SIZE)
    read = open_vocabulary.read(model, None)
    assert read.labels is None
    # OWLv2 pads to a square: an exact size would change the proportions.
    assert read.input_size == (InputSize(longest=96) if kind == "owlv2" else InputSize(exact=(96, 96)))
    files = Files(model, None)
    assert open_vocabulary.claims(files)
    assert not closed_set.claims(files)
    with pytest.raises(CheckpointError, match="DETECTOR_BACKEND=open_vocabulary"):
        closed_set.read(model, None)


@pytest.mark.parametrize(
    ("kind", "reason"), [("omdet-turbo", "torchvision"), ("owlvit", "OWLv2"), ("detr", "free text only")]
)
def test_other_models_are_refused_with_the_reason(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"{kind}.*{reason}.*known are grounding-dino"):
        open_vocabulary.read(checkpoint(tmp_path, {"model_type": kind}, preprocessor_config=SIZE), None)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "detr"},
        {"model_type": "deformable_detr", "use_timm_backbone": True},
        {"model_type": "rt_detr", "backbone_config": {"model_type": "timm_backbone"}},
        {"model_type": "rt_detr", "use_timm_backbone": True},
    ],
)
def test_a_backbone_of_timm_is_refused_at_once(tmp_path: Path, config: dict[str, Any]) -> None:
    model = checkpoint(tmp_path, {**config, "id2label": {"0": "dog"}}, preprocessor_config=SIZE)
    with pytest.raises(CheckpointError, match=r"timm.*revision no_timm"):
        closed_set.read(model, None)


@pytest.mark.parametrize("processor", [{"image_processor_type": "RfDetrImageProcessor"}, {}])
def test_a_processor_of_torchvision_is_refused_at_once(tmp_path: Path, processor: dict[str, Any]) -> None:
    config = {"model_type": "rf_detr", "id2label": {"0": "dog"}}
    model = checkpoint(tmp_path, config, preprocessor_config={**SIZE, **processor})
    with pytest.raises(CheckpointError, match="set image_processor_type"):
        closed_set.read(model, None)


def test_images_of_one_shape_share_a_pass() -> None:
    shapes = [(1, 3, 8, 4), (1, 3, 4, 8), (1, 3, 8, 4)]
    assert alike([{"pixel_values": np.zeros(shape)} for shape in shapes]) == [[0, 2], [1]]


def test_an_image_is_enlarged_between_the_centres_of_its_pixels() -> None:
    line = np.array([0, 4], dtype=np.float32).reshape(1, 1, 2)
    # Centres lie at -0.25, 0.25, 0.75 and 1.25 of the old pixels; what lies beyond an edge is mirrored.
    assert enlarge(line, 4, 1).ravel().tolist() == [1, 1, 3, 3]
    assert enlarge(line, 2, 3).shape == (1, 3, 2)
    assert enlarge(np.full((1, 1, 1), 5, dtype=np.float32), 3, 2).tolist() == [[[5] * 3] * 2]
    with pytest.raises(ValueError, match="down"):
        enlarge(line, 1, 1)


def phrases(limit: int) -> PhrasePrompts:
    prompts = PhrasePrompts.__new__(PhrasePrompts)
    prompts._limit = limit
    return prompts


def test_labels_are_split_into_passes_that_the_text_encoder_reads() -> None:
    labels = {"a": [1], "b": [2, 3], "c": [4], "d": [5, 6, 7, 8]}
    # Each label takes its tokens and a full stop; two more stand around the text.
    assert phrases(limit=7).passes(labels) == [{"a": [1], "b": [2, 3]}, {"c": [4]}, {"d": [5, 6, 7, 8]}]
    assert phrases(limit=14).passes(labels) == [labels]
    many = {str(number): [number] for number in range(150)}
    portions = QueryPrompts.__new__(QueryPrompts).passes(many)
    assert [len(portion) for portion in portions] == [64, 64, 22]
    assert [label for portion in portions for label in portion] == list(many)


def test_boxes_of_a_padded_square_are_scaled_by_its_side() -> None:
    frame: Any = SimpleNamespace(pixels=np.zeros((48, 96, 3)), width=200, height=100)
    assert QueryPrompts.__new__(QueryPrompts).scale(frame) == (200, 200)
    assert phrases(8).scale(frame) == (200, 100)
