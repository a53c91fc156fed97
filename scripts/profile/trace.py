"""A profile as a trace for Perfetto (ui.perfetto.dev): JSON in the Trace Event Format.

What Perfetto asks beyond that format's text, from its JSON importer: thread ids are unique over all processes (a thread
is named by its id alone) and are no process's id (a counter belongs to the thread with its process's id); 0 is the idle
task's; slices of a thread nest; a counter's track is called by the event's name and its argument's.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.metrics.profile import Profile, Span

Event = dict[str, Any]

# Process ids: the run with its phases, its services and machine, then the stages from here on.
RUN, FIRST_STAGE = 1, 100
# Thread ids: a thousand process ids below leave room for every stage.
FIRST_THREAD = 1000


def microseconds(moment_s: float) -> int:
    """The format's unit of time; whole, so that what touched in seconds touches still."""
    return round(moment_s * 1e6)


def named(pid: int, name: str, order: int) -> list[Event]:
    """What a process is called, and its place among the others."""
    return [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}},
    ]


def thread(pid: int, tid: int, name: str) -> list[Event]:
    """What a thread is called; threads are shown in the order of their ids."""
    return [
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}},
        {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}},
    ]


def slots(spans: Iterable[Span]) -> Iterator[tuple[int, Span]]:
    """Each span with the lowest slot that is free when it begins, so that no two in a slot overlap."""
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
    names = named(RUN, f"run {profile.run}", 0)
    found: list[Event] = []
    names += thread(RUN, FIRST_THREAD, "phases")
    for phase in profile.phases:
        start, end = microseconds(phase.start_s), microseconds(phase.end_s)
        found.append(
            {"ph": "X", "cat": "phase", "name": phase.name, "pid": RUN, "tid": FIRST_THREAD, "ts": start}
            | {"dur": end - start, "args": {}}
        )
    processes = {stage.name: FIRST_STAGE + place for place, stage in enumerate(profile.stages)}
    next_thread = FIRST_THREAD + 1
    for place, (stage, pid) in enumerate(processes.items()):
        names += named(pid, stage, place + 10)
        threads: dict[int, int] = {}
        for slot, span in slots(span for span in profile.spans if span.stage == stage):
            if slot not in threads:
                threads[slot] = next_thread
                names += thread(pid, next_thread, f"{stage} {slot + 1}")
                next_thread += 1
            start, end = microseconds(span.start_s), microseconds(span.end_s)
            found.append(
                {"ph": "X", "cat": "row", "name": span.row, "pid": pid, "tid": threads[slot], "ts": start}
                | {"dur": end - start, "args": {"waited_s": round(span.waited_s, 6)}}
            )
    others: dict[str, int] = {}
    for series, values in profile.samples.series.items():
        who, _, what = series.rpartition(".")
        if who not in processes and who not in others:
            others[who] = RUN + 1 + len(others)
            names += named(others[who], who or what, 1 + len(others))
        found += counters(processes.get(who) or others[who], who or what, what, profile.samples.t_s, values)
    return names + sorted(found, key=lambda event: event["ts"])


def trace(profile: Profile) -> bytes:
    """The trace's file."""
    about = {"run": profile.run, "started": profile.started}
    return json.dumps(
        {"traceEvents": events(profile), "displayTimeUnit": "ms", "otherData": about}, allow_nan=False
    ).encode()
