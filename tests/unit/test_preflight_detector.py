"""The preflight's look at the detector: the backend of its model, and whether it can find the job's labels."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import job as jobs
from scripts.checks.preflight.command import preflight
from scripts.checks.preflight.detector import Asking, Model, check_labels
from scripts.environments import ROOT
from scripts.findings import Finding
from scripts.settings import StackSettings

JOB: dict[str, Any] = {
    "description": "Look at things.",
    "question": "What is it?",
    "schema": {"type": "object", "properties": {"thing": {"enum": ["a", "b"]}}, "required": ["thing"]},
    "max_tokens": 8,
}
ANIMALS = Model("zoo.onnx", "onnx", ("Dog", "cat", "sports ball"), 0.45)
FREE = Model("owner/llmdet", "open_vocabulary", None, 0.3)
KNOWN = "labels that the detector's model knows"


def load(folder: Path, **keys: Any) -> jobs.Job:
    (folder / "look.yaml").write_text(yaml.safe_dump(JOB | keys))
    return jobs.load(str(folder / "look.yaml"))


@pytest.mark.parametrize(
    ("keys", "model", "severities", "facts"),
    [
        ({"label": "cat"}, ANIMALS, ["ok"], ["onnx: zoo.onnx knows 3 labels", "cat from 0.45"]),
        ({"labels": {"cat": 0.9, "Dog": None}, "threshold": 0.2}, ANIMALS, ["ok"], ["Dog from 0.2, cat from 0.9"]),
        ({"labels": "any"}, ANIMALS, ["ok"], ["any of them from 0.45"]),
        ({"label": "dog"}, ANIMALS, ["error"], ["'dog'", "did you mean 'Dog'?", "DETECTOR_MODEL", "case counts"]),
        ({"labels": ["cat", "sportball", "xyzzy"]}, ANIMALS, ["error"], ["'sportball', 'xyzzy'", "'sports ball'?"]),
        ({"label": "xyzzy"}, ANIMALS, ["error"], ["Dog, cat, sports ball; required", "write a known label"]),
        ({"labels": ["red car", "hat"]}, FREE, ["ok"], ["open_vocabulary", "free text", "2 labels, 10 char", "0.3"]),
        ({"labels": "any"}, FREE, ["error"], ["`labels: any`", "free text", "name the objects"]),
        ({"label": "Fußgänger"}, FREE, ["ok", "warning"], ["'Fußgänger'", "English"]),
        ({"label": "w " * 40}, FREE, ["ok", "warning"], ["79 characters", "14 tokens", "shorten"]),
    ],
)
def test_labels_are_held_against_the_model(
    keys: dict[str, Any], model: Model, severities: list[str], facts: list[str], tmp_path: Path
) -> None:
    findings = list(check_labels(load(tmp_path, **keys), model))
    assert [each.severity for each in findings] == severities
    line = str(findings[-1])
    assert "\n" not in line
    for fact in facts:
        assert fact in line


def answer(**variables: str) -> Model | Finding:
    return Asking(variables, {"HF_HUB_CACHE": "/nowhere"}).answer()


def checkpoint(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}}))
    return str(folder)


def test_the_detectors_own_code_names_backend_and_labels(tmp_path: Path) -> None:
    tiny = answer(DETECTOR_MODEL="samples/models/tiny-detector/model.onnx", DETECTOR_THRESHOLD="0.3")
    assert tiny == Model("samples/models/tiny-detector/model.onnx", "onnx", ("cat", "dog", "sports ball"), 0.3)
    closed = answer(DETECTOR_MODEL=checkpoint(tmp_path, model_type="d_fine", id2label={"0": "ant", "1": "bee"}))
    assert isinstance(closed, Model)
    assert (closed.backend, closed.labels) == ("transformers", ("ant", "bee"))
    free = answer(DETECTOR_MODEL=checkpoint(tmp_path, model_type="owlv2"))
    assert isinstance(free, Model)
    assert (free.backend, free.labels) == ("open_vocabulary", None)


@pytest.mark.parametrize(
    ("variables", "severity", "facts"),
    [
        ({"DETECTOR_MODEL": "samples/models/tiny-detector/modal.onnx"}, "error", ["does not exist", "model.onnx"]),
        ({"DETECTOR_MODEL": "samples/nowhere/model.onnx"}, "error", ["does not exist", "owner/name"]),
        ({"DETECTOR_MODEL": "owner/unknown"}, "unchecked", ["owner/unknown@main", "/nowhere", "make fetch"]),
        ({"DETECTOR_TRESHOLD": "0.4"}, "error", ["DETECTOR_TRESHOLD", "DETECTOR_THRESHOLD"]),
        ({"DETECTOR_THRESHOLD": "4"}, "error", ["DETECTOR_THRESHOLD='4'"]),
        ({"DETECTOR_MODEL": "samples/models/tiny-vlm"}, "error", ["id2label", "docs/detectors.md"]),
        ({"DETECTOR_BACKEND": "yolo"}, "error", ["DETECTOR_BACKEND='yolo'", "onnx"]),
    ],
)
def test_a_model_that_cannot_be_served_is_named(variables: dict[str, str], severity: str, facts: list[str]) -> None:
    found = answer(**variables)
    assert isinstance(found, Finding)
    assert (found.check, found.severity) == ("detector", severity)
    for fact in facts:
        assert fact in str(found)


def test_a_model_of_the_hub_is_read_in_the_cache(tmp_path: Path) -> None:
    home = tmp_path / "models--owner--zoo"
    snapshot = home / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    checkpoint(snapshot, model_type="rt_detr", id2label={"0": "zebra"})
    asking = Asking({"DETECTOR_MODEL": "owner/zoo", "DETECTOR_REVISION": "main"}, {"HF_HUB_CACHE": str(tmp_path)})
    assert asking.answer() == Model("owner/zoo", "transformers", ("zebra",), 0.4)
    (snapshot / "preprocessor_config.json").unlink()  # a start completes it
    halved = Asking({"DETECTOR_MODEL": "owner/zoo"}, {"HF_HUB_CACHE": str(tmp_path)}).answer()
    assert isinstance(halved, Finding)
    assert halved.severity == "warning"


def settings_for(folder: Path, **variables: str) -> StackSettings:
    settings = StackSettings(state=folder, device="cpu")
    settings._environment = variables
    return settings


@pytest.mark.parametrize(
    ("keys", "variables", "found"),
    [
        ({"label": "dog"}, {}, {("model", "ok"), ("labels", "ok")}),
        ({"label": "Dog"}, {}, {("model", "ok"), ("labels", "error")}),
        ({"label": "Dog"}, {"SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}, {("model", "unchecked"), ("labels", "error")}),
        (
            {"label": "Dog"},
            {"SPOTTER_DETECTOR_URL": "http://192.0.2.1"},
            {("model", "ok"), ("detector", "unchecked")},
        ),
        ({"boxes": "whole"}, {}, {("model", "ok")}),
        ({"boxes": "input"}, {}, {("model", "ok"), ("boxes", "unchecked")}),
        ({"boxes": "input"}, {"SPOTTER_BOXES": "nowhere.json"}, {("model", "ok"), ("boxes", "error")}),
        ({"boxes": "input"}, {"SPOTTER_BOXES": "column:boxes"}, {("model", "ok")}),
        ({"label": "dog"}, {"DETECTOR_NMS": "1"}, {("model", "ok"), ("detector", "error")}),
    ],
)
def test_the_preflight_asks_for_what_the_job_needs(
    keys: dict[str, Any], variables: dict[str, str], found: set[tuple[str, str]], tmp_path: Path
) -> None:
    load(tmp_path, **keys)
    report = preflight(settings_for(tmp_path, SPOTTER_JOB=str(tmp_path / "look.yaml"), **variables))
    assert {(each.check, each.severity) for each in report.findings} == found


def test_other_checks_need_not_wait_for_the_files_to_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    begin = time.process_time()
    asking = Asking({"DETECTOR_MODEL": str(ROOT / "samples/models/tiny-detector")}, {})
    assert not isinstance(asking.asked, Finding)
    assert asking.asked.poll() is None
    assert isinstance(asking.answer(), Model)
    assert time.process_time() - begin < 0.3
