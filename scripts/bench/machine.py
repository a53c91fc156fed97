"""The machine that figures belong to, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("daft", "aiohttp", "openai", "httpx", "pydantic")


def cpu_model() -> str:
    """The processor's name, as Linux has it; elsewhere what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, str]:
    """Processor, cores, memory, load now, and versions, each as text."""
    said = {
        "CPU": cpu_model(),
        "cores": str(
            len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
        ),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            said[package] = version(package)
        except PackageNotFoundError:
            said[package] = "not installed"
    return said


def line(said: dict[str, str]) -> str:
    """The same in one line."""
    return ", ".join(f"{name} {value}" for name, value in said.items())
