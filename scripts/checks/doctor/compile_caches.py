"""What is kept of compiled kernels: for the settings of now, and for those of before, which only take disk."""

from __future__ import annotations

from rich.filesize import decimal

from scripts.checks.doctor.context import Context
from scripts.findings import Finding
from scripts.settings import StackError
from scripts.stack.services import cache_key, cache_root, preset_file
from scripts.vllm import compile_cache


def check(context: Context) -> list[Finding]:
    """The folders of this host; those in a container's volume `make clean` lists, when it removes the old ones."""
    if context.in_containers:
        return []
    if context.preset is None:
        return [Finding("compile cache", "unchecked", "this host has no preset")]
    try:
        current = cache_key(context.settings, context.device, preset_file(context.preset))
    except StackError as error:
        return [Finding("compile cache", "unchecked", str(error))]
    kept = {each.name: each.size for each in compile_cache.kept(cache_root(context.settings))}
    warm = decimal(kept[current]) if current in kept else "none yet: the first start takes longer"
    findings = [Finding("compile cache", "ok", f"{current}: {warm}")]
    if old := {name: size for name, size in kept.items() if name != current}:
        shown = ", ".join(f"{name} ({decimal(size)})" for name, size in old.items())
        findings.append(Finding("compile cache", "ok", f"of earlier settings: {shown}; `make clean` removes them"))
    return findings
