"""Which device and preset a host gets."""

from pathlib import Path

import pytest

from scripts.settings import NoGpu, StackSettings
from scripts.stack.devices import Gpu, choose, find_gpus
from scripts.stack.services import make_stack

A100_80, A100_40 = Gpu("NVIDIA A100-SXM4-80GB", 81920), Gpu("NVIDIA A100-SXM4-40GB", 40960)
L4, T4 = Gpu("NVIDIA L4", 23034), Gpu("Tesla T4", 15360)


@pytest.mark.parametrize(
    ("settings", "gpus", "device", "preset"),
    [
        ({}, [], "cpu", "cpu"),
        ({}, [A100_80], "cuda", "a100-80"),
        ({}, [A100_40], "cuda", "a100-40"),
        ({}, [L4], "cuda", "l4"),
        ({}, [Gpu("NVIDIA H100", 81559)], "cuda", "a100-80"),
        ({"device": "cpu"}, [L4], "cpu", "cpu"),
        ({"preset": "l4"}, [A100_80], "cuda", "l4"),
        ({"device": "cpu", "preset": "mine.yaml"}, [], "cpu", "mine.yaml"),
    ],
)
def test_choice(settings: dict[str, str], gpus: list[Gpu], device: str, preset: str) -> None:
    assert choose(StackSettings(_env_file=None, **settings), gpus)[:2] == (device, preset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"device": "cuda"}, [], "GPU 0"),
        ({"gpu": 3}, [], "GPU 3: .*STACK_GPU"),
        ({}, [T4], "Tesla T4, 15360 MiB: .*STACK_PRESET"),
    ],
)
def test_what_cannot_be(settings: dict[str, object], gpus: list[Gpu], message: str) -> None:
    with pytest.raises(NoGpu, match=message):
        choose(StackSettings(_env_file=None, **settings), gpus)  # type: ignore[arg-type]


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with an L4 and, under number 1, an A100."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *--id=0*) echo "NVIDIA L4, 23034";; *--id=1*) echo "NVIDIA A100-SXM4-80GB, 81920";; '
        "*) echo No devices were found; exit 6;; esac\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("number", "preset"), [(0, "l4"), (1, "a100-80")])
def test_the_gpu_that_is_asked_for_decides_and_is_the_only_one_that_a_service_sees(
    two_gpus: None, number: int, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StackSettings(gpu=number, state=tmp_path)
    assert choose(settings, find_gpus(number))[:2] == ("cuda", preset)
    for service in make_stack(settings, "cuda", preset, {}).services:
        variables = dict(service.variables)
        assert (variables["CUDA_DEVICE_ORDER"], variables["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", str(number))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    for service in make_stack(StackSettings(gpu=number, state=tmp_path), "cuda", preset, {}).services:
        assert "CUDA_VISIBLE_DEVICES" not in dict(service.variables)
    assert find_gpus(2) == []
