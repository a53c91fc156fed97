"""The steps of the check: each ends as a finding with its seconds, and a failed one does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from scripts.environments import EnvironmentFailed
from scripts.findings import STYLES, Finding, ok, unchecked
from scripts.settings import StackError


class StepFailed(Exception):
    """A step found something wrong; the message says what and what was expected."""


class NotPossible(Exception):
    """A step cannot be done on this host; the message says why."""


@dataclass
class Report:
    """The findings so far."""

    console: Console
    rows: list[tuple[Finding, float]] = field(default_factory=list)

    def step(self, name: str, work: Callable[..., str], *arguments: object) -> bool:
        """Do a step, which returns what it found; False where it failed or was not possible."""
        self.console.print(f"{name} ...", style="dim", highlight=False, markup=False)
        begin = time.monotonic()
        try:
            finding = ok(name, work(*arguments))
        except NotPossible as reason:
            finding = unchecked(name, str(reason))
        except (StepFailed, StackError, EnvironmentFailed, OSError) as failure:
            finding = Finding(name, "error", str(failure), "what the step checks", "see the output above")
        self.rows.append((finding, time.monotonic() - begin))
        return finding.severity == "ok"

    def failed(self) -> bool:
        """Whether a step failed."""
        return any(finding.severity == "error" for finding, _ in self.rows)

    def show(self) -> None:
        """The table."""
        table = Table("check", "", "found", "time", box=None, pad_edge=False)
        for finding, seconds in self.rows:
            word = f"[{STYLES[finding.severity]}]{'failed' if finding.severity == 'error' else finding.severity}[/]"
            table.add_row(finding.check, word, finding.found.replace("[", "\\["), f"{seconds:.0f} s")
        self.console.print(table)
