"""The gate before the flow: bytes stay below the bound, and it never stays closed for good."""

from __future__ import annotations

import asyncio
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import settings
from pipeline.run import run
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.stages.batches import BATCH
from pipeline.stages.read import held_bytes
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

MB = 1024**2


def passes(budget: MemoryBudget, **sizes: int | None) -> bool:
    """Whether a batch gets through the gate without anything else being let go."""

    async def attempt() -> bool:
        try:
            await asyncio.wait_for(
                budget.admit({name.encode(): held_bytes(size) for name, size in sizes.items()}), 0.05
            )
        except TimeoutError:
            return False
        return True

    return asyncio.run(attempt())


def entering(budget: MemoryBudget, sizes: Sequence[int | None]) -> int:
    """How many files of these sizes may enter together."""
    return budget.admission_batch([held_bytes(size) or 0 for size in sizes], BATCH)


def test_images_wait_until_others_are_let_go() -> None:
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, a=4 * MB)  # and half a megabyte for the detector's copy
    assert passes(budget, b=4 * MB)
    assert not passes(budget, c=4 * MB)
    budget.loaded(b"a", 3 * MB)
    budget.cropped(b"a", 0)
    assert passes(budget, c=4 * MB)
    assert budget.total == budget.peak == 9 * MB


def test_crops_count_until_they_are_stored() -> None:
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, a=1 * MB, b=1 * MB)
    budget.cropped(b"a", 8 * MB)
    assert not passes(budget, c=1 * MB)
    budget.stored(8 * MB)
    assert passes(budget, c=1 * MB)
    assert budget.total == 3 * MB


def test_an_image_above_the_bound_goes_alone() -> None:
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, giant=500 * MB)
    assert not passes(budget, next=1)
    budget.cropped(b"giant", 0)
    assert passes(budget, next=1)


def test_crops_alone_close_the_gate_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may wait for others to fill their batch."""
    monkeypatch.setattr("pipeline.runtime.memory_budget.PATIENCE_S", 60.0)
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, a=1 * MB)
    budget.cropped(b"a", 20 * MB)
    assert not passes(budget, b=1 * MB)
    monkeypatch.setattr("pipeline.runtime.memory_budget.PATIENCE_S", 0.0)
    assert passes(budget, b=1 * MB)
    assert not passes(budget, c=1 * MB)  # one is on its way


def test_crops_that_are_asked_about_keep_the_gate_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes, and without any patience: the model server is slow, or away."""
    monkeypatch.setattr("pipeline.runtime.memory_budget.PATIENCE_S", 0.0)
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, a=1 * MB)
    budget.cropped(b"a", 20 * MB)
    with budget.asking(3):
        assert not passes(budget, b=1 * MB)
    assert passes(budget, b=1 * MB)


def test_a_slow_model_server_does_not_fill_the_memory(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first answers take many times as long as the gate's patience, and no more images are let in for that."""
    monkeypatch.setattr("pipeline.runtime.memory_budget.PATIENCE_S", 0.5)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8 * BATCH):
        (images / f"{number}.jpg").write_bytes(encoded(gradient(600 + number, 400)))
    simulated.boxes = lambda image: [[0, 0, image.width, image.height]] * 4
    simulated.model_latency_s = 5.0
    let_in = 0

    def answered(number: int) -> None:
        nonlocal let_in
        if number > 1 and not let_in:  # the first one comes before the run
            let_in = simulated.detector.requests - 1
            simulated.model_latency_s = 0.0

    simulated.model_fault = answered
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    room = 4 * BATCH * max(path.stat().st_size for path in images.iterdir())  # an image counts twice: two batches
    arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), "--bytes-in-flight", str(room)]
    done = run(settings.load(arguments), Console(file=io.StringIO()))
    assert done.manifest["counts"]["detections"]["answered"] == 4 * 8 * BATCH
    assert let_in <= 4 * BATCH


