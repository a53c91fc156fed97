"""What a stage's notes add up to."""

import sys
import threading
import time

import pytest

from pipeline.metrics.histogram import Histogram
from pipeline.metrics.stage import RunMetrics, StageMetrics
from pipeline.metrics.traces import MOST_STEPS, TracedStep, TraceSampler


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the stages read: the list's only entry, to be changed."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_times_of_overlapping_rows(clock: list[float]) -> None:
    """Two rows at once from 101 to 103, one of them until 106; both have come at 100, and nothing happens until 110."""
    stage = StageMetrics("read", limit=2)
    stage.aggregate(clock[0])
    stage.arrive(clock[0], 2)
    clock[0] = 101.0
    first, second = stage.begin(), stage.begin()
    clock[0] = 103.0
    stage.end(first, bytes_in=10, bytes_out=1)
    clock[0] = 106.0
    stage.end(second, bytes_in=20, bytes_out=2)
    stage.aggregate(110.0)
    result = stage.result(zero=100.0)
    assert (result.rows, result.bytes_in, result.bytes_out) == (2, 30, 3)
    assert (result.busy_s, result.work_s, result.waiting_s) == (5.0, 7.0, 2.0)
    assert (result.first_s, result.last_s) == (1.0, 6.0)
    assert result.concurrency.peak == 2
    assert result.concurrency.mean == pytest.approx(7 / 5)
    assert result.latency_s.max == 5.0
    assert result.latency_s.p50 == pytest.approx(2.0, rel=0.03)


def test_it_does_not_matter_when_the_notes_are_drawn(clock: list[float]) -> None:
    """Work in progress counts up to the moment of the draw."""
    seldom, often = StageMetrics("crop", 2), StageMetrics("crop", 2)
    seldom.aggregate(clock[0])
    for _ in range(20):
        for stage in (seldom, often):
            stage.arrive(clock[0])
        clock[0] += 0.5
        often.aggregate(clock[0])
        began = seldom.begin(), often.begin()
        clock[0] += 0.25
        often.aggregate(clock[0])
        assert often.working == 1
        seldom.end(began[0])
        often.end(began[1])
        clock[0] += 0.125
        often.aggregate(clock[0])
    seldom.aggregate(clock[0])
    for stage in (seldom, often):
        assert stage.work_s == stage.busy_s == pytest.approx(20 * 0.25)
        assert stage.waiting_s == pytest.approx(20 * 0.5)
        assert (stage.rows, stage.working, stage.waiting) == (20, 0, 0)


def test_a_request_that_is_tried_again_is_one_row_and_waits_in_between(clock: list[float]) -> None:
    stage = StageMetrics("ask", 4)
    stage.aggregate(clock[0])
    stage.arrive(clock[0])
    for _ in range(3):
        began = stage.begin()
        clock[0] += 1.0
        stage.end(began)
        if clock[0] < 106:
            stage.arrive(clock[0])
            clock[0] += 2.0
    stage.count(failed=1, prompt_tokens=40, completion_tokens=12)
    stage.aggregate(clock[0])
    assert (stage.rows, stage.failed, stage.prompt_tokens, stage.completion_tokens) == (1, 1, 40, 12)
    assert (stage.work_s, stage.waiting_s) == (3.0, 4.0)


def test_a_note_that_comes_late_is_not_counted_into_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread reads the clock at 102 and is held up until 110, when others are at work and a draw has been made."""
    stage = StageMetrics("store", limit=3)
    stage.aggregate(100.0)
    moment = 101.0
    monkeypatch.setattr(time, "perf_counter", lambda: moment)
    began = stage.begin()

    def held_up() -> float:
        nonlocal moment
        moment = 109.0
        monkeypatch.setattr(time, "perf_counter", lambda: moment)
        others.extend((stage.begin(), stage.begin()))
        stage.aggregate(110.0)
        return 102.0

    others: list[float] = []
    monkeypatch.setattr(time, "perf_counter", held_up)
    stage.end(began)
    moment = 112.0
    for other in others:
        stage.end(other)
    stage.aggregate(111.0)  # a moment before the others ended: the caller looked at the clock first
    assert (stage.working, stage.peak, stage.latency.max) == (0, 3, 3.0)
    # Busy from 101 to 112; one at work until 109, three until 110, two until 112.
    assert (stage.busy_s, stage.work_s) == (11.0, 8 + 3 + 2 * 2)


def test_notes_of_many_threads_are_all_there() -> None:
    stage = StageMetrics("store", 8)
    going = threading.Event()

    def work() -> None:
        going.wait()
        for _ in range(2000):
            stage.end(stage.begin(), bytes_in=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads change within a draw
    try:
        going.set()
        while any(thread.is_alive() for thread in threads):
            stage.aggregate(time.perf_counter())
    finally:
        sys.setswitchinterval(switched)
    stage.aggregate(time.perf_counter())
    assert (stage.rows, stage.bytes_in, stage.working) == (16_000, 16_000, 0)
    assert 1 <= stage.peak <= 8
    assert 0 < stage.busy_s <= stage.work_s


def test_percentiles_are_right_to_a_few_percent_whatever_the_number() -> None:
    histogram = Histogram()
    for start in range(0, 100_000, 1000):
        histogram.add([(number * 7919 % 100_000 + 1) / 1000 for number in range(start, start + 1000)])
    found = histogram.percentiles()
    assert found.p50 == pytest.approx(50, rel=0.06)
    assert found.p90 == pytest.approx(90, rel=0.06)
    assert found.p99 == pytest.approx(99, rel=0.06)
    assert found.max == 100.0
    assert len(histogram.buckets) < 300


def test_steps_are_kept_of_whole_images_and_never_too_many() -> None:
    """Of 20,000 images with three steps each; keys are hashes, evenly spread."""
    sampler = TraceSampler()
    for number in range(20_000):
        key = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"
        for stage in ("read", "detect", "crop"):
            if sampler.samples(key):
                sampler.add(key, TracedStep(stage, key, float(number), number + 1.0))
        if number % 100 == 0:
            sampler.aggregate()
    sampler.aggregate()
    steps = sampler.steps()
    assert MOST_STEPS / 4 < len(steps) <= MOST_STEPS
    rows = [step.row for step in steps]
    assert all(rows.count(row) == 3 for row in set(rows[:50]))
    assert min(step.began for step in steps) < 200
    assert max(step.began for step in steps) > 19_800


def test_disabled_metrics_record_nothing() -> None:
    metrics = RunMetrics.disabled()
    read = metrics.stages["read"]
    read.end(read.begin(), 1, 1)
    read.count(failed=1)
    read.arrive(time.perf_counter(), 5)
    read.aggregate(time.perf_counter())
    assert (read.rows, read.failed, read.waiting, read.bytes_in) == (0, 0, 0, 0)
    assert not metrics.traces.samples("0" * 16)
