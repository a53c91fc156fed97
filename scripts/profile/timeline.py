"""The samples of a run as panels over one axis of time: which series belong together, and their curves as SVG paths.

A panel's plot is 1000 wide and 100 high, time from left to right over the run's wall time, values from the bottom up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.metrics.profile import Profile, Stage
from scripts.profile.mermaid import SERVICE_OF
from scripts.profile.units import number, size

WIDTH, HEIGHT = 1000.0, 100.0

# A curve of more points than a screen has pixels takes time and shows nothing more.
MOST_POINTS = 600

Values = Sequence[float | None]

SHOWN: dict[str, Callable[[float], str]] = {
    "cores": lambda value: f"{value:.1f}",
    "rows": lambda value: number(round(value, 1)),
    "share": lambda value: f"{value:.0%}",
    "bytes": size,
    "": number,
}
"""How a value of each unit is written; templates/profile.js does the same."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One series in a panel."""

    series: str
    label: str
    colour: str
    """A CSS variable's name."""
    filled: bool
    unit: str
    values: Values
    top: float
    """The value at the plot's upper edge."""
    path: str
    """For a `path` element; empty where nothing was measured."""

    @property
    def mean(self) -> str:
        """Over what was measured."""
        measured = [value for value in self.values if value is not None]
        return SHOWN[self.unit](sum(measured) / len(measured)) if measured else "not measured"


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that are read together."""

    title: str
    scale: str
    """What the upper edge means, in words."""
    curves: list[Curve]
    low: bool
    """A low one, for a stage of many."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """All panels, and the moments that their curves' values belong to."""

    t_s: list[float]
    panels: list[Panel]
    stages: list[Panel]
    span_s: float
    longest_queue: float
    """What the upper edge means for the rows that wait, in every stage's panel."""


def stage_colours(profile: Profile) -> dict[str, str]:
    """Each stage's CSS variable; templates/profile.css has six."""
    return {stage.name: f"--c{place % 6}" for place, stage in enumerate(profile.stages)}


