"""The pinned vLLM's options, architectures and request fields, in tables that services/vllm/tables/dump.py writes."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from scripts.environments import LOCKS, ROOT
from scripts.findings import Finding, warning

FOLDER = ROOT / "services" / "vllm" / "tables"
DUMP = "services/vllm/tables/dump.py"
# vLLM's cached facts about the classes of the presets' models, in its own files.
MODEL_INFOS = FOLDER / "modelinfos"


@functools.cache
def read(name: str) -> dict[str, Any]:
    """One table, by its name without ending."""
    table: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return table


def options(device: str) -> dict[str, dict[str, Any]]:
    """The options of the build for a device; options_cuda.json has those that differ in the build for GPUs."""
    of_cpu: dict[str, dict[str, Any]] = read("options")["options"]
    return of_cpu | read("options_cuda")["options"] if device == "cuda" else of_cpu


def locked_version(lock: Path, package: str = "vllm(?:-cpu)?") -> str:
    """The version of a package (a pattern; by default vLLM) in a lock file; empty where the lock lacks it."""
    found = re.search(rf"^{package}={{2,3}}([\w.+]+)", lock.read_text(), re.MULTILINE)
    return found[1] if found else ""


def check_tables(device: str, locks: Path = LOCKS) -> list[Finding]:
    """The tables belong to the locked version."""
    lock = locks / f"vllm-{device}.lock"
    locked = locked_version(lock).partition("+")[0]
    required, remedy = "tables of the locked version, for right findings", f"run {DUMP} in the environment vllm-cpu"
    if device == "cuda":
        remedy += ", then `make check-cuda OPTIONS=--write-tables`"
    return [
        warning("tables", f"{name}.json is of vLLM {version}, but {lock.name} has {locked}", required, remedy)
        for name in ("options", "architectures", "request", *(["options_cuda"] if device == "cuda" else []))
        if (version := read(name)["version"]) != locked
    ]
