"""What a check found: the one form that the doctor, the preflight and their reports share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

Severity = Literal["error", "warning", "unchecked", "ok"]
"""error: it cannot work. warning: it may fail or answer badly. unchecked: the check could not be made, and says why."""

STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "unchecked": "cyan", "ok": "green"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, in a word or two."""
    severity: Severity
    found: str
    required: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.severity in ("error", "warning") and not (self.required and self.remedy):
            raise ValueError(f"finding {self.check!r} says what is wrong, but not what is required and what to do")

    def __str__(self) -> str:
        parts = [f"{self.check}: {self.found}"]
        parts += [f"required: {self.required}"] if self.required else []
        parts += [self.remedy] if self.remedy else []
        return "; ".join(parts)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that keep things from working."""
    return [finding for finding in findings if finding.severity == "error"]


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when something cannot work, else 0."""
    return 1 if errors(findings) else 0


def as_json(findings: Sequence[Finding], **more: object) -> str:
    """The findings for a machine or an issue report."""
    return json.dumps({"ok": not errors(findings), **more, "findings": [asdict(each) for each in findings]}, indent=2)


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings for people: errors last, where the eye is."""
    order: list[Severity] = ["ok", "unchecked", "warning", "error"]
    for finding in sorted(findings, key=lambda each: order.index(each.severity)):
        line = Text.assemble((f"{finding.severity:<10}", STYLES[finding.severity]), f"{finding.check}: {finding.found}")
        console.print(line)
        for name, text in (("required", finding.required), ("do", finding.remedy)):
            if text and finding.severity != "ok":
                console.print(Text(f"{'':<10}{name}: {text}", style="dim" if name == "required" else ""))
