"""A profile in the terminal: each stage's figures, the bottleneck, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.metrics.profile import Profile
from scripts.profile.comparison import Comparison
from scripts.profile.rows import (
    COMPARED_HEADS,
    STAGE_HEADS,
    Row,
    bottleneck_cost_s,
    compared_lines,
    compared_rows,
    stage_rows,
)
from scripts.profile.units import seconds

# A terminal with fewer columns gets only the figures that fit; the pages have all of them.
WIDE = 110
ONLY_WIDE = {"wall", "in", "out", "tokens"}


def as_table(heads: Sequence[str], rows: Sequence[Row], style: str, gap: int = 2) -> Table:
    """A table of rows; marked ones have the style."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    table.add_column("", no_wrap=True, min_width=8)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.name), *row.cells, style=style if row.marked else "")
    return table


def stage_table(profile: Profile, width: int) -> Table:
    """A row for each stage and phase, with the columns that fit into a terminal of this width in characters."""
    hidden = {"p90"} | (set() if width >= WIDE else ONLY_WIDE)
    if not any(stage.failed for stage in profile.stages):
        hidden.add("failed")
    places = [place for place, head in enumerate(STAGE_HEADS) if head not in hidden]
    rows = [Row(row.name, [row.cells[place] for place in places], row.marked) for row in stage_rows(profile)]
    return as_table([STAGE_HEADS[place] for place in places], rows, "bold red", 2 if width >= WIDE else 1)


def show(console: Console, profile: Profile) -> None:
    """Print the whole profile."""
    diagnosis = profile.diagnosis
    title = f"profile of {profile.run}: {seconds(profile.wall_s)}, of which {diagnosis.explained:.0%} is explained"
    console.print(Text(f"\n{title}", style="bold"))
    console.print(stage_table(profile, console.width), highlight=False)
    console.print(
        Text("waiting is summed over rows that wait side by side; busy and cost are parts of the run's time", "dim")
    )
    cost = seconds(bottleneck_cost_s(profile))
    lines = [Text(f"\nbottleneck: {diagnosis.bottleneck}, to blame for {cost} of {seconds(profile.wall_s)}", "bold")]
    lines += [Text(f"  - {evidence}") for evidence in diagnosis.evidence]
    if diagnosis.advice:
        lines.append(Text("\ntry next:", "bold"))
    for rank, advice in enumerate(diagnosis.advice, 1):
        saves = f", saves about {seconds(advice.seconds_saved)}" if advice.seconds_saved is not None else ""
        lines.append(Text(f"  {rank}. {advice.setting}: {advice.now} -> {advice.to}{saves}: {advice.why}"))
    console.print(*lines, sep="\n")


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print both runs side by side."""
    title = f"\n{comparison.after.run} against {comparison.before.run}: {comparison.verdict}"
    table = as_table(COMPARED_HEADS, compared_rows(comparison), "bold")
    console.print(Text(title, style="bold"), table, *map(Text, compared_lines(comparison)), sep="\n")
