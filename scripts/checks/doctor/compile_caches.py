"""The compile caches: the one for the present settings, and older ones, which only take disk."""

from __future__ import annotations

from rich.filesize import decimal

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, ok, unchecked
from scripts.stack.vllm_server import cache_root
from scripts.vllm import compile_cache


def check(context: Context) -> list[Finding]:
    """The caches on this host; `make clean` lists those in a container's volume."""
    if context.in_containers:
        return []
    if not context.servers:
        return [unchecked("compile cache", "this host has no preset")]
    kept = {each.name: each.size for each in compile_cache.kept(cache_root(context.settings))}
    findings = []
    for current in dict.fromkeys(server.cache for server in context.servers):
        warm = decimal(kept.pop(current)) if current in kept else "none yet: the first start takes longer"
        findings.append(ok("compile cache", f"{current}: {warm}"))
    if kept:
        shown = ", ".join(f"{name} ({decimal(size)})" for name, size in kept.items())
        findings.append(ok("compile cache", f"of earlier settings: {shown}; `make clean` removes them"))
    return findings
