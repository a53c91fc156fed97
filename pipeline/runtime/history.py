"""The starts of a run: when each began, how it ended, what it did.

`starts` in run.json has one entry for each. An entry is written when its start begins; a start that was killed keeps
the status that it began with, until the next one says that it is unfinished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import tables
from pipeline.runtime.progress import Progress

RUNNING = "running"
UNFINISHED = "unfinished"

Start = dict[str, Any]


def begun(before: Mapping[str, Any] | None, started: str) -> list[Start]:
    """The starts of a run, and the one that begins now; `before`: its run.json until now, if it has one."""
    return [*known(before or {}), {"started": started, "status": RUNNING}]


def known(manifest: Mapping[str, Any]) -> list[Start]:
    """The starts in a run.json, none of which runs any more."""
    starts: list[Start] = list(manifest.get("starts", ()))
    return [each | {"status": UNFINISHED} if each["status"] == RUNNING else each for each in starts]


def ended(starts: list[Start], seconds: float, status: Mapping[str, str], progress: Progress) -> list[Start]:
    """The starts, now that the last one has ended: after how long, how (`status`, maybe `reason`), with which rows."""
    found = {outcome: progress.detections[outcome] for outcome in tables.DETECTION_OUTCOMES}
    failed = progress.images[tables.FAILED]
    did = {"images": {"done": progress.done, "failed": failed}, "detections": {"total": sum(found.values()), **found}}
    return [*starts[:-1], starts[-1] | {"seconds": seconds, **status, **did}]


def total(starts: list[Start]) -> float:
    """Seconds of all starts whose end is known."""
    return round(sum(float(each.get("seconds", 0)) for each in starts), 3)


def sentence(starts: list[Start]) -> str | None:
    """The starts in a line for people; None where there was only one."""
    if starts and "shard" in starts[-1]:
        return f"{len({each['shard'] for each in starts})} shards, {total(starts):.1f} s in all"
    if len(starts) < 2:
        return None
    text = f"{len(starts)} starts, {total(starts):.1f} s in all; this one: {starts[-1].get('seconds', 0.0):.1f} s"
    if done := starts[-1].get("images"):
        text += f", {done['done']} images"
    unfinished = sum(each["status"] == UNFINISHED for each in starts)
    return f"{text}; {unfinished} did not reach its end" if unfinished else text
