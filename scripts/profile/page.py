"""A profile as one HTML file that loads nothing else: the bottleneck, the advice, a timeline, the tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.profile import Profile
from pipeline.output.pages import template
from scripts.profile import units
from scripts.profile.comparison import Comparison, parts
from scripts.profile.rows import COMPARED_HEADS, STAGE_HEADS, bottleneck_cost_s, compared_rows, stage_rows
from scripts.profile.timeline import Timeline, stage_colours, timeline

TICKS = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the bar that shows where the wall time went."""

    name: str
    cost_s: float
    percent: float
    """Of the run."""
    colour: str


def cost_bar(profile: Profile) -> list[Segment]:
    """The costs in the order of the run; phases that are not stages are grey."""
    colour, diagnosis = stage_colours(profile), profile.diagnosis
    return [
        Segment(name, cost, 100 * cost / profile.wall_s, colour.get(name, "--phase"))
        for name in parts(profile)
        if (cost := diagnosis.cost_s.get(name, 0.0)) > 0
    ]


def ticks(span_s: float) -> list[float]:
    """Round moments along the axis, about TICKS of them."""
    rough = span_s / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * place for place in range(int(span_s / step) + 1)]


def moving(drawn: Timeline, profile: Profile) -> dict[str, Any]:
    """The data with which the page's script answers the pointer: moments, values and units, phases."""
    curves = [curve for panel in (*drawn.panels, *drawn.stages) for curve in panel.curves]
    return {
        "span": drawn.span_s,
        "t": [round(moment, 4) for moment in drawn.t_s],
        "curves": [
            {"unit": curve.unit, "values": [None if v is None else float(f"{v:.4g}") for v in curve.values]}
            for curve in curves
        ],
        "phases": [[phase.name, phase.start_s, phase.end_s] for phase in profile.phases],
    }


def page(profile: Profile, compared: Comparison | None = None) -> str:
    """The page."""
    filters = {"seconds": units.seconds, "size": units.size, "number": units.number}
    drawn = timeline(profile)
    both = (compared.before, compared.after) if compared else ()
    longest = max((each.wall_s for each in both), default=0.0)
    return template("scripts.profile", "profile.html.j2", filters).render(
        profile=profile,
        diagnosis=profile.diagnosis,
        cost=bottleneck_cost_s(profile),
        cost_bar=cost_bar(profile),
        heads=STAGE_HEADS,
        rows=stage_rows(profile),
        compared_heads=COMPARED_HEADS,
        compared_rows=compared_rows(compared) if compared else [],
        colours=stage_colours(profile),
        timeline=drawn,
        ticks=[(moment, 100 * moment / drawn.span_s) for moment in ticks(drawn.span_s)],
        moving=moving(drawn, profile),
        measure=units.measure,
        title=units.title,
        share=units.share,
        compared=compared,
        compared_bars=[(each, cost_bar(each), 100 * each.wall_s / longest) for each in both],
    )
