"""What of the GPU check can be seen without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts.checks.doctor import gpu_measured
from scripts.checks.doctor.context import Context
from scripts.checks.gpu import __main__ as gpu_check
from scripts.checks.gpu import model, part
from scripts.checks.gpu.in_detector import moved
from scripts.checks.gpu.part import Host, Result
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
    service = model.service_for("l4", 20_000, Gpu("A100", 80_000), tmp_path / "model", settings)
    assert service.command[2] == str(tmp_path / "model")
    assert service.command[-4:] == ("--load-format", "dummy", "--gpu-memory-utilization", "0.200")  # 0.80 of a quarter


def test_the_stand_in_keeps_no_small_size_and_no_weights(tmp_path: Path) -> None:
    sizes = {part: dict.fromkeys(names, 1) | {"model_type": part} for part, names in model.SMALL.items()}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": {"height": 512}}}))
    write_safetensors(tmp_path / "model.safetensors")
    model.widen(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {part: {"model_type": part} for part in sizes}
    assert not list(tmp_path.glob("*.safetensors"))


# As vLLM 0.32 writes them on a GPU.
LOG = """
INFO [gpu_model_runner.py:1] Model loading took 13.30 GiB memory and 20.1 seconds
INFO [kv_cache_utils.py:2327] GPU KV cache size: 62,000 tokens
"""


def test_memory_is_read_from_the_log_and_held_against_the_presets_arithmetic() -> None:
    assert model.logged(LOG) == {"weights_gib": 13.3, "kv_tokens": 62_000.0}
    planned = model.calculated("l4", 23_034)
    assert planned["weights_gib"] == pytest.approx(13.28)
    assert planned["kv_tokens"] > 50_000
    found = {"preset": "l4", "memory": model.logged(LOG), "calculated": planned, "speed": [{"failed": 0}]}
    assert model.disagreements(found) == []
    found |= {"memory": {"weights_gib": 16.0, "kv_tokens": 30_000.0}, "speed": [{"failed": 2}]}
    weights, cache, failed = model.disagreements(found)
    assert "weights 16.0 GiB, calculated 13.3" in weights
    assert "30,000 tokens" in cache
    assert "2 requests failed" in failed


def test_boxes_in_half_precision_are_held_against_single_precision() -> None:
    single = [[("dog", (0.0, 0.0, 10.0, 10.0))], [("cat", (5.0, 5.0, 9.0, 9.0))], [("cat", (5.0, 5.0, 9.0, 9.0))]]
    half = [[("dog", (0.0, 0.5, 10.0, 10.0))], [], None]
    assert moved(single, half) == {"images": 3, "failed": 1, "other_boxes": 1, "mean_px": 0.125, "most_px": 0.5}


def test_a_part_prints_a_table_and_keeps_its_figures_for_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "FOLDER", tmp_path)
    context = Context(StackSettings(device="cuda"))
    assert [each.severity for each in gpu_measured.check(context)] == ["unchecked"]
    right = Result(("batch", "images/s"), [(1, 12.345), (32, 1234.5)], {"gain": 3.1})
    assert part.markdown(right) == "| batch | images/s |\n| --- | --- |\n| 1 | 12.3 |\n| 32 | 1,234.5 |"
    part.keep("detector", Host("cuda", "NVIDIA L4", 23_034, 18_800, ("l4",)), right, 12.0)
    part.keep("job", Host("cuda", "NVIDIA L4", 23_034, 18_800, ("l4",)), Result((), [], {}, ["2 rows failed"]), 1.0)
    part.keep("job", Host("cpu", "CPU, rehearsal", 0, 18_800, ("cpu",)), right, 1.0)
    assert [(each.severity, each.found.partition(":")[0]) for each in gpu_measured.check(context)] == [
        ("ok", "detector"),
        ("warning", "job"),
    ]
    assert {each["host"]["device"] for each in part.kept()} == {"cpu", "cuda"}
    assert gpu_measured.check(Context(StackSettings(device="cpu"))) == []
