"""The result of a check, in the one form that doctor, preflight and their reports share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from scripts.settings import ChecksFailed

Severity = Literal["error", "warning", "unchecked", "ok"]
"""error: it cannot work. warning: it may fail or answer badly. unchecked: the check was not possible."""

STYLES: dict[Severity, str] = {"ok": "green", "unchecked": "cyan", "warning": "yellow", "error": "bold red"}
"""Of a report, in the order in which it lists them: errors come last, next to the prompt."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """The name of the check, a word or two."""
    severity: Severity
    found: str
    required: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.severity in ("error", "warning") and not (self.required and self.remedy):
            raise ValueError(f"finding {self.check!r} needs `required` and `remedy`")

    def __str__(self) -> str:
        required = f"required: {self.required}" if self.required else ""
        return "; ".join(part for part in (f"{self.check}: {self.found}", required, self.remedy) if part)


def error(check: str, found: str, required: str, remedy: str) -> Finding:
    """It cannot work."""
    return Finding(check, "error", found, required, remedy)


def warning(check: str, found: str, required: str, remedy: str) -> Finding:
    """It may fail or answer badly."""
    return Finding(check, "warning", found, required, remedy)


def unchecked(check: str, reason: str) -> Finding:
    """The check was not possible."""
    return Finding(check, "unchecked", reason)


def ok(check: str, found: str) -> Finding:
    """It works."""
    return Finding(check, "ok", found)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """The findings of severity `error`."""
    return [finding for finding in findings if finding.severity == "error"]


def refuse(findings: Iterable[Finding], reason: str) -> None:
    """Stop a start that has an error among its findings.

    Raises:
        ChecksFailed: the reason, and one line for each error.
    """
    if wrong := errors(findings):
        raise ChecksFailed("\n  ".join([reason, *map(str, wrong)]))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 with an error among the findings, else 0."""
    return 1 if errors(findings) else 0


def as_json(findings: Sequence[Finding], **more: object) -> str:
    """The report for programs."""
    return json.dumps({"ok": not errors(findings), **more, "findings": [asdict(each) for each in findings]}, indent=2)


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print the report for people."""
    order = list(STYLES)
    for finding in sorted(findings, key=lambda each: order.index(each.severity)):
        line = Text.assemble((f"{finding.severity:<10}", STYLES[finding.severity]), f"{finding.check}: {finding.found}")
        console.print(line)
        for name, text in (("required", finding.required), ("do", finding.remedy)):
            if text and finding.severity != "ok":
                console.print(Text(f"{'':<10}{name}: {text}", style="dim" if name == "required" else ""))
