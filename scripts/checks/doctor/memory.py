"""The host's memory."""

from __future__ import annotations

import psutil

from scripts import minimum_versions as floors
from scripts.checks.doctor.context import Context
from scripts.findings import Finding, Severity


def check(context: Context) -> list[Finding]:
    """Memory that programs can still get."""
    memory = psutil.virtual_memory()
    available, total = memory.available / floors.GIB, memory.total / floors.GIB
    found = f"{available:.1f} of {total:.1f} GiB are available"
    floor = floors.RAM_GIB[context.device]
    if available >= floor or context.is_running("vllm"):
        return [Finding("memory", "ok", found)]
    severity: Severity = "error" if total < floor and context.device == "cpu" else "warning"
    return [Finding("memory", severity, found, f"{floor} GiB", "end other programs, or take a larger host")]
