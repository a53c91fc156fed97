"""The device and the vLLM preset of this host."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scripts.programs import nvidia_smi
from scripts.settings import NoGpu, StackSettings


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as nvidia-smi names it."""

    name: str
    memory_mib: int
    number: int = 0


# The least memory that each preset was laid out for, largest first: what nvidia-smi shows of an A100 with 80 GB
# (81,920 MiB), one with 40 GB (40,960) and an L4 (23,034), with some slack for reserved memory.
PRESETS = (("a100-80", 78_000), ("a100-40", 39_000), ("l4", 22_000))


def find_gpus(settings: StackSettings) -> list[Gpu]:
    """Those of the stack's GPUs that there are; none with STACK_DEVICE=cpu, or without nvidia-smi or a driver."""
    if settings.device == "cpu":
        return []
    found, _ = nvidia_smi("name,memory.total,index", settings.gpus)
    return [Gpu(row[0], int(row[1]), int(row[2])) for row in found if len(row) == 3 and row[1].isdigit()]


def numbers(settings: StackSettings) -> tuple[int, ...]:
    """The numbers of the stack's GPUs at nvidia-smi, which is asked for them only where STACK_GPUS is `all`."""
    if settings.gpus == "all":
        return tuple(gpu.number for gpu in find_gpus(settings))
    return tuple(map(int, settings.gpus.split(",")))


def choose(settings: StackSettings, gpus: list[Gpu]) -> tuple[str, str, str]:
    """Device, preset and the reason for them, from what was asked and what was found.

    Raises:
        NoGpu: a GPU was asked for and there is none, or it is too small for every preset.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if gpus or settings.gpus != "0" else "cpu"
    if device == "cpu":
        why = "STACK_DEVICE=cpu" if settings.device == "cpu" else "no GPU found"
        return device, "cpu" if settings.preset == "auto" else settings.preset, why
    seen = {"all", *(str(gpu.number) for gpu in gpus)}
    if not gpus or not seen.issuperset(settings.gpus.split(",")):
        missing = ", ".join(number for number in settings.gpus.split(",") if number not in seen)
        raise NoGpu(
            f"nvidia-smi finds no GPU {missing}".rstrip() + ": install the driver, or set STACK_GPUS to those that it "
            "shows, or STACK_DEVICE=cpu"
        )
    smallest = min(gpus, key=lambda gpu: gpu.memory_mib)
    kinds = Counter(f"{gpu.name}, {gpu.memory_mib} MiB" for gpu in gpus)
    why = " and ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in kinds.items())
    if settings.preset != "auto":
        return device, settings.preset, why
    for preset, memory_mib in PRESETS:
        if smallest.memory_mib >= memory_mib:  # all servers have the same options
            return device, preset, why
    raise NoGpu(
        f"{why}: too small for the presets (the smallest, l4, needs {PRESETS[-1][1]} MiB): set STACK_PRESET to a "
        "preset of yours with a smaller model, or STACK_DEVICE=cpu for the tiny one"
    )
