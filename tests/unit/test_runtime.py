"""One row's step: what it measures, where the row goes next, and what becomes of an error."""

from __future__ import annotations

import pickle
import time

import pytest

from pipeline.errors import RowError
from pipeline.metrics.stage import RunMetrics
from pipeline.runtime.cancellation import CancellationToken, Cancelled
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.runtime.runtime import Runtime
from pipeline.sources.objects import NoObject, StoreError


@pytest.fixture
def runtime() -> Runtime:
    token = CancellationToken()
    return Runtime(MemoryBudget(2**30, token), token, RunMetrics.of(4, 8, 2))


def aggregate(runtime: Runtime) -> None:
    for stage in runtime.metrics.stages.values():
        stage.aggregate(time.perf_counter())
    runtime.metrics.traces.aggregate()


def test_a_row_that_ends_well_goes_to_the_next_stage(runtime: Runtime) -> None:
    with runtime.step("crop", "00ff") as step:
        step.bytes_in, step.bytes_out = 100, 10
        step.hand_on("ask", 3)
    aggregate(runtime)
    crop, stages = runtime.metrics.stages["crop"], runtime.metrics.stages
    assert (crop.rows, crop.failed, crop.bytes_in, crop.bytes_out) == (1, 0, 100, 10)
    assert (stages["ask"].waiting, stages["collect"].waiting) == (3, 0)
    assert step.failure is None
    (traced,) = runtime.metrics.traces.steps()
    assert (traced.stage, traced.row) == ("crop", "00ff")
    assert traced.ended - traced.began == step.seconds


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RowError("no picture"), {"stage": "read", "reason": "no picture", "attempts": 1}),
        (RowError("refused", 4), {"stage": "read", "reason": "refused", "attempts": 4}),
        (StoreError("away"), {"stage": "fetch", "reason": "away", "attempts": 1}),
        (NoObject("gone"), {"stage": "read", "reason": "gone", "attempts": 1}),
        (Cancelled("interrupted"), {"stage": "read", "reason": "interrupted", "attempts": 0}),
        (PermissionError(13, "Permission denied"), {"reason": "cannot be read: Permission denied"}),
        (ValueError("two\nlines \udcff"), {"reason": "ValueError: two lines \\udcff"}),
        (RowError("long " * 1000), {"reason": ("long " * 100)[:500]}),
    ],
)
def test_an_error_becomes_the_rows_failure(runtime: Runtime, error: Exception, failure: dict[str, object]) -> None:
    with runtime.step("read") as step:
        step.hand_on("detect")
        raise error
    aggregate(runtime)
    assert step.failure is not None
    assert step.failure.items() >= failure.items()
    assert (runtime.metrics.stages["read"].failed, runtime.metrics.stages["detect"].waiting) == (1, 0)
    assert runtime.metrics.stages["collect"].waiting == 1


def test_what_is_not_an_exception_is_not_swallowed(runtime: Runtime) -> None:
    with pytest.raises(KeyboardInterrupt), runtime.step("read"):
        raise KeyboardInterrupt


def test_a_request_counts_rows_and_leaves_the_measuring_to_its_client(runtime: Runtime) -> None:
    with runtime.request("detect", "00ff") as step:
        step.latency_s = 0.0
        step.hand_on("crop")
    step.count()
    aggregate(runtime)
    detect = runtime.metrics.stages["detect"]
    assert (detect.rows, detect.work_s, runtime.metrics.stages["crop"].waiting) == (1, 0.0, 1)
    assert [traced.stage for traced in runtime.metrics.traces.steps()] == ["detect"]


def test_a_copy_in_another_process_is_refused(runtime: Runtime) -> None:
    """Daft pickles stages to learn whether it can: that works, but a copy would have bounds of its own."""
    for shared in (runtime, runtime.cancellation, runtime.budget):
        copy = pickle.dumps(shared)
        with pytest.raises(RuntimeError, match=f"{type(shared).__name__} belongs to the process that made it"):
            pickle.loads(copy)