def test_large_images_enter_in_small_batches() -> None:
    budget = MemoryBudget(512 * MB, CancellationToken())
    assert entering(budget, [5 * MB, None, 2 * MB]) == 8
    assert entering(budget, [5 * MB] * 7 + [100 * MB] * 8) == 5
    assert entering(budget, [5 * MB] * 100 + [100 * MB]) == 8
    assert entering(budget, [5 * MB, 510 * MB]) == 1
    assert entering(budget, []) == 8


def test_what_is_too_large_to_be_read_takes_no_room() -> None:
    budget = MemoryBudget(512 * MB, CancellationToken())
    assert entering(budget, [5 * MB, 2000 * MB]) == 8
    assert passes(budget, disk_image=2000 * MB)
    assert budget.total == 0


def test_an_image_of_unknown_size_counts_as_the_usual_one() -> None:
    budget = MemoryBudget(10 * MB, CancellationToken())
    assert passes(budget, a=None, b=None)
    budget.loaded(b"a", 6 * MB)
    budget.loaded(b"b", 2 * MB)
    assert not passes(budget, c=None)
    budget.cropped(b"a", 0)
    assert passes(budget, c=None)
    assert budget.total == 2 * MB + 4 * MB


def test_a_run_that_ends_opens_the_gate() -> None:
    stop = CancellationToken()
    budget = MemoryBudget(1, stop)
    assert passes(budget, a=MB)
    stop.cancel("enough")
    assert passes(budget, b=MB)


def test_a_copy_in_another_process_is_refused() -> None:
    """It would have a budget of its own, and no bound would hold any more."""
    copy = pickle.dumps(MemoryBudget(10 * MB, CancellationToken()))
    with pytest.raises(RuntimeError, match="MemoryBudget belongs to the process that made it"):
        pickle.loads(copy)


def test_one_large_image_leaves_as_many_at_the_detector(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is above the bound, so images enter one by one; 16 of them are asked about all the same."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5 * BATCH):
        (images / f"{number:02}.jpg").write_bytes(encoded(gradient(200 + number, 100)))
    (images / "large.bmp").write_bytes(encoded(gradient(1000, 400), "BMP"))
    # Nothing is answered until there are so many, and then not at once: there may be more.
    simulated.hold = lambda traffic, number: (
        traffic is simulated.detector and number > 1 and traffic.peak_in_flight < 16
    )
    simulated.latency_s = 0.2
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), "--bytes-in-flight", "2MB"]
    done = run(settings.load(arguments), Console(file=io.StringIO()))
    assert done.manifest["counts"]["images"]["detected"] == 5 * BATCH + 1
    assert simulated.detector.peak_in_flight == 16


@pytest.mark.parametrize(("most", "bounded"), [("1", True), ("512MiB", False)])
def test_a_run_with_hardly_any_room_goes_a_batch_at_a_time_and_ends(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, bounded: bool
) -> None:
    monkeypatch.setattr("pipeline.runtime.memory_budget.PATIENCE_S", 0.2)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2 * BATCH):
        (images / f"{number}.jpg").write_bytes(encoded(gradient(200 + number, 100)))
    (images / "broken.jpg").write_bytes(b"no picture")
    (images / "copy.jpg").write_bytes((images / "0.jpg").read_bytes())
    simulated.hold = lambda traffic, number: (
        not bounded and traffic is simulated.detector and number > 1 and traffic.peak_in_flight <= BATCH
    )
    simulated.latency_s = 0.2
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), "--bytes-in-flight", most]
    done = run(settings.load([*arguments, "--detector-concurrency", "64"]), Console(file=io.StringIO()))
    assert done.manifest["counts"]["images"] == {
        "total": 2 * BATCH + 2,
        "detected": 2 * BATCH + 1,
        "no_object": 0,
        "failed": 1,
        "not_reached": 0,
    }
    assert (simulated.detector.peak_in_flight <= BATCH) is bounded
