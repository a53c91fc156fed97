"""The host's memory."""

from __future__ import annotations

import psutil

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, error, ok, warning
from scripts.minimum_versions import FURTHER_SERVER_GIB, GIB, RAM_GIB


def check(context: Context) -> list[Finding]:
    """The memory that new programs can get."""
    memory = psutil.virtual_memory()
    available, total, needed = memory.available / GIB, memory.total / GIB, RAM_GIB[context.device]
    needed += max(len(context.servers) - 1, 0) * FURTHER_SERVER_GIB[context.device]
    found = f"{available:.1f} of {total:.1f} GiB are available"
    if available >= needed or context.is_running("vllm"):
        return [ok("memory", found)]
    say = error if total < needed and context.device == "cpu" else warning
    return [say("memory", found, f"{needed} GiB", "end other programs, or take a larger host")]
