"""A profile as a Markdown page: a Mermaid diagram, the table, the advice, and Daft's own figures beside it."""

from __future__ import annotations

import re

from pipeline.metrics.profile import Profile
from scripts.profile.comparison import Comparison, parts
from scripts.profile.mermaid import flowchart
from scripts.profile.table import STAGE_HEADS, changed_settings, compared_cells, stage_figures
from scripts.profile.units import measure, number, seconds, share, size, title

# What Markdown (GitHub's, with formulas) would take for markup, anywhere and at the begin of a line.
MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)|^[#+=-]|^\d(?=\d*[.)])")


def text(value: object) -> str:
    """A value that is shown as it is, also within a table: no markup, one line."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def table(head: list[str], rows: list[list[str]], figures: bool = True) -> str:
    """A Markdown table; with `figures` every column but the first is aligned as such."""
    lines = [head, ["---", *["---:" if figures else "---"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(profile: Profile) -> str:
    """A row for each stage and phase."""
    stages = {stage.name: stage for stage in profile.stages}
    rows = []
    for name in parts(profile):
        cost = profile.diagnosis.cost_s.get(name, 0.0)
        shown = f"**{text(name)}**" if name == profile.diagnosis.bottleneck else text(name)
        figures = stage_figures(stages[name]) if name in stages else {}
        cells = [figures.get(head, "") for head in STAGE_HEADS]
        rows.append([shown, *cells, seconds(cost), share(cost, profile.wall_s)])
    return table(["", *STAGE_HEADS, "cost", "%"], rows)


def advice_table(profile: Profile) -> str:
    """The levers, the most promising first."""
    rows = [
        [
            text(each.setting),
            text(each.now),
            text(each.to),
            "unknown" if each.seconds_saved is None else seconds(each.seconds_saved),
            text(each.why),
        ]
        for each in profile.diagnosis.advice
    ]
    return table(["setting", "now", "try", "saves about", "why"], rows, figures=False)


def services_table(profile: Profile) -> str:
    """What the services said of themselves."""
    rows = [
        [text(service), text(title(name)), measure(name, value)]
        for service, metrics in profile.services.items()
        for name, value in metrics.items()
    ]
    return table(["service", "metric", "over the run"], rows)


def comparison_section(comparison: Comparison) -> str:
    """Another run beside this one."""
    rows = [[text(line.name), *compared_cells(line)] for line in comparison.lines]
    rows.append(
        [
            "**wall**",
            seconds(comparison.before.wall_s),
            seconds(comparison.after.wall_s),
            f"{comparison.ratio:.2f}",
            *[""] * 4,
        ]
    )
    head = ["", "cost before", "after", "ratio", "at once before", "after", "p50 before", "after"]
    before, after = comparison.before.diagnosis, comparison.after.diagnosis
    lines = [
        f"## Against {text(comparison.before.run)}: {comparison.verdict}",
        table(head, rows),
        f"Settings that differ: {text(changed_settings(comparison))}.",
        f"Bottleneck: {text(before.bottleneck)}, then {text(after.bottleneck)}.",
        *(f"Note: {text(caveat)}." for caveat in comparison.caveats),
    ]
    return "\n\n".join(lines)


def page(profile: Profile, daft: str | None = None, compared: Comparison | None = None) -> str:
    """The whole page; `daft` is pipeline/metrics/daft_plan.py's page about the same run."""
    diagnosis = profile.diagnosis
    cost = diagnosis.cost_s.get(diagnosis.bottleneck, 0.0)
    sections = [
        f"# Profile of {text(profile.run)}",
        f"{seconds(profile.wall_s)} on {number(profile.machine.cpus)} cores, {size(profile.machine.memory_bytes)}"
        + (f", {text(', '.join(profile.machine.gpus))}" if profile.machine.gpus else "")
        + f"; begun {text(profile.started)}. The parts below explain {diagnosis.explained:.0%} of it.",
        f"**Bottleneck: {text(diagnosis.bottleneck)}**, to blame for {seconds(cost)} "
        f"({share(cost, profile.wall_s)} of the run).",
        "\n".join(f"- {text(evidence)}" for evidence in diagnosis.evidence),
        f"```mermaid\n{flowchart(profile)}\n```",
        "## Where the time went",
        stage_table(profile),
        "Wall, busy and cost are of the run's own time. Waiting is summed over rows that waited side by side. At once: "
        "the mean number of rows that were worked on, of those that the settings allow.",
    ]
    if diagnosis.advice:
        sections += ["## Try next", advice_table(profile)]
    if compared is not None:
        sections.append(comparison_section(compared))
    if profile.services:
        sections += ["## The services, over the run", services_table(profile)]
    if daft is not None:
        sections.append(re.sub("^# ", "## ", daft.strip()))
    return "\n\n".join(section for section in sections if section) + "\n"
