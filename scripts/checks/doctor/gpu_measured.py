"""The figures of `python -m scripts.checks.gpu`, where it ran on this host's GPU."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.checks.gpu.part import kept
from scripts.findings import Finding, ok, unchecked, warning

NAME = "gpu check"
COMMAND = ".spotter/envs/operator/bin/python -m scripts.checks.gpu"


def check(context: Context) -> list[Finding]:
    """What each part found; the report's JSON has its figures."""
    if context.device != "cuda":
        return []
    measured = [each for each in kept() if each["host"]["device"] == "cuda"]
    if not measured:
        return [unchecked(NAME, f"speed and memory were not measured on this GPU: {COMMAND}")]
    return [
        warning(NAME, f"{each['part']}: {'; '.join(each['wrong'])}", "the expected figures", f"run {COMMAND} again")
        if each["wrong"]
        else ok(NAME, f"{each['part']}: as expected on {each['host']['name']}, {each['at'][:10]}")
        for each in measured
    ]
