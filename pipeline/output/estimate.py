"""What a whole would cost, by what a part of it cost: time, tokens, disk, each with a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.metrics.profile import Profile, Stage
from pipeline.metrics.profiler import FLOW
from pipeline.metrics.stage import DETECT, POOLED, READ, STORE

# Standard errors on each side of a mean: 19 of 20 such ranges hold the true mean, by the normal distribution.
STANDARD_ERRORS = 1.96
# With fewer rows the spread itself is not known: the range is then at least this share of the mean.
LEAST_SPREAD, FEW = 0.1, 30


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate: what is expected, and between which values it most likely ends."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        """For so many times as much."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def and_(self, other: Range) -> Range:
        """Both together, at worst and at best at once."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def plus(self, value: float) -> Range:
        """With a fixed amount on top."""
        return Range(self.low + value, self.expected + value, self.high + value)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What some images would cost."""

    images: int
    """The images that are to be done."""
    measured: int
    """The images of the run that the estimate comes from."""
    run: str
    detections: Range
    prompt_tokens: Range
    completion_tokens: Range
    disk_bytes: Range
    seconds: Range | None
    """None where the run has no profile."""
    cost: Range | None
    """None without prices."""


def per_image(values: Sequence[float]) -> Range:
    """The mean of values of single images, and where the mean of all images lies."""
    mean = fmean(values)
    error = STANDARD_ERRORS * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else mean
    if len(values) < FEW:
        error = max(error, LEAST_SPREAD * mean)
    return Range(max(mean - error, 0.0), mean, mean + error)


def sums(images: pa.Table, detections: pa.Table, column: str) -> list[float]:
    """The sum of a column of the detections for each image, in no order; images without a detection count 0."""
    found = detections.group_by("path").aggregate([(column, "sum")])
    known = [float(value or 0) for value in found[f"{column}_sum"].to_pylist()]
    return known + [0.0] * (images.num_rows - len(known))


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a run's folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def longest(stages: Collection[Stage], images: int) -> float:
    """Seconds an image of the slowest resource, if it always had work: a service's slots, or the pool of threads."""
    pool = [stage for stage in stages if stage.name in POOLED]
    threads = max((stage.concurrency.limit for stage in pool), default=1)
    services = [stage.work_s / max(stage.concurrency.room, 1.0) for stage in stages if stage not in pool]
    return max([sum(stage.work_s for stage in pool) / threads, *services]) / images


def seconds(profile: Profile, images: int) -> Range | None:
    """Seconds that so many images would take; None if the profile is of a flow without images.

    Low: the slowest stage is always busy. Expected: the pace between the first and the last row that was stored, which
    leaves out the time until the flow was full. High: the pace of the whole flow.
    """
    stages = {stage.name: stage for stage in profile.stages if stage.rows}
    done = stages[READ].rows if READ in stages else 0
    if not done:
        return None
    flow_s = sum(phase.end_s - phase.start_s for phase in profile.phases if phase.name == FLOW)
    other_s = profile.wall_s - flow_s
    last = stages.get(STORE) or stages.get(DETECT) or stages[READ]
    low, high = longest(stages.values(), done), flow_s / done
    pace = (last.last_s - last.first_s) / done
    return Range(low, min(max(pace, low), high), high).times(images).plus(other_s)


def estimate(folder: Path, images: int, prices: tuple[float, float] = (0.0, 0.0)) -> Estimate:
    """What `images` images would cost, by the finished run in `folder`; `prices` of a million tokens in and out.

    Raises:
        ValueError: the run has no images, or its profile is of another version.
        OSError: it cannot be read.
    """
    done = pq.read_table(folder / "images.parquet")
    if not done.num_rows:
        raise ValueError("it has no images")
    found = pq.read_table(folder / "detections.parquet")
    counts = [float(value) for value in done["detections"].to_pylist()]
    sent, written = (
        per_image(sums(done, found, name)).times(images) for name in ("prompt_tokens", "completion_tokens")
    )
    cost = sent.times(prices[0] / 1e6).and_(written.times(prices[1] / 1e6)) if any(prices) else None
    try:
        needed = seconds(Profile.of(folder), images)
    except FileNotFoundError:
        needed = None
    mean_bytes = folder_bytes(folder) / done.num_rows
    detections = per_image(counts)
    # Crops are most of the bytes, so these spread as the detections do.
    spread = detections.high / detections.expected if detections.expected else 1 + LEAST_SPREAD
    return Estimate(
        images=images,
        measured=done.num_rows,
        run=folder.resolve().name,
        detections=detections.times(images),
        prompt_tokens=sent,
        completion_tokens=written,
        disk_bytes=Range(mean_bytes / spread, mean_bytes, mean_bytes * spread).times(images),
        seconds=needed,
        cost=cost,
    )


def after_trial(folder: Path, images: int, prices: tuple[float, float]) -> dict[str, Any]:
    """What run.json says after a trial; nothing if no image has ended."""
    try:
        return {"estimate": asdict(estimate(folder, images, prices))}
    except ValueError:
        return {}


def lines(found: Mapping[str, Any]) -> list[str]:
    """An estimate, as a dictionary, for people: a line each."""

    def between(name: str, shown: Callable[[float], str]) -> str:
        low, expected, high = (shown(found[name][each]) for each in ("low", "expected", "high"))
        return expected if low == high else f"{expected} ({low} to {high})"

    return [
        f"all {found['images']:,} images, estimated by {found['measured']:,} of run {found['run']}:",
        *([f"  time        {between('seconds', duration)}"] if found["seconds"] else []),
        f"  detections  {between('detections', number)}",
        f"  tokens      {between('prompt_tokens', number)} in, {between('completion_tokens', number)} out",
        f"  disk        {between('disk_bytes', size)}",
        *([f"  cost        {between('cost', price)}"] if found["cost"] else []),
    ]


def price(value: float) -> str:
    """An amount of money, in no currency."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def number(value: float) -> str:
    """A count to two significant digits."""
    return f"{float(f'{value:.2g}'):,.0f}"


def size(value: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def duration(value: float) -> str:
    """Seconds as people say it."""
    if value < 120:
        return f"{value:.0f} s"
    if value < 2 * 3600:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 48 * 3600 else f"{value / 86400:.1f} days"
