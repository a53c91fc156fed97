"""moondream2 by its checkpoint's own code, with small stand-ins of it: answers, ends of a start, and over HTTP.

The real code with random weights is served by scripts/bench/moondream.py; the real weights were never loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import pytest

from samples.scenes import make_scene
from scripts.bench.moondream import make_tokenizer
from tests.conftest import ROOT
from tests.services.detector_process import Start
from tests.services.test_detector_service import ask, encoded

COMMIT = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-ins are, once `facts` is there, and the hub's cache."""
    return tmp_path_factory.mktemp("moondream")


@pytest.fixture(scope="module")
def hub(folder: Path) -> dict[str, str]:
    """The variables of an offline hub whose cache has the tokenizer."""
    make_tokenizer(folder / "home")
    return {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def facts(folder: Path, hub: dict[str, str], torch_python: Path) -> dict[str, Any]:
    """What `moondream_cases` prints."""
    command: list[str | Path] = [torch_python, "-m", "tests.services.moondream_cases", folder]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | hub, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_each_label_is_asked_about_one_encoded_image(facts: dict[str, Any]) -> None:
    two, _, one = facts["outcomes"]
    # In the model's order; a repeated box and one beyond the image are dropped; no lowest score applies.
    assert two == [
        ["dog", [0, 50, 8, 100], None],
        ["dog", [50, 0, 150, 50], None],
        ["red ball", [0, 50, 18, 100], None],
        ["red ball", [50, 0, 150, 50], None],
    ]
    assert one == [["dog", [0, 50, 4, 100], None], ["dog", [0, 0, 100, 100], None]]
    assert facts["encoded"] == 3  # the warm-up's, and one for each frame with words


def test_a_label_without_words_is_refused(facts: dict[str, Any]) -> None:
    assert facts["outcomes"][1] == ["Refused", "' ' has no words: expected what the model is to find"]


def test_the_code_is_a_package_that_no_other_import_sees(facts: dict[str, Any]) -> None:
    assert (facts["path"], facts["modules"]) == ([], [])


def test_weights_may_come_in_several_files_with_either_name(facts: dict[str, Any]) -> None:
    assert facts["split"] == facts["outcomes"][0][:2]


def test_tensors_without_a_use_are_named(facts: dict[str, Any]) -> None:
    assert facts["note"] == "note: moondream2 has no use for 1 tensors, text.bias first\n"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("missing", "lack 1 of 2 tensors that its code takes, text.scale first"),
        ("none", "lack 2 of 2 tensors"),
        ("shape", "cannot load the weights"),
        ("not finite", "not finite on cpu: its weights are damaged"),
        ("dtype", "DETECTOR_DTYPE=float32"),
        ("tokenizer", "`hf download moondream/starmie-v1 tokenizer.json`"),
        ("module", "makes no model: ModuleNotFoundError"),
        ("code", "makes no model: AttributeError"),
    ],
)
def test_what_cannot_be_served_ends_the_start(facts: dict[str, Any], case: str, reason: str) -> None:
    assert reason in facts["ended"][case]
    assert "\n" not in facts["ended"][case]


def test_values_that_are_not_finite_fail_the_image(facts: dict[str, Any]) -> None:
    assert facts["late"] == ["Failed", "the model's output is not finite"]


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize("source", ["a folder", "the hub"])
def test_free_text_over_http(source: str, folder: Path, hub: dict[str, str], start_detector: Start) -> None:
    model = {"DETECTOR_MODEL": str(folder / "whole")}
    if source == "the hub":
        model = {"DETECTOR_MODEL": "acme/moondream2", "DETECTOR_REVISION": COMMIT}
        cached = folder / "home" / "hub" / "models--acme--moondream2" / "snapshots" / COMMIT
        shutil.copytree(folder / "whole", cached, ignore=shutil.ignore_patterns("__pycache__"))
    url = start_detector(DETECTOR_DEVICE="cpu", **model, **hub)
    image = encoded(make_scene(3, dogs=1).image)
    reply = ask(url, msgpack.packb({"image": image, "labels": {"dog": 0.9, "red ball": None}}))
    assert [each["label"] for each in reply.boxes] == ["dog"] * 2 + ["red ball"] * 2
    assert {each["score"] for each in reply.boxes} == {None}
    refused = ask(url, msgpack.packb({"image": image, "labels": None}))
    assert refused.status == 422
    assert "free text" in refused.body
