"""The tables of a profile, as text without markup: the terminal, Markdown and HTML show the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.metrics.profile import Profile, Stage
from scripts.profile.comparison import Comparison, Line, parts
from scripts.profile.units import number, seconds, share, size

STAGE_HEADS = (
    *("rows", "failed", "wall", "busy", "waiting", "at once", "p50", "p90", "p99", "in", "out", "tokens"),
    *("cost", "%"),
)
COMPARED_HEADS = ("cost before", "after", "ratio", "at once before", "after", "p50 before", "after")


@dataclass(frozen=True, slots=True)
class Row:
    """A stage or phase: its name, and a cell for each head."""

    name: str
    cells: list[str]
    marked: bool = False
    """The bottleneck, or the total of a comparison."""


def stage_rows(profile: Profile) -> list[Row]:
    """A row for each stage and phase, under STAGE_HEADS."""
    stages, diagnosis = {stage.name: stage for stage in profile.stages}, profile.diagnosis
    rows = []
    for name in parts(profile):
        cost = diagnosis.cost_s.get(name, 0.0)
        figures = stage_cells(stages[name]) if name in stages else [""] * (len(STAGE_HEADS) - 2)
        cells = [*figures, seconds(cost), share(cost, profile.wall_s)]
        rows.append(Row(name, cells, name == diagnosis.bottleneck))
    return rows


def stage_cells(stage: Stage) -> list[str]:
    """A stage's figures, without its cost."""
    tokens, latency = stage.prompt_tokens + stage.completion_tokens, stage.latency_s
    return [
        number(stage.rows),
        number(stage.failed) if stage.failed else "",
        *(seconds(value) for value in (stage.last_s - stage.first_s, stage.busy_s, stage.waiting_s)),
        at_once(stage),
        *(seconds(value) for value in (latency.p50, latency.p90, latency.p99)),
        *(size(value) for value in (stage.bytes_in, stage.bytes_out)),
        number(tokens) if tokens else "",
    ]


def at_once(stage: Stage) -> str:
    """The mean number of rows at work, and the limit: `7.9/8`."""
    mean = stage.concurrency.mean
    return f"{mean:.{1 if mean >= 1 else 2}f}/{stage.concurrency.limit}"


def compared_rows(comparison: Comparison) -> list[Row]:
    """A row for each stage and phase of both runs, and their total, under COMPARED_HEADS."""
    wall = [seconds(run.wall_s) for run in (comparison.before, comparison.after)]
    total = Row("wall", [*wall, f"{comparison.ratio:.2f}", *[""] * 4], marked=True)
    return [*(Row(line.name, compared_cells(line)) for line in comparison.lines), total]


def compared_cells(line: Line) -> list[str]:
    """A stage's or phase's figures in both runs."""
    stages = (line.before, line.after)
    return [
        seconds(line.cost_before_s),
        seconds(line.cost_after_s),
        "" if line.ratio is None else f"{line.ratio:.2f}",
        *(at_once(stage) if stage else "" for stage in stages),
        *(seconds(stage.latency_s.p50) if stage else "" for stage in stages),
    ]


def bottleneck_cost_s(profile: Profile) -> float:
    """The wall time that the bottleneck costs."""
    return profile.diagnosis.cost_s.get(profile.diagnosis.bottleneck, 0.0)


def compared_lines(comparison: Comparison) -> list[str]:
    """Differences of two runs outside the table: settings, bottlenecks, caveats."""
    changes = [f"{each.setting} {each.before or 'unset'} -> {each.after or 'unset'}" for each in comparison.changes]
    before, after = comparison.before.diagnosis, comparison.after.diagnosis
    return [
        f"settings that differ: {'; '.join(changes) or 'none that the profile knows'}",
        f"bottleneck: {before.bottleneck}, then {after.bottleneck}",
        *(f"note: {caveat}" for caveat in comparison.caveats),
    ]
