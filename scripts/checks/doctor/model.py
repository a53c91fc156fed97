"""The model server's options and files: the static preflight."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.checks.preflight.command import preflight
from scripts.findings import Finding, error
from scripts.settings import StackError


def check(context: Context) -> list[Finding]:
    """The findings of the preflight without vLLM."""
    try:
        return list(preflight(context.settings, in_containers=context.in_containers).findings)
    except StackError as failure:
        message, _, remedy = str(failure).partition(": ")
        return [error("preset", message, "a preset for this host", remedy or "set STACK_PRESET")]
