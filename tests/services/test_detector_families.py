"""Each family of transformers detectors: batches of mixed pictures and prompts, and free text over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

from tests.conftest import ROOT
from tests.services.detector_process import Launch, Start
from tests.services.family_batches import SIZES, picture
from tests.services.test_detector_service import Reply, ask, ask_at_once, metric, metrics

pytestmark = pytest.mark.slow

CLOSED = ["rt_detr_v2", "d_fine", "deimv2", "rf_detr", "detr", "conditional_detr", "deformable_detr", "yolos"]
PADDING = ["detr", "conditional_detr", "deformable_detr", "yolos"]
OPEN = ["grounding_dino", "mm_grounding_dino", "owlv2"]

# A score of a batch differs from that of a picture alone by the order of float32 sums: 1.2e-6 was the largest seen.
SAME_SCORE = 1e-5
SAME_BOX_PX = 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small checkpoints are, once `measured` is there."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def measured(folder: Path, torch_python: Path) -> dict[str, Any]:
    """What `family_batches` prints."""
    command: list[str | Path] = [torch_python, "-m", "tests.services.family_batches", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def request(size: tuple[int, int], labels: dict[str, float | None] | None, threshold: float = 0.0) -> bytes:
    body: bytes = msgpack.packb({"image": picture(*size, seed=1), "labels": labels, "threshold": threshold})
    return body


# --- batches


@pytest.mark.parametrize("name", CLOSED + OPEN)
def test_a_batch_of_mixed_pictures_gives_what_each_gives_alone(measured: dict[str, Any], name: str) -> None:
    facts = measured["families"][name]
    assert all(count > 0 for count in facts["counts"])
    assert facts["spread"] > 10 * SAME_SCORE  # boxes with one score could be mixed up unseen
    assert facts["score"] < SAME_SCORE
    assert facts["box"] < SAME_BOX_PX


@pytest.mark.parametrize("name", PADDING)
def test_pictures_padded_to_one_size_would_differ(measured: dict[str, Any], name: str) -> None:
    assert measured["families"][name]["padded"] > 100 * SAME_SCORE


@pytest.mark.parametrize("name", CLOSED + OPEN)
def test_one_backend_alone_claims_a_checkpoint(measured: dict[str, Any], name: str) -> None:
    facts = measured["families"][name]
    assert facts["claimed"] == ["transformers" if name in CLOSED else "open_vocabulary"]
    assert facts["backend"] == ("closed_set" if name in CLOSED else "open_vocabulary")


@pytest.mark.parametrize("name", OPEN)
def test_each_picture_is_searched_for_its_own_labels(measured: dict[str, Any], name: str) -> None:
    labels = measured["families"][name]["labels"]
    assert labels[:5] == [["Dog", "hot dog"], ["cat"], ["ball!", "dog", "hot-dog"], ["dog"], ["St. Dog"]]
    assert len(labels[5]) == 100  # in several passes
    assert labels[6:] == [["dog", "red dog"], ["big cat", "cat", "red cat", "small cat"]]


def test_output_that_is_not_finite_fails_the_picture(measured: dict[str, Any]) -> None:
    assert measured["damaged"] == "the model's output is not finite in torch.float32"


def test_the_models_own_processors_give_the_same_text(
    folder: Path, measured: dict[str, Any], torch_python: Path
) -> None:
    result = subprocess.run(
        [torch_python, "-c", OWN_TEXT, folder], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr


OWN_TEXT = """\
import sys, numpy, torch, transformers
from types import SimpleNamespace
from services.detector.pretrained.prompts import BadLabel, PhrasePrompts, QueryPrompts

def prompts(family, name):
    path = f"{sys.argv[1]}/{name}"
    network = SimpleNamespace(
        tokenizer=transformers.AutoTokenizer.from_pretrained(path),
        processor=SimpleNamespace(),
        model=SimpleNamespace(config=transformers.AutoConfig.from_pretrained(path)),
    )
    return family(network), transformers.AutoTokenizer.from_pretrained(path)

def same(ours, theirs):
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(ours[name], theirs[name]), (name, ours[name], theirs[name])

labels = [["Dog", "hot dog"], ["teddy-bear", "dog", "red cat"]]

phrases, tokenizer = prompts(PhrasePrompts, "grounding_dino")
batch = [{label: phrases.tokens(label) for label in each} for each in labels]
texts = [" ".join(f"{label.lower()}." for label in each) for each in labels]
same(phrases.inputs(batch), tokenizer(texts, padding=True, return_tensors="pt"))
assert phrases.tokens("St. Dog") == phrases.tokens("st dog")
logits = torch.full((2, 1, 64), -torch.inf)
logits[0, 0, :7] = torch.tensor([9.0, 0.1, 9.0, 0.2, 0.3, 9.0, 9.0])  # [CLS] dog . hot dog . [SEP]
score = phrases.scores(logits, batch)[0]
assert numpy.allclose(score, torch.tensor([[0.1, 0.3]]).sigmoid()), score

