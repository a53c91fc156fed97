"""A profile as a Markdown page: a Mermaid diagram, the tables, the advice, and Daft's own figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.metrics.profile import Profile
from scripts.profile.comparison import Comparison
from scripts.profile.mermaid import flowchart
from scripts.profile.rows import (
    COMPARED_HEADS,
    STAGE_HEADS,
    Row,
    bottleneck_cost_s,
    compared_lines,
    compared_rows,
    stage_rows,
)
from scripts.profile.units import measure, number, seconds, share, size, title

# Characters that Markdown (GitHub's, with formulas) reads as markup, anywhere and at the beginning of a line.
MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)|^[#+=-]|^\d(?=\d*[.)])")


def text(value: object) -> str:
    """A value that Markdown shows unchanged, also within a table: no markup, one line."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---") -> str:
    """A Markdown table; `align` is the mark of all columns but the first."""
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of figures; the names of marked rows are bold."""
    names = (f"**{text(row.name)}**" if row.marked else text(row.name) for row in rows)
    return table(["", *heads], [[name, *row.cells] for name, row in zip(names, rows, strict=True)], "---:")


def page(profile: Profile, daft: str | None = None, compared: Comparison | None = None) -> str:
    """The whole page; `daft` is the page of pipeline/metrics/daft_plan.py about the same run."""
    diagnosis, machine, cost = profile.diagnosis, profile.machine, bottleneck_cost_s(profile)
    gpus = f", {text(', '.join(machine.gpus))}" if machine.gpus else ""
    sections = [
        f"# Profile of {text(profile.run)}",
        f"{seconds(profile.wall_s)} on {number(machine.cpus)} cores, {size(machine.memory_bytes)}{gpus}; begun "
        f"{text(profile.started)}. The parts below explain {diagnosis.explained:.0%} of it.",
        f"**Bottleneck: {text(diagnosis.bottleneck)}**, to blame for {seconds(cost)} "
        f"({share(cost, profile.wall_s)} of the run).",
        "\n".join(f"- {text(evidence)}" for evidence in diagnosis.evidence),
        f"```mermaid\n{flowchart(profile)}\n```",
        "## Where the time went",
        figures(STAGE_HEADS, stage_rows(profile)),
        "Wall, busy and cost are parts of the run's time. Waiting is summed over rows that wait side by side. At once: "
        "the mean number of rows at work, and the limit of the settings.",
    ]
    if diagnosis.advice:
        tries = []
        for each in diagnosis.advice:
            saves = "unknown" if each.seconds_saved is None else seconds(each.seconds_saved)
            tries.append([text(each.setting), text(each.now), text(each.to), saves, text(each.why)])
        sections += ["## Try next", table(["setting", "now", "try", "saves about", "why"], tries)]
    if compared is not None:
        sections += [
            f"## Against {text(compared.before.run)}: {compared.verdict}",
            figures(COMPARED_HEADS, compared_rows(compared)),
            *(f"{text(line[0].upper() + line[1:])}." for line in compared_lines(compared)),
        ]
    if profile.services:
        metrics = [
            [text(service), text(title(name)), measure(name, value)]
            for service, values in profile.services.items()
            for name, value in values.items()
        ]
        sections += ["## The services, over the run", table(["service", "metric", "over the run"], metrics)]
    if daft is not None:
        sections.append(re.sub("^# ", "## ", daft.strip()))
    return "\n\n".join(section for section in sections if section) + "\n"
