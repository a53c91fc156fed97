"""A strict reader of Chrome's Trace Event Format, as Perfetto's JSON importer takes it.

Perfetto's own trace processor is a binary that no package registry has. Its importer forgives much by dropping it, so
that a trace opens and lacks half of its rows; this reader refuses what that importer drops, renames or counts as an
error (its `json_parser_failure` and `json_tokenizer_failure`), in the phases that a profile uses: M, X and C.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

METADATA = {"process_name": str, "thread_name": str, "process_sort_index": int, "thread_sort_index": int}


class BadTrace(Exception):
    """Perfetto would not show all of the trace as it was meant."""


@dataclass
class Loaded:
    """What one would see."""

    slices: dict[tuple[str, str], list[tuple[str, int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Name, begin and end in microseconds, by process and thread."""
    counters: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Microseconds and value, by process and track."""


def require(holds: bool, event: Any, why: str) -> None:
    """Refuse an event unless something holds."""
    if not holds:
        raise BadTrace(f"{why}: {event}")


def whole(event: dict[str, Any], key: str, least: int) -> int:
    """A key that has to be there, as an integer of 32 bits (ids) or more (times)."""
    value = event.get(key)
    require(type(value) is int and value >= least, event, f"{key} is no whole number from {least}")
    assert isinstance(value, int)
    return value


def load(content: bytes) -> Loaded:
    """Read a trace.

    Raises:
        BadTrace: something in it would be dropped, renamed or refused.
    """
    trace = json.loads(content, parse_constant=lambda text: require(False, text, "JSON has no such number"))
    require(isinstance(trace, dict), "the file", "not the JSON object form")
    require(trace.get("displayTimeUnit") in ("ms", "ns"), trace.get("displayTimeUnit"), "displayTimeUnit")
    events = trace.get("traceEvents")
    require(isinstance(events, list) and len(events) > 0, "traceEvents", "no events")
    assert isinstance(events, list)
    processes: dict[int, str] = {}
    threads: dict[int, tuple[int, str]] = {}
    for event in events:
        require(isinstance(event, dict) and event.get("ph") in ("M", "X", "C"), event, "not a known phase")
        require(isinstance(event.get("name"), str) and event["name"] != "", event, "no name")
        require(isinstance(event.get("args"), dict), event, "args is no object")
        pid = whole(event, "pid", 1)  # 0 is the idle task
        if event["ph"] == "M":
            require(event["name"] in METADATA, event, "metadata that nothing reads")
            value = event["args"].get("sort_index" if event["name"].endswith("index") else "name")
            require(type(value) is METADATA[event["name"]] and value != "", event, "metadata without a value")
            if event["name"] == "process_name":
                require(pid not in processes, event, "a process with two names")
                processes[pid] = value
            if event["name"] == "thread_name":
                tid = whole(event, "tid", 1)
                # The importer finds the thread to name by its id alone.
                require(tid not in threads, event, "a thread's id in two processes, or with two names")
                threads[tid] = (pid, value)
    # A counter belongs to the thread that has its process's id.
    require(not set(threads) & set(processes), sorted(threads), "a thread's id that is a process's")
    loaded, last = Loaded(), 0
    ends: dict[int, list[int]] = defaultdict(list)
    for event in (event for event in events if event["ph"] != "M"):
        start = whole(event, "ts", 0)
        require(start >= last, event, "earlier than the event before")
        last = start
        require(event["pid"] in processes, event, "a process without a name")
        if event["ph"] == "X":
            tid, end = whole(event, "tid", 1), start + whole(event, "dur", 0)
            require(tid in threads and threads[tid][0] == event["pid"], event, "a thread without a name")
            while ends[tid] and ends[tid][-1] <= start:
                ends[tid].pop()
            require(not ends[tid] or end <= ends[tid][-1], event, "a slice that begins in another and outlasts it")
            ends[tid].append(end)
            loaded.slices[processes[event["pid"]], threads[tid][1]].append((event["name"], start, end))
        else:
            require(len(event["args"]) > 0, event, "a counter without a value")
            for what, value in event["args"].items():
                track = loaded.counters[processes[event["pid"]], f"{event['name']} {what}"]
                require(type(value) in (int, float) and math.isfinite(value), event, "a counter that is no number")
                require(not track or track[-1][0] < start, event, "a counter with two values at once")
                track.append((start, float(value)))
    return loaded
