"""Where a service runs: its device, environment and image, by its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.docker.engine import ComposeEngine
from scripts.docker.files import ComposeFiles
from scripts.services import KINDS
from scripts.settings import StackSettings
from scripts.stack.services import images_of, make_stack

ONNX = "samples/models/tiny-detector/model.onnx"
FOLDER = "samples/models/tiny-detector"  # with both kinds of weights
HUB = "ustc-community/dfine-small-obj2coco"


@pytest.mark.parametrize(
    ("device", "chosen", "environment", "runs_on"),
    [
        ("cpu", {}, "detector-cpu", "cpu"),
        ("cpu", {"DETECTOR_MODEL": FOLDER}, "detector-torch-cpu", "cpu"),
        ("cpu", {"DETECTOR_MODEL": HUB}, "detector-torch-cpu", "cpu"),
        ("cpu", {"DETECTOR_MODEL": ONNX, "DETECTOR_BACKEND": "onnx"}, "detector-cpu", "cpu"),
        ("cpu", {"DETECTOR_MODEL": FOLDER, "DETECTOR_BACKEND": "onnx"}, "detector-cpu", "cpu"),
        ("cpu", {"DETECTOR_MODEL": ONNX, "DETECTOR_BACKEND": "transformers"}, "detector-torch-cpu", "cpu"),
        ("cuda", {}, "detector-cuda", "cuda"),
        ("cuda", {"DETECTOR_MODEL": FOLDER}, "detector-cuda", "cuda"),
        ("cuda", {"DETECTOR_MODEL": ONNX}, "detector-cpu", "cpu"),
    ],
)
def test_the_detectors_environment_image_and_device_follow_its_model(
    device: str,
    chosen: dict[str, str],
    environment: str,
    runs_on: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DETECTOR_MODEL", "DETECTOR_BACKEND"):
        monkeypatch.setenv(name, chosen.get(name, ""))
    settings, preset = StackSettings(state=tmp_path), {"cpu": "cpu", "cuda": "l4"}[device]
    detector, vllm = make_stack(settings, device, preset, {}).services
    assert (detector.environment, vllm.environment) == (environment, f"vllm-{device}")
    assert [image.name for image in images_of(settings, device)] == [environment, f"vllm-{device}"]
    files = ComposeFiles(settings, device, preset)
    assert files.variables()["DETECTOR_IMAGE"] == f"spotter-{environment}:local"
    # On a GPU that it shares with vLLM, the detector limits its share; on a CPU it refuses such a limit.
    for variables in (dict(detector.variables), files.service_variables()["detector"]):
        assert variables["DETECTOR_DEVICE"] == runs_on
        assert ("DETECTOR_MEMORY_SHARE" in variables) == (runs_on == "cuda")


@pytest.mark.parametrize("file", ["yolo.onnx", "onnx/model.onnx"])
def test_a_folder_with_an_onnx_file_alone_needs_no_torch(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTOR_MODEL", str(tmp_path))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert images_of(StackSettings(), "cpu")[0].name == "detector-cpu"
    (tmp_path / "model.safetensors").touch()
    assert images_of(StackSettings(), "cpu")[0].name == "detector-torch-cpu"


@pytest.mark.parametrize(
    ("chosen", "pinned"),
    [({}, True), ({"DETECTOR_MODEL": HUB}, False), ({"DETECTOR_MODEL": HUB, "DETECTOR_REVISION": "main"}, False)],
)
def test_the_presets_revision_goes_with_the_presets_model(
    chosen: dict[str, str], pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DETECTOR_MODEL", "DETECTOR_REVISION"):
        monkeypatch.setenv(name, chosen.get(name, ""))
    settings = StackSettings(state=tmp_path)
    detector, _ = make_stack(settings, "cuda", "l4", {}).services
    of_container = ComposeFiles(settings, "cuda", "l4").service_variables()["detector"].get("DETECTOR_REVISION")
    assert detector.revision == of_container
    assert (detector.revision not in (None, "main")) == pinned


def test_a_model_is_fetched_in_the_image_of_its_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector's smallest image has no client of the hub."""
    monkeypatch.setattr(ComposeEngine, "ensure_images", lambda *_: None)
    monkeypatch.setenv("DETECTOR_MODEL", HUB)
    engine = ComposeEngine(StackSettings(state=tmp_path), "cpu", "cpu")
    monkeypatch.setattr(engine.files, "command", lambda *arguments, **_: list(arguments))
    for service in make_stack(engine.settings, "cpu", "cpu", {}).services:
        engine.fetch_command(service, [])
        assert (
            engine.files.variables()["FETCH_IMAGE"]
            == KINDS[service.name].images["torch" if service.name == "detector" else "cpu"].tag
        )