queries, tokenizer = prompts(QueryPrompts, "owlv2")
batch = [{label: queries.tokens(label) for label in each} for each in (["Dog"], ["hot dog"])]
texts = ["a photo of a Dog", "a photo of a hot dog"]
same(queries.inputs(batch), tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt"))

for family in (phrases, queries):
    for label in ("", "  ", "\\u72ac", "[PAD]" if family is phrases else "\\u2603", "dog" * 33):
        try:
            family.tokens(label)
        except BadLabel as error:
            assert "\\n" not in str(error)
        else:
            raise AssertionError(label)
"""


# --- over HTTP


Labels = dict[str, float | None]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_free_text_over_http(name: str, folder: Path, start_detector: Start) -> None:
    url = start_detector(DETECTOR_MODEL=str(folder / name), DETECTOR_MAX_WAIT_MS="500")
    prompts: list[dict[str, float | None]] = [
        {"Dog": None},
        {"hot dog": 0.0, "cat": 1.0},
        {"red dog": None},
        {"cat": 0.2},
    ]
    bodies = [request(size, labels) for size, labels in zip(SIZES[:4] * 2, prompts * 2, strict=True)]
    alone = [ask(url, body) for body in bodies]
    together = ask_at_once(url, bodies)
    text = metrics(url)
    assert metric(text, "detector_batch_size_sum") > metric(text, "detector_batch_size_count")
    for one, other, labels in zip(alone, together, prompts * 2, strict=True):
        same_answer(one, other)
        wanted = {label for label, least in labels.items() if least != 1.0}  # no score is greater than 1
        assert {box["label"] for box in one.boxes} == wanted
        assert all(box["score"] > (labels[box["label"]] or 0.0) for box in one.boxes)
        x1, y1, x2, y2 = one.boxes[0]["box"]
        assert 0 <= x1 < x2 <= one.body["width"]
        assert 0 <= y1 < y2 <= one.body["height"]
    refused(ask(url, request((64, 48), None)), "free text")
    refused(ask(url, request((64, 48), {"dog": None, "\u72ac": None})), "'\u72ac' has characters or words")
    refused(ask(url, request((64, 48), {"...": None} if name == "grounding_dino" else {" ": None})), "has no words")
    refused(ask(url, request((64, 48), {"dog" * 33: None})), "use a shorter label")


def same_answer(one: Reply, other: Reply) -> None:
    assert [box["label"] for box in one.boxes] == [box["label"] for box in other.boxes]
    for a, b in zip(one.boxes, other.boxes, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=SAME_SCORE)


def refused(reply: Reply, reason: str) -> None:
    assert reply.status == 422
    assert reason in reply.body
    assert "\n" not in reply.body


@pytest.mark.usefixtures("measured")
def test_a_closed_set_over_http_with_mixed_shapes(folder: Path, start_detector: Start) -> None:
    url = start_detector(DETECTOR_MODEL=str(folder / "deformable_detr"), DETECTOR_MAX_WAIT_MS="500")
    bodies = [request(size, None) for size in SIZES]
    alone = [ask(url, body) for body in bodies]
    for one, other in zip(alone, ask_at_once(url, bodies), strict=True):
        same_answer(one, other)
        assert len({box["label"] for box in one.boxes}) == 3


class Wrong(NamedTuple):
    """A small checkpoint with other values in its JSON files, or without a file (None), and the end of its start."""

    name: str
    change: dict[str, dict[str, Any] | None]
    code: int
    reason: str


WRONG = {
    "torchvision": Wrong(
        "rf_detr", {"preprocessor_config.json": {"image_processor_type": "RfDetrImageProcessor"}}, 2, "torchvision"
    ),
    "timm": Wrong("detr", {"config.json": {"use_timm_backbone": True, "backbone_config": None}}, 2, "timm"),
    "OmDet-Turbo": Wrong("owlv2", {"config.json": {"model_type": "omdet-turbo"}}, 2, "torchvision"),
    "no detector": Wrong("owlv2", {"config.json": {"model_type": "bert"}}, 2, "no labels"),
    "no tokenizer": Wrong("grounding_dino", {"tokenizer.json": None}, 1, "tokenizer"),
    "no processor": Wrong("grounding_dino", {"processor_config.json": None}, 2, "preprocessor_config.json is missing"),
    "no weights": Wrong("grounding_dino", {"model.safetensors": None}, 1, "cannot load the model"),
}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_cannot_be_served_ends_the_start(
    case: Wrong, folder: Path, launch_detector: Launch, tmp_path: Path
) -> None:
    copy = altered(folder / case.name, tmp_path / case.name, case.change)
    service = launch_detector(DETECTOR_MODEL=str(copy))
    assert service.wait() == case.code
    lines = [line for line in service.log.splitlines() if line.startswith("error: ") and "service stopped" not in line]
    assert len(lines) == 1, service.log
    assert case.reason in lines[0]


def altered(source: Path, target: Path, change: dict[str, dict[str, Any] | None]) -> Path:
    """A copy of a checkpoint with other values in its JSON files; None removes a file."""
    target.mkdir()
    for path in source.iterdir():
        if path.name not in change:
            (target / path.name).write_bytes(path.read_bytes())
        elif (values := change[path.name]) is not None:
            (target / path.name).write_text(json.dumps(json.loads(path.read_text()) | values))
    return target
