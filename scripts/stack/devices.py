"""The device and the vLLM preset of this host."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.programs import nvidia_smi
from scripts.settings import NoGpu, StackSettings


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as nvidia-smi names it."""

    name: str
    memory_mib: int


# The least memory that each preset was laid out for, largest first: what nvidia-smi shows of an A100 with 80 GB
# (81,920 MiB), one with 40 GB (40,960) and an L4 (23,034), with some slack for reserved memory.
PRESETS = (("a100-80", 78_000), ("a100-40", 39_000), ("l4", 22_000))


def find_gpus(number: int = 0) -> list[Gpu]:
    """The GPU with a number, as the only entry; empty without a GPU, nvidia-smi or a driver."""
    found, _ = nvidia_smi("name,memory.total", number)
    return [Gpu(found[0], int(found[1]))] if found and len(found) == 2 else []


def choose(settings: StackSettings, gpus: list[Gpu]) -> tuple[str, str, str]:
    """Device, preset and the reason for them, from what was asked and what was found.

    Raises:
        NoGpu: a GPU was asked for and there is none, or it is too small for every preset.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if gpus or settings.gpu else "cpu"
    if device == "cpu":
        why = "STACK_DEVICE=cpu" if settings.device == "cpu" else "no GPU found"
        return device, "cpu" if settings.preset == "auto" else settings.preset, why
    if not gpus:
        raise NoGpu(
            f"nvidia-smi finds no GPU {settings.gpu}: install the driver, or set STACK_GPU to one that it shows, or "
            "STACK_DEVICE=cpu"
        )
    gpu = gpus[0]
    why = f"{gpu.name}, {gpu.memory_mib} MiB"
    if settings.preset != "auto":
        return device, settings.preset, why
    for preset, memory_mib in PRESETS:
        if gpu.memory_mib >= memory_mib:
            return device, preset, why
    raise NoGpu(
        f"{why}: too small for the presets (the smallest, l4, needs {PRESETS[-1][1]} MiB): set STACK_PRESET to a "
        "preset of yours with a smaller model, or STACK_DEVICE=cpu for the tiny one"
    )
