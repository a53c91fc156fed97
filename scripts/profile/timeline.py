"""The samples of a run as panels over one axis of time: which series belong together, and their curves as SVG paths.

A panel's plot is 1000 wide and 100 high, time from left to right over the run's wall time, values from the bottom up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Series(NamedTuple):
    """One measurement, and how it is drawn."""

    name: str
    """In the profile's samples."""
    label: str
    colour: str
    """A CSS variable's name."""
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One series in a panel."""

    series: str
    label: str
    colour: str
    filled: bool
    unit: str
    """A key of SHOWN."""
    values: Values
    path: str
    """For a `path` element."""

    @property
    def mean(self) -> str:
        """The mean of the measured values."""
        measured = [value for value in self.values if value is not None]
        return SHOWN[self.unit](sum(measured) / len(measured)) if measured else "not measured"


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that are read together."""

    title: str
    scale: str
    """The meaning of the upper edge."""
    curves: list[Curve]
    low: bool = False
    """Low, because there are many: a stage's panel."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """All panels, and the moments of their curves' values."""

    t_s: list[float]
    panels: list[Panel]
    stages: list[Panel]
    span_s: float
    longest_queue: float
    """The upper edge of waiting rows in every stage's panel."""


def stage_colours(profile: Profile) -> dict[str, str]:
    """The CSS variable of each stage's colour; templates/profile.css has six."""
    return {stage.name: f"--c{place % 6}" for place, stage in enumerate(profile.stages)}


def thin(values: Values, points: int) -> list[float | None]:
    """At most `points` values, each the mean of those that it replaces."""
    if len(values) <= points:
        return list(values)
    thinned: list[float | None] = []
    for place in range(points):
        part = values[place * len(values) // points : (place + 1) * len(values) // points]
        measured = [value for value in part if value is not None]
        thinned.append(sum(measured) / len(measured) if measured else None)
    return thinned


def path(t_s: Sequence[float], values: Values, span_s: float, top: float, filled: bool) -> str:
    """The curve: interrupted where nothing was measured; if filled, each piece ends on the ground."""
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
    """Draws a profile's samples, and knows which series are not drawn yet."""

    def __init__(self, profile: Profile) -> None:
        samples = profile.samples
        self.series = samples.series
        self.left = set(samples.series)
        self.t_s = [moment for moment in thin(samples.t_s, MOST_POINTS) if moment is not None]
        self.span_s = max([profile.wall_s, *samples.t_s]) or 1.0

    def highest(self, least: float, *names: str) -> float:
        """The largest value of these series, or `least`."""
        return max([least, *(value or 0.0 for name in names for value in self.series.get(name, ()))])

    def curves(self, unit: str, top: float, *wanted: Series) -> list[Curve]:
        """The wanted series that have a measurement, with `top` at the plot's upper edge."""
        drawn = []
        for each in wanted:
            self.left.discard(each.name)
            values = thin(self.series.get(each.name, ()), MOST_POINTS)
            if any(value is not None for value in values):
                drawn.append(Curve(*each, unit, values, path(self.t_s, values, self.span_s, top, each.filled)))
        return drawn

    def service(self, name: str, colour: str, stage: Stage | None) -> Panel:
        """The requests that a stage sends to a service, and those that the service reports."""
        running, waiting = f"{name}.running", f"{name}.waiting"
        sent = f"{stage.name}.working" if stage else ""
        top = self.highest(float(stage.concurrency.limit) if stage else 1.0, running, waiting, sent)
        reported = self.highest(0.0, running) > 0  # a server that refreshes its gauges seldom may miss a short run
        wanted = (
            Series(sent, "in flight", "--muted" if reported else colour, not reported),
            Series(running, "running there", colour, reported),
            Series(waiting, "waiting there", "--warn"),
        )
        return Panel(name, f"{number(top)} requests", self.curves("rows", top, *wanted))

    def machine(self, cpus: int) -> list[Panel]:
        """Cores, GPU and memory, of the pipeline and of the machine."""
        cores = Series("pipeline.cpu", "pipeline", "--c0", True), Series("host.cpu", "whole machine", "--muted")
        gpu = Series("gpu.utilisation", "GPU busy", "--c2", True), Series("model.kv_cache", "KV cache", "--c3")
        memory = (
            Series("pipeline.memory_bytes", "pipeline", "--c0", True),
            Series("host.memory_bytes", "whole machine", "--muted"),
            Series("gpu.memory_bytes", "GPU", "--c2"),
        )
        shares = self.curves("share", 1.0, *gpu)
        most = self.highest(1.0, *(each.name for each in memory))
        return [
            Panel("pipeline", f"{cpus} cores", self.curves("cores", cpus, *cores)),
            Panel("GPU" if shares and shares[0].filled else "KV cache", "100%", shares),
            Panel("memory", size(most), self.curves("bytes", most, *memory)),
        ]

    def stage(self, stage: Stage, colour: str, longest_queue: float) -> Panel:
        """Rows at work up to the settings' limit, and waiting rows up to the longest queue of all."""
        limit = max(stage.concurrency.limit, 1)
        working = self.curves("rows", limit, Series(f"{stage.name}.working", "at work", colour, True))
        waiting = self.curves("rows", longest_queue, Series(f"{stage.name}.waiting", "waiting", "--warn"))
        return Panel(stage.name, f"of {stage.concurrency.limit}", working + waiting, low=True)

    def other(self, name: str) -> Panel:
        """A series that only a later version of the pipeline measures."""
        top = self.highest(1e-9, name)
        return Panel(name, number(top), self.curves("", top, Series(name, "value", "--c4", True)))


def timeline(profile: Profile) -> Timeline:
    """The run's panels: pipeline, detector, model, GPU, memory; then a low one for each stage. They hold all series."""
    draw = Drawing(profile)
    asks = {SERVICE_OF[stage.name]: stage for stage in profile.stages if stage.name in SERVICE_OF}
    cores, *others = draw.machine(profile.machine.cpus)
    services = [draw.service(name, ink, asks.get(name)) for name, ink in (("detector", "--c1"), ("model", "--c3"))]
    longest = draw.highest(1.0, *(f"{stage.name}.waiting" for stage in profile.stages))
    colours = stage_colours(profile)
    stages = [draw.stage(stage, colours[stage.name], longest) for stage in profile.stages]
    panels = [cores, *services, *others, *(draw.other(name) for name in sorted(draw.left))]
    shown, low = ([panel for panel in some if panel.curves] for some in (panels, stages))
    return Timeline(draw.t_s, shown, low, draw.span_s, longest)
