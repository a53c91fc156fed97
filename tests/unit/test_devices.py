"""Which device and preset a host gets."""

import pytest

from scripts.devices import Gpu, choose
from scripts.settings import StackError, StackSettings

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
    [({"device": "cuda"}, [], "finds no GPU"), ({}, [T4], "Tesla T4, 15360 MiB: too small .*STACK_PRESET")],
)
def test_what_cannot_be(settings: dict[str, str], gpus: list[Gpu], message: str) -> None:
    with pytest.raises(StackError, match=message):
        choose(StackSettings(_env_file=None, **settings), gpus)  # type: ignore[arg-type]
