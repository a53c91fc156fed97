"""How containers get a GPU on this host: through NVIDIA's runtime, or by a description of devices (CDI)."""

from __future__ import annotations

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


def option(driver: Driver, number: int) -> str:
    """The option of `docker run` that gives a container a GPU."""
    return f"--device={device(driver, number)}" if driver == "cdi" else f"--gpus=device={number}"