def thin(values: Values, points: int) -> list[float | None]:
    """At most so many values, each the mean of those that it stands for."""
    if len(values) <= points:
        return list(values)
    thinned: list[float | None] = []
    for place in range(points):
        part = values[place * len(values) // points : (place + 1) * len(values) // points]
        measured = [value for value in part if value is not None]
        thinned.append(sum(measured) / len(measured) if measured else None)
    return thinned


def path(t_s: Sequence[float], values: Values, span_s: float, top: float, filled: bool) -> str:
    """The curve; it is interrupted where nothing was measured, and goes down to zero at its ends if it is filled."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for moment, value in zip(t_s, values, strict=True):
        if value is None:
            pieces.append([])
        else:
            height = min(max(value / top, 0.0), 1.0) if top > 0 else 0.0
            pieces[-1].append((moment / span_s * WIDTH, HEIGHT * (1 - height)))
    drawn = []
    for piece in filter(None, pieces):
        points = [f"{x:.1f},{y:.1f}" for x, y in piece]
        if filled:
            points = [f"{piece[0][0]:.1f},{HEIGHT:.0f}", *points, f"{piece[-1][0]:.1f},{HEIGHT:.0f}"]
        drawn.append(f"M{' L'.join(points)}" + ("Z" if filled else ""))
    return "".join(drawn)


class Drawing:
    """A profile's samples on their way into panels: knows which series are in none yet."""

    def __init__(self, profile: Profile) -> None:
        samples = profile.samples
        self.series = samples.series
        self.left = set(samples.series)
        self.t_s = [moment for moment in thin(samples.t_s, MOST_POINTS) if moment is not None]
        self.span_s = max([profile.wall_s, *samples.t_s]) or 1.0

    def highest(self, names: Sequence[str], least: float) -> float:
        """The largest value of these series, or `least`."""
        return max([least, *(value or 0.0 for name in names for value in self.series.get(name, ()))])

    def curves(self, unit: str, top: float, wanted: Sequence[tuple[str, str, str, bool]]) -> list[Curve]:
        """The wanted ones of which something was measured, each as series, label, colour and whether it is filled."""
        drawn = []
        for name, label, colour, filled in wanted:
            self.left.discard(name)
            values = thin(self.series.get(name, ()), MOST_POINTS)
            if any(value is not None for value in values):
                curve = path(self.t_s, values, self.span_s, top, filled)
                drawn.append(Curve(name, label, colour, filled, unit, values, top, curve))
        return drawn

    def pipeline(self, cpus: int) -> Panel:
        """The cores that it took, and all programs of the machine."""
        wanted = [("pipeline.cpu", "pipeline", "--c0", True), ("host.cpu", "whole machine", "--muted", False)]
        return Panel("pipeline", f"{cpus} cores", self.curves("cores", cpus, wanted), low=False)

    def service(self, name: str, colour: str, stage: Stage | None) -> Panel:
        """What was sent to a service by its stage, and what it did with that."""
        running, waiting = f"{name}.running", f"{name}.waiting"
        sent = f"{stage.name}.working" if stage else ""
        top = self.highest([running, waiting, sent], float(stage.concurrency.limit) if stage else 1.0)
        tells = self.highest([running], 0.0) > 0  # a server that refreshes its gauges seldom may miss a short run
        wanted = [
            (sent, "in flight", "--muted" if tells else colour, not tells),
            (running, "running there", colour, tells),
            (waiting, "waiting there", "--warn", False),
        ]
        return Panel(name, f"{number(top)} requests", self.curves("rows", top, wanted), low=False)

    def gpu(self) -> Panel:
        """Shares of the GPU, and of the model server's KV cache."""
        wanted = [("gpu.utilisation", "GPU busy", "--c2", True), ("model.kv_cache", "KV cache", "--c3", False)]
        curves = self.curves("share", 1.0, wanted)
        return Panel("GPU" if curves and curves[0].filled else "KV cache", "100%", curves, low=False)

    def memory(self) -> Panel:
        """Of the pipeline, the machine, the GPU."""
        wanted = [
            ("pipeline.memory_bytes", "pipeline", "--c0", True),
            ("host.memory_bytes", "whole machine", "--muted", False),
            ("gpu.memory_bytes", "GPU", "--c2", False),
        ]
        top = self.highest([name for name, *_ in wanted], 1.0)
        return Panel("memory", size(top), self.curves("bytes", top, wanted), low=False)

    def stage(self, stage: Stage, colour: str, longest_queue: float) -> Panel:
        """Rows at work, of as many as the settings allow, and rows that wait, of as many as wait anywhere."""
        limit = float(max(stage.concurrency.limit, 1))
        working = self.curves("rows", limit, [(f"{stage.name}.working", "at work", colour, True)])
        waiting = self.curves("rows", longest_queue, [(f"{stage.name}.waiting", "waiting", "--warn", False)])
        return Panel(stage.name, f"of {stage.concurrency.limit}", working + waiting, low=True)

    def other(self, name: str) -> Panel:
        """A series that a later version of the pipeline measures."""
        top = self.highest([name], 1e-9)
        return Panel(name, number(top), self.curves("", top, [(name, "value", "--c4", True)]), low=False)


def timeline(profile: Profile) -> Timeline:
    """The run's panels: pipeline, detector, model, GPU, memory; then a low one for each stage. All series are in it."""
    draw = Drawing(profile)
    asks = {SERVICE_OF[stage.name]: stage for stage in profile.stages if stage.name in SERVICE_OF}
    panels = [
        draw.pipeline(profile.machine.cpus),
        draw.service("detector", "--c1", asks.get("detector")),
        draw.service("model", "--c3", asks.get("model")),
        draw.gpu(),
        draw.memory(),
    ]
    longest = draw.highest([f"{stage.name}.waiting" for stage in profile.stages], 1.0)
    colours = stage_colours(profile)
    stages = [draw.stage(stage, colours[stage.name], longest) for stage in profile.stages]
    panels += [draw.other(name) for name in sorted(draw.left)]
    return Timeline(
        draw.t_s,
        [panel for panel in panels if panel.curves],
        [panel for panel in stages if panel.curves],
        draw.span_s,
        longest,
    )
