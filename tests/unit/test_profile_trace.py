"""The trace: each row's work and each sample is in it once, in a form that Perfetto shows as it was meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.metrics.profile import Profile, Samples, Span
from scripts.profile.trace import trace
from tests.profiles import NASTY, make_profile
from tests.trace_reader import BadTrace, Loaded, load


@pytest.fixture(scope="module")
def profile() -> Profile:
    """An ordinary run's."""
    return make_profile()


@pytest.fixture(scope="module")
def loaded(profile: Profile) -> Loaded:
    """What Perfetto makes of its trace."""
    return load(trace(profile))


def test_every_rows_work_is_a_slice_with_its_times(profile: Profile, loaded: Loaded) -> None:
    for stage in profile.stages:
        expected = Counter(
            (span.row, round(span.start_s * 1e6), round(span.end_s * 1e6))
            for span in profile.spans
            if span.stage == stage.name
        )
        shown = Counter(
            each for (process, _), slices in loaded.slices.items() if process == stage.name for each in slices
        )
        assert shown == expected
        assert shown


def test_a_stage_has_a_lane_for_each_row_at_once(profile: Profile, loaded: Loaded) -> None:
    for stage in profile.stages:
        lanes = [thread for process, thread in loaded.slices if process == stage.name]
        assert sorted(lanes) == sorted(f"{stage.name} {slot + 1}" for slot in range(stage.concurrency.peak))


def test_the_runs_phases_have_a_lane_of_their_own(profile: Profile, loaded: Loaded) -> None:
    phases = loaded.slices[f"run {profile.run}", "phases"]
    assert [name for name, _, _ in phases] == ["list", "probe", "flow", "write", "report"]


def test_every_sample_is_on_its_counters_track(profile: Profile, loaded: Loaded) -> None:
    assert len(loaded.counters) == len(profile.samples.series)
    for name, values in profile.samples.series.items():
        who, what = name.rsplit(".", 1)
        measured = [
            (round(moment * 1e6), value)
            for moment, value in zip(profile.samples.t_s, values, strict=True)
            if value is not None
        ]
        assert loaded.counters[who, f"{who} {what}"] == measured


def test_names_of_any_kind_are_shown_as_they_are() -> None:
    loaded = load(trace(make_profile(names={"ask": NASTY})))
    assert any(process == NASTY for process, _ in loaded.slices)


def test_rows_that_touch_or_take_no_time_share_a_lane(profile: Profile) -> None:
    third = 1 / 3
    spans = [
        Span(stage="ask", row="a", start_s=0.1, end_s=0.1 + third),
        Span(stage="ask", row="b", start_s=0.1 + third, end_s=0.9),
        Span(stage="ask", row="c", start_s=0.9, end_s=0.9),
    ]
    loaded = load(trace(profile.model_copy(update={"spans": spans})))
    assert [name for name, _, _ in loaded.slices["ask", "ask 1"]] == ["a", "b", "c"]


def test_a_run_without_samples_or_spans_has_a_trace(profile: Profile) -> None:
    bare = profile.model_copy(update={"spans": [], "samples": Samples(t_s=[], series={})})
    assert [process for process, _ in load(trace(bare)).slices] == [f"run {profile.run}"]


def move(event: dict[str, Any], **changes: Any) -> None:
    """Change an event's keys; None removes one."""
    for key, value in changes.items():
        event.pop(key, None)
        if value is not None:
            event[key] = value


SPOILED: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "slice without duration": lambda events: move(first(events, "X"), dur=None),
    "time before the run": lambda events: move(first(events, "X"), ts=-1),
    "slice in a nameless thread": lambda events: move(first(events, "X"), tid=999_999),
    "overlapping slices": lambda events: move(first_row(events), dur=first_row(events)["dur"] + 1),
    "events out of order": lambda events: events.append(first(events, "X")),
    "counter that is text": lambda events: move(first(events, "C"), args={"cpu": "much"}),
    "counter without an object": lambda events: move(first(events, "C"), args=None),
    "unknown phase": lambda events: move(first(events, "C"), ph="Q"),
    "thread id used twice": lambda events: events.extend(
        [dict(each, pid=1) for each in events if each["name"] == "thread_name" and each["pid"] != 1][:1]
    ),
}


def first(events: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    """The first event of a phase."""
    return next(event for event in events if event["ph"] == phase)


def first_row(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row's slice; others follow in its lane at once."""
    return next(event for event in events if event.get("cat") == "row")


@pytest.mark.parametrize("how", SPOILED)
def test_the_reader_refuses_a_spoiled_trace(profile: Profile, how: str) -> None:
    content = json.loads(trace(profile))
    SPOILED[how](content["traceEvents"])
    with pytest.raises(BadTrace):
        load(json.dumps(content).encode())
