"""Docker Engine and Compose: installed, and new enough."""

from __future__ import annotations

from dataclasses import replace

from scripts.checks.doctor.context import Context
from scripts.docker.host import examine
from scripts.findings import Finding, errors, ok


def check(context: Context) -> list[Finding]:
    """The versions of engine and Compose, and whether this host reaches containers."""
    if context.settings.engine == "process":
        return [ok("docker", "not used (STACK_ENGINE=process)")]
    findings, _ = examine()
    if context.settings.engine == "compose" or not errors(findings):
        return findings
    if len(findings) == 1:  # an ordinary host without containers
        return [ok("docker", f"not used: the services run as processes ({findings[0].found})")]
    return [replace(each, severity="warning") if each.severity == "error" else each for each in findings]
