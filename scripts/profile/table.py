"""A profile in the terminal: what each stage did, the bottleneck, and what to try next."""

from __future__ import annotations

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.metrics.profile import Advice, Profile, Stage
from scripts.profile.comparison import Comparison, Line, parts
from scripts.profile.units import number, seconds, share, size

# What a narrow terminal has no room for; the pages have all of it.
WIDE = 110

# Of a stage, in the order in which pages show them.
STAGE_HEADS = ("rows", "failed", "wall", "busy", "waiting", "at once", "p50", "p90", "p99", "in", "out", "tokens")


def stage_table(profile: Profile, width: int) -> Table:
    """A row for each stage and phase; `width` of the terminal, in characters."""
    wide, failures = width >= WIDE, any(stage.failed for stage in profile.stages)
    heads = ["rows", *(["failed"] if failures else []), *(["wall"] if wide else []), "busy", "waiting", "at once"]
    heads += ["p50", "p99", *(["in", "out", "tokens"] if wide else [])]
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=8)
    for head in [*heads, "cost", "%"]:
        table.add_column(head, justify="right", no_wrap=True)
    stages = {stage.name: stage for stage in profile.stages}
    for name in parts(profile):
        cost = profile.diagnosis.cost_s.get(name, 0.0)
        style = "bold red" if name == profile.diagnosis.bottleneck else ""
        figures = stage_figures(stages[name]) if name in stages else {}
        cells = [figures.get(head, "") for head in heads]
        table.add_row(escape(name), *cells, seconds(cost), share(cost, profile.wall_s), style=style)
    return table


def stage_figures(stage: Stage) -> dict[str, str]:
    """A stage's figures by their column's head."""
    tokens = stage.prompt_tokens + stage.completion_tokens
    return {
        "rows": number(stage.rows),
        "failed": number(stage.failed) if stage.failed else "",
        "wall": seconds(stage.last_s - stage.first_s),
        "busy": seconds(stage.busy_s),
        "waiting": seconds(stage.waiting_s),
        "at once": at_once(stage),
        "p50": seconds(stage.latency_s.p50),
        "p90": seconds(stage.latency_s.p90),
        "p99": seconds(stage.latency_s.p99),
        "in": size(stage.bytes_in),
        "out": size(stage.bytes_out),
        "tokens": number(tokens) if tokens else "",
    }


def at_once(stage: Stage) -> str:
    """Rows that were worked on at once, of those that may be: `7.9/8`."""
    mean = stage.concurrency.mean
    return f"{mean:.{1 if mean >= 1 else 2}f}/{stage.concurrency.limit}"


def advice_line(number: int, advice: Advice) -> str:
    """A lever in words."""
    saves = f", saves about {seconds(advice.seconds_saved)}" if advice.seconds_saved is not None else ""
    return f"  {number}. {advice.setting}: {advice.now} -> {advice.to}{saves}: {advice.why}"


def show(console: Console, profile: Profile) -> None:
    """The whole profile."""
    diagnosis = profile.diagnosis
    console.print(
        f"\nprofile of {profile.run}: {seconds(profile.wall_s)}, of which {diagnosis.explained:.0%} is explained",
        style="bold",
        markup=False,
        highlight=False,
    )
    console.print(stage_table(profile, console.width), highlight=False)
    console.print(
        Text(
            "waiting is summed over rows that waited side by side; busy and cost are parts of the run's time",
            style="dim",
        )
    )
    cost = diagnosis.cost_s.get(diagnosis.bottleneck, 0.0)
    lines = [f"bottleneck: {diagnosis.bottleneck}, to blame for {seconds(cost)} of {seconds(profile.wall_s)}"]
    lines += [f"  - {evidence}" for evidence in diagnosis.evidence]
    console.print(Group(Text(), Text(lines[0], style="bold"), *map(Text, lines[1:])))
    if diagnosis.advice:
        tries = [Text(advice_line(rank, advice)) for rank, advice in enumerate(diagnosis.advice, 1)]
        console.print(Group(Text(), Text("try next:", style="bold"), *tries))


def compared_table(comparison: Comparison) -> Table:
    """What each stage and phase of both runs cost, and how it was worked on."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for head in ("cost before", "after", "ratio", "at once before", "after", "p50 before", "after"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in comparison.lines:
        table.add_row(escape(line.name), *compared_cells(line))
    before, after = comparison.before.wall_s, comparison.after.wall_s
    table.add_row("wall", seconds(before), seconds(after), f"{comparison.ratio:.2f}", style="bold")
    return table


def compared_cells(line: Line) -> list[str]:
    """A stage's or phase's figures in both runs, after its name."""
    stages = (line.before, line.after)
    return [
        seconds(line.cost_before_s),
        seconds(line.cost_after_s),
        "" if line.ratio is None else f"{line.ratio:.2f}",
        *(at_once(stage) if stage else "" for stage in stages),
        *(seconds(stage.latency_s.p50) if stage else "" for stage in stages),
    ]


def changed_settings(comparison: Comparison) -> str:
    """The settings that differ, in one line."""
    changes = [f"{each.setting} {each.before or 'unset'} -> {each.after or 'unset'}" for each in comparison.changes]
    return "; ".join(changes) or "none that the profile knows"


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Both runs side by side."""
    before, after = comparison.before, comparison.after
    lines = [
        f"settings that differ: {changed_settings(comparison)}",
        f"bottleneck: {before.diagnosis.bottleneck}, then {after.diagnosis.bottleneck}",
        *(f"note: {caveat}" for caveat in comparison.caveats),
    ]
    console.print(
        Text(f"\n{after.run} against {before.run}: {comparison.verdict}", style="bold"),
        compared_table(comparison),
        Group(*map(Text, lines)),
        sep="\n",
    )
