"""Daft's explain-analyze of a run: the operators that Daft made of the flow, and its counts for each.

The page stands beside the profile because people know it; `NOTE` says what to mistrust. Daft itself writes it
(DAFT_DEV_ENABLE_EXPLAIN_ANALYZE) only for a DataFrame that is collected as a whole, and into the working directory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from daft import get_context
from daft.subscribers import Subscriber
from daft.subscribers.events import ExecutionStarted, Stats

from pipeline.files import write_atomically
from pipeline.metrics.profile import FILE

PAGE = FILE.parent / "daft.md"
NAME = "spotter-plan"
LONGEST_NAME = 60
NOTE = """\
Daft's explain-analyze of the flow's operators. Rows and bytes are right. **Durations mislead**: for a synchronous
function they sum the tasks' time over all threads, which may exceed the run's; for an asynchronous function they count
the time in which its tasks were polled, and so leave out the waiting. The stage times of profile.json are measured by
the stages themselves.
"""


class Plan(Subscriber):
    """Listens to Daft while it executes one query."""

    def __init__(self) -> None:
        self.plan: dict[str, Any] | None = None
        self.stats: dict[int, dict[str, Any]] = {}

    def on_execution_started(self, event: ExecutionStarted) -> None:
        """Daft's physical plan, as JSON."""
        self.plan = json.loads(event.physical_plan)

    def on_stats(self, event: Stats) -> None:
        """What the operators that had something new have counted until now."""
        for node, stats in event.stats.items():
            self.stats.setdefault(node, {}).update({name: value for name, (_, value) in stats.items()})

    def page(self) -> str:
        """A Markdown page with a Mermaid diagram of the operators, from source to sink."""
        nodes: list[str] = []
        edges: list[str] = []

        def visit(node: dict[str, Any]) -> int:
            number = int(node["id"])
            lines = [short(str(node["name"])), *(shown(*stat) for stat in sorted(self.stats.get(number, {}).items()))]
            text = "<br/>".join(line.replace('"', "'") for line in lines)
            nodes.append(f'    {number}["{text}"]')
            edges.extend(f"    {visit(child)} --> {number}" for child in node.get("children", []))
            return number

        if self.plan is not None:
            visit(self.plan)
        diagram = "\n".join(["```mermaid", "flowchart TB", *nodes, *edges, "```"])
        return f"# Daft's explain-analyze\n\n{NOTE}\n{diagram}\n"


def short(name: str) -> str:
    """An operator's name without its configuration."""
    return name.split("\n")[0][:LONGEST_NAME]


def shown(name: str, value: Any) -> str:
    """A counter for people."""
    if isinstance(value, timedelta):
        return f"{name} = {value.total_seconds():.3f} s"
    return f"{name} = {value:,}" if isinstance(value, int) else f"{name} = {value}"


@contextlib.contextmanager
def recorded(folder: Path, wanted: bool) -> Iterator[None]:
    """Write Daft's counts for the query that the block executes into a run's folder, also after an interruption."""
    if not wanted:
        yield
        return
    plan = Plan()
    get_context().attach_subscriber(NAME, plan)
    try:
        yield
    finally:
        get_context().detach_subscriber(NAME)
        (folder / PAGE).parent.mkdir(exist_ok=True)
        write_atomically(folder / PAGE, plan.page().encode())
