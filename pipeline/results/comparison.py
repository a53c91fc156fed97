"""Two runs side by side: which rows changed, how far the answers agree, and what both cost.

(`scripts/profile/comparison.py` compares where the time of two runs went.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.compute as pc

from pipeline import tables
from pipeline.output.evaluation import read_evaluation
from pipeline.output.run_folder import differences
from pipeline.results.finished_run import BATCH, FinishedRun
from pipeline.stages.reusable import SAME_BOX_PX

Row = dict[str, Any]
COLUMNS = ("path", "key", "index", "outcome", "label", "box", "score", "crop", "stage", "reason")


@dataclass(frozen=True, slots=True)
class Pair:
    """The same detection in both runs."""

    before: Row
    after: Row
    changed: tuple[str, ...]
    """The fields of the answer, `label` and `outcome`, as far as they differ."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the answers to one field agree."""

    name: str
    both: int
    """Detections that both runs answered."""
    same: int

    @property
    def share(self) -> float | None:
        """0 to 1; None where there is nothing to compare."""
        return self.same / self.both if self.both else None


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of both runs; None where a run does not have it."""

    name: str
    before: float | None
    after: float | None


def contents(run: FinishedRun) -> set[str]:
    """The content keys of the images; one whose bytes could not be read has none."""
    return set(run.images["key"].drop_null().to_pylist())


def rows_by_key(run: FinishedRun, properties: list[str]) -> dict[str, list[Row]]:
    """The detections of each content key; those of duplicates are left out, since they are copies."""
    copies = run.images.filter(pc.is_valid(run.images["duplicate_of"]))["path"]
    table = run.detections.filter(pc.invert(pc.is_in(run.detections["path"], value_set=copies.combine_chunks())))
    found: dict[str, list[Row]] = defaultdict(list)
    for batch in table.select([*COLUMNS, *properties]).to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            found[row["key"]].append(row)
    return found


def apart(one: Row, other: Row) -> float:
    """The largest distance between two boxes' coordinates, in pixels; infinite for boxes that are not of numbers."""
    distances = [abs(a - b) for a, b in zip(one["box"], other["box"], strict=True)]
    return max(distances) if all(distance == distance for distance in distances) else float("inf")


def matched(before: list[Row], after: list[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """The detections of one image in pairs: the nearest boxes within SAME_BOX_PX, those with equal labels first.

    A detection that only one run has comes with None in the other place.
    """
    near = sorted(
        (one["label"] != other["label"], distance, i, j)
        for i, one in enumerate(before)
        for j, other in enumerate(after)
        if (distance := apart(one, other)) <= SAME_BOX_PX
    )
    of_before: dict[int, int] = {}
    of_after: dict[int, int] = {}
    for _, _, i, j in near:
        if i not in of_before and j not in of_after:
            of_before[i], of_after[j] = j, i
    for j, row in enumerate(after):
        yield (before[of_after[j]] if j in of_after else None), row
    yield from ((row, None) for i, row in enumerate(before) if i not in of_before)


class Comparison:
    """A run (`after`) compared with another (`before`), by the content of images and the place of boxes."""

    def __init__(self, before: FinishedRun, after: FinishedRun) -> None:
        """Match the rows of both."""
        self.before, self.after = before, after
        self.properties = [name for name in after.properties if name in before.properties]
        self.same = 0
        self.pairs: list[Pair] = []
        """The detections that changed, in the order of `after`."""
        self.gone: list[Row] = []
        self.new: list[Row] = []
        self.changes: Counter[tuple[str, str, str]] = Counter()
        """How often a field changed from one value to another."""
        self.agreements = {name: [0, 0] for name in self.properties}
        self.match()

    def match(self) -> None:
        """Sort the detections of images that both runs have into `same`, `pairs`, `gone` and `new`."""
        before, after = (rows_by_key(run, self.properties) for run in (self.before, self.after))
        both = contents(self.before) & contents(self.after)
        for key in dict.fromkeys(key for key in [*after, *before] if key in both):
            for one, other in matched(before.get(key, []), after.get(key, [])):
                if one is None and other is not None:
                    self.new.append(other)
                elif other is None and one is not None:
                    self.gone.append(one)
                elif one is not None and other is not None:
                    self.judge(one, other)

    def judge(self, one: Row, other: Row) -> None:
        """Count a detection that both runs have."""
        changed = tuple(name for name in ("outcome", "label", *self.properties) if one[name] != other[name])
        if one["outcome"] == other["outcome"] == tables.ANSWERED:
            for name in self.properties:
                self.agreements[name][0] += 1
                self.agreements[name][1] += name not in changed
        if not changed:
            self.same += 1
            return
        self.pairs.append(Pair(one, other, changed))
        self.changes.update((name, str(one[name]), str(other[name])) for name in changed)

    @property
    def fields(self) -> list[Agreement]:
        """The fields of the answer that both runs have."""
        return [Agreement(name, *counts) for name, counts in self.agreements.items()]

    @cached_property
    def images(self) -> dict[str, int]:
        """The number of different images, by content, that are in both runs, and in one alone."""
        one, other = contents(self.before), contents(self.after)
        return {"both": len(one & other), "before": len(one - other), "after": len(other - one)}

    @property
    def differences(self) -> list[str]:
        """What is different in the two runs' identities."""
        one, other = (run.manifest.get("identity", {}) for run in (self.before, self.after))
        return differences(other, one)

    @property
    def measures(self) -> list[Measure]:
        """What both cost, and how many answers are right where the input has the truth."""
        one, other = measures(self.before), measures(self.after)
        return [Measure(name, one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])]


def measures(run: FinishedRun) -> dict[str, float | None]:
    """The figures of one run, by name."""
    detections = run.detections
    answered = pc.sum(pc.equal(detections["outcome"], tables.ANSWERED)).as_py() or 0
    tokens = {name: pc.sum(detections[f"{name}_tokens"]).as_py() or 0 for name in ("prompt", "completion")}
    seconds = run.manifest.get("seconds")
    # The labels file's figures stand before those of the job's own truth: it knows single objects.
    judged_by_file = (read_evaluation(run.folder) or {}).get("answers", {})
    accuracy = {**(run.manifest.get("accuracy") or {}), **judged_by_file}
    return {
        "images": run.images.num_rows,
        "images that failed": pc.sum(pc.equal(run.images["outcome"], tables.FAILED)).as_py() or 0,
        "detections": detections.num_rows,
        "detections answered": answered,
        **{f"right {name}, %": round(100 * judged["share"], 1) for name, judged in accuracy.items()},
        "prompt tokens": tokens["prompt"],
        "completion tokens": tokens["completion"],
        "tokens a detection": round(sum(tokens.values()) / detections.num_rows, 1) if detections.num_rows else None,
        "latency of an answer, s": rounded(pc.mean(detections["latency_s"]).as_py(), 3),
        "seconds": rounded(seconds, 1),
        "answers a second": round(answered / seconds, 2) if seconds else None,
    }


def rounded(value: float | None, digits: int) -> float | None:
    """A figure for people; None stays."""
    return None if value is None else round(value, digits)
