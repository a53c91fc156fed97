"""A profile as a trace for Perfetto (ui.perfetto.dev): JSON in the Trace Event Format.

Perfetto's JSON importer has more rules than the format's text. A thread id is unique over all processes and differs
from every process id; 0 is the idle task. Slices of a thread nest. The name of a counter's track is the event's name
and its argument's name.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.metrics.profile import Phase, Profile, Span

Event = dict[str, Any]

# Process ids: the run with its phases, its services and machine, then the stages from here on.
RUN, FIRST_STAGE = 1, 100
# Thread ids: a thousand process ids below leave room for every stage.
FIRST_THREAD = 1000


def microseconds(moment_s: float) -> int:
    """The format's unit of time, rounded: parts that touch in seconds still touch."""
    return round(moment_s * 1e6)


def names(kind: str, name: str, order: int, **ids: int) -> list[Event]:
    """The name of a process or thread, and its place among the others."""
    return [
        {"ph": "M", "name": f"{kind}_name", **ids, "args": {"name": name}},
        {"ph": "M", "name": f"{kind}_sort_index", **ids, "args": {"sort_index": order}},
    ]


def slice_of(category: str, name: str, part: Phase | Span, pid: int, tid: int, **details: float) -> Event:
    """A part of a thread's time."""
    start, end = microseconds(part.start_s), microseconds(part.end_s)
    event = {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid}
    return {**event, "ts": start, "dur": end - start, "args": details}


def slots(spans: Iterable[Span]) -> Iterator[tuple[int, Span]]:
    """Each span with the lowest slot that is free at its start: spans of a slot do not overlap."""
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        while busy and busy[0][0] <= microseconds(span.start_s):
            heapq.heappush(free, heapq.heappop(busy)[1])
        slot = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (microseconds(span.end_s), slot))
        yield slot, span


def counters(pid: int, name: str, what: str, times: list[float], values: list[float | None]) -> Iterator[Event]:
    """A counter's track; a moment without a measurement has no event."""
    for moment, value in zip(times, values, strict=True):
        if value is not None:
            yield {"ph": "C", "name": name, "pid": pid, "ts": microseconds(moment), "args": {what: value}}


def events(profile: Profile) -> list[Event]:
    """Names first, then everything else in the order of time."""
    named = names("process", f"run {profile.run}", 0, pid=RUN)
    named += names("thread", "phases", FIRST_THREAD, pid=RUN, tid=FIRST_THREAD)
    found = [slice_of("phase", phase.name, phase, RUN, FIRST_THREAD) for phase in profile.phases]
    processes = {stage.name: FIRST_STAGE + place for place, stage in enumerate(profile.stages)}
    free_threads = itertools.count(FIRST_THREAD + 1)
    for place, (stage, pid) in enumerate(processes.items()):
        named += names("process", stage, place + 10, pid=pid)
        threads: dict[int, int] = {}
        for slot, span in slots(span for span in profile.spans if span.stage == stage):
            if slot not in threads:
                threads[slot] = tid = next(free_threads)
                named += names("thread", f"{stage} {slot + 1}", tid, pid=pid, tid=tid)
            found.append(slice_of("row", span.row, span, pid, threads[slot], waited_s=round(span.waited_s, 6)))
    others: dict[str, int] = {}
    for series, values in profile.samples.series.items():
        who, _, what = series.rpartition(".")
        if who not in processes and who not in others:
            others[who] = RUN + 1 + len(others)
            named += names("process", who or what, 1 + len(others), pid=others[who])
        found += counters(processes.get(who) or others[who], who or what, what, profile.samples.t_s, values)
    return named + sorted(found, key=lambda event: event["ts"])


def trace(profile: Profile) -> bytes:
    """The trace's file."""
    about = {"run": profile.run, "started": profile.started}
    return json.dumps(
        {"traceEvents": events(profile), "displayTimeUnit": "ms", "otherData": about}, allow_nan=False
    ).encode()
