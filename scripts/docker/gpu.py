"""How containers get a GPU on this host: through NVIDIA's runtime, or by a description of devices (CDI)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from scripts.docker import images

Driver = Literal["nvidia", "cdi"]

# The kind of device in a description that `nvidia-ctk cdi generate` writes.
KIND = "nvidia.com/gpu"


@cache
def driver() -> Driver | None:
    """What gives containers a GPU; None where Docker knows nothing that does."""
    if "nvidia" in (images.docker("info", "--format", "{{json .Runtimes}}") or ""):
        return "nvidia"
    # Docker 28.3 lists what it has found; before that it said where it looks, if it did.
    if KIND in (images.docker("info", "--format", "{{json .DiscoveredDevices}}") or ""):
        return "cdi"
    folders = json.loads(images.docker("info", "--format", "{{json .CDISpecDirs}}") or "null") or []
    return "cdi" if any(describes_gpu(file) for folder in folders for file in Path(folder).glob("*.*")) else None


def describes_gpu(file: Path) -> bool:
    """Whether a file describes NVIDIA's GPUs."""
    try:
        return KIND in file.read_text(errors="replace")
    except OSError:
        return False


def device(driver: Driver, index: int | str) -> str:
    """A GPU's name for a driver, by its number or `all`."""
    return str(index) if driver == "nvidia" else f"{KIND}={index}"


def option(driver: Driver, index: int | str) -> str:
    """The option of `docker run` that gives a container a GPU."""
    if driver == "cdi":
        return f"--device={device(driver, index)}"
    return "--gpus=all" if index == "all" else f"--gpus=device={device(driver, index)}"
