"""How containers get a GPU on this host: through NVIDIA's runtime, or by a description of devices (CDI)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from scripts.docker.host import find_engine

Driver = Literal["nvidia", "cdi"]

# The kind of device in a description that `nvidia-ctk cdi generate` writes.
KIND = "nvidia.com/gpu"


@cache
def driver() -> Driver | None:
    """What gives containers a GPU; None where Docker knows nothing that does."""
    engine, _ = find_engine()
    about = engine.about if engine else {}
    if "nvidia" in (about.get("Runtimes") or {}):
        return "nvidia"
    # Docker 28.3 lists the devices that it has found; earlier versions list the folders in which they look.
    if KIND in str(about.get("DiscoveredDevices")):
        return "cdi"
    folders = map(Path, about.get("CDISpecDirs") or [])
    return "cdi" if any(describes_gpu(file) for folder in folders for file in folder.glob("*.*")) else None


def describes_gpu(file: Path) -> bool:
    """Whether a file describes NVIDIA's GPUs."""
    try:
        return KIND in file.read_text(errors="replace")
    except OSError:
        return False


def device(driver: Driver, number: int) -> str:
    """A GPU's name for a driver, by its number at nvidia-smi."""
    return str(number) if driver == "nvidia" else f"{KIND}={number}"


def options(driver: Driver, numbers: Sequence[int]) -> list[str]:
    """The options of `docker run` that give a container GPUs."""
    if driver == "cdi":
        return [f"--device={device(driver, number)}" for number in numbers]
    # The quotes are Docker's: without them it takes a comma for the next field.
    return [f'--gpus="device={",".join(map(str, numbers))}"']
