"""What of the GPU check can be seen without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts.checks import gpu_check
from scripts.settings import StackSettings
from scripts.stack.devices import Gpu
from tests.configurations import write_safetensors


def test_without_a_gpu_it_says_that_nothing_was_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "find_gpus", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    assert "nothing was checked" in capsys.readouterr().err


def test_a_larger_gpu_gets_the_share_of_the_presets_card(tmp_path: Path) -> None:
    settings = StackSettings(device="cuda", state=tmp_path)
    service = gpu_check.service_for("l4", 20_000, Gpu("A100", 80_000), tmp_path / "model", settings)
    assert service.command[2] == str(tmp_path / "model")
    assert service.command[-4:] == ("--load-format", "dummy", "--gpu-memory-utilization", "0.200")  # 0.80 of a quarter


def test_the_stand_in_keeps_no_small_size_and_no_weights(tmp_path: Path) -> None:
    sizes = {part: dict.fromkeys(names, 1) | {"model_type": part} for part, names in gpu_check.SMALL.items()}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": {"height": 512}}}))
    write_safetensors(tmp_path / "model.safetensors")
    gpu_check.widen(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {part: {"model_type": part} for part in sizes}
    assert not list(tmp_path.glob("*.safetensors"))
