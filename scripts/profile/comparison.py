"""Two profiles side by side: different settings, and their effect on each part of the run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.metrics.profile import Profile, Stage


@dataclass(frozen=True, slots=True)
class Line:
    """A stage or phase in both runs; `before` or `after` is None for a phase, or where a run lacks the stage."""

    name: str
    before: Stage | None
    after: Stage | None
    cost_before_s: float
    cost_after_s: float

    @property
    def ratio(self) -> float | None:
        """The cost after, as a multiple of the cost before; None if that is 0."""
        return self.cost_after_s / self.cost_before_s if self.cost_before_s > 0 else None


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs; None where a run does not have it."""

    setting: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run (`after`) compared with another (`before`)."""

    before: Profile
    after: Profile

    @property
    def ratio(self) -> float:
        """Wall time after, as a multiple of that before."""
        return self.after.wall_s / self.before.wall_s

    @property
    def verdict(self) -> str:
        """The wall times in words; a difference of less than 2% counts as none."""
        if 0.98 <= self.ratio <= 1.02:
            return "as fast"
        return f"{1 / self.ratio:.2f}x faster" if self.ratio < 1 else f"{self.ratio:.2f}x slower"

    @property
    def lines(self) -> list[Line]:
        """The stages and phases of both: those of `after` first, in its order."""
        stages = [{stage.name: stage for stage in profile.stages} for profile in (self.before, self.after)]
        costs = [profile.diagnosis.cost_s for profile in (self.before, self.after)]
        names = dict.fromkeys([*parts(self.after), *parts(self.before)])
        return [
            Line(name, stages[0].get(name), stages[1].get(name), costs[0].get(name, 0.0), costs[1].get(name, 0.0))
            for name in names
        ]

    @property
    def changes(self) -> list[Change]:
        """The settings that differ, by name."""
        before, after = self.before.settings, self.after.settings
        return [
            Change(name, shown(before, name), shown(after, name))
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name) or (name in before) != (name in after)
        ]

    @property
    def caveats(self) -> list[str]:
        """Reasons why the two wall times are hard to compare."""
        found = []
        if self.before.machine != self.after.machine:
            found.append("the runs took place on different machines")
        rows = [max((stage.rows for stage in each.stages), default=0) for each in (self.before, self.after)]
        if rows[0] != rows[1]:
            found.append(f"the runs had different work: {rows[0]} rows, then {rows[1]}")
        return found


def parts(profile: Profile) -> list[str]:
    """Stages and phases that have a cost or rows, in the order in which they happen: phases around the stages."""
    staged = [stage.name for stage in profile.stages]
    names: list[str] = []
    for phase in sorted(profile.phases, key=lambda phase: phase.start_s):
        names += staged if phase.name == "flow" else []
        names += [phase.name] if phase.name in profile.diagnosis.cost_s and phase.name not in staged else []
    return list(dict.fromkeys([*names, *staged, *profile.diagnosis.cost_s]))


def shown(settings: dict[str, str | int | float | bool | None], name: str) -> str | None:
    """A setting's value as text; None if the run does not have it."""
    return str(settings[name]) if name in settings else None
