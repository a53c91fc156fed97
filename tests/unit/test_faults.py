"""Every misbehaviour of a model server, now and then and always: each row ends as it should, and nothing hangs."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.run import Run, run
from scripts.bench.faults import FAULTS, HEALING, grid, misbehave, parse_fault
from scripts.bench.simulated import Simulated
from tests.pictures import encoded, gradient

IMAGES, BOXES = 20, 10
ROWS = IMAGES * BOXES
# The question before the run is answered: what is tested is the run.
BEFORE = 1
SILENT = frozenset({"hang", "slow-body"})


def run_with(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rate: float) -> Run:
    """200 rows against a server that misbehaves in one way."""
    monkeypatch.setattr("tenacity.wait_exponential_jitter", lambda **_: lambda state: 0.01)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(encoded(gradient(400 + number, 60)))
    simulated.boxes = lambda image: grid(BOXES)
    simulated.model_fault = misbehave({kind: rate}, after=BEFORE)
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    # Only what never answers has to be given up; else a busy machine would add tries of its own.
    timeout_s = "30" if kind not in SILENT else "0.5" if rate == 1 else "2"
    options = ["--request-timeout-s", timeout_s, "--attempts", "6", "--failure-limit", "1", "--model-concurrency", "64"]
    arguments = ["--images", str(folder), "--output", str(tmp_path / "runs"), *options]
    return run(pipeline_settings.load(arguments), Console(file=io.StringIO()))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FAULTS)
def test_now_and_then(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """5% of the requests: what heals costs attempts, what does not costs exactly the rows that it met."""
    done = run_with(simulated, tmp_path, monkeypatch, kind, 0.05)
    counts = done.manifest["counts"]["detections"]
    struck = sum(misbehave({kind: 0.05}, after=BEFORE)(n) is not None for n in range(1, simulated.model.requests + 1))
    assert struck > 0
    assert counts["total"] == ROWS
    attempts = pq.read_table(done.folder / "detections.parquet")["attempts"].to_pylist()
    if kind in HEALING:
        assert counts["answered"] == ROWS
        assert sum(attempts) == ROWS + struck == simulated.model.requests - BEFORE
    else:
        assert (counts["failed"], counts["answered"]) == (struck, ROWS - struck)
        assert set(attempts) == {1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FAULTS)
def test_always(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Every request: every row fails, with a reason, and the run ends."""
    done = run_with(simulated, tmp_path, monkeypatch, kind, 1.0)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": 0, "failed": ROWS}
    assert done.manifest["counts"]["images"]["not_reached"] == 0
    rows = pq.read_table(done.folder / "detections.parquet").to_pylist()
    assert all(row["stage"] == "ask" and row["reason"] for row in rows)
    assert {row["attempts"] for row in rows} == {6 if kind in HEALING else 1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_detector_that_misbehaves_costs_images_and_no_more(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A quarter of its requests: what heals does; what does not fails the image, and each is accounted for."""
    fault = misbehave({kind: 0.25}, after=BEFORE)
    simulated.detector_fault = fault
    done = run_with(simulated, tmp_path, monkeypatch, kind, 0.0)
    struck = sum(fault(number) is not None for number in range(1, simulated.detector.requests + 1))
    assert struck > 0
    failed = 0 if kind in HEALING else struck
    counts = done.manifest["counts"]
    assert counts["images"] == {
        "total": IMAGES,
        "detected": IMAGES - failed,
        "no_object": 0,
        "failed": failed,
        "not_reached": 0,
    }
    assert counts["detections"] == {
        "total": BOXES * (IMAGES - failed),
        "answered": BOXES * (IMAGES - failed),
        "failed": 0,
    }
    rows = pq.read_table(done.folder / "images.parquet").to_pylist()
    assert all(row["stage"] == "detect" and row["reason"] for row in rows if row["outcome"] == "failed")


@pytest.mark.timeout(120)
def test_latencies_that_differ_a_hundredfold_cost_no_row(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lognormal distribution, as a server under load has it: a slow answer holds up its own row alone."""
    drawn = random.Random(0)
    latencies: list[float] = []

    def latency() -> float:
        latencies.append(min(0.02 * math.exp(drawn.gauss(0, 1.2)), 0.4))
        return latencies[-1]

    simulated.latency = latency
    done = run_with(simulated, tmp_path, monkeypatch, "error", 0.0)
    assert max(latencies) > 20 * min(latencies)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": ROWS, "failed": 0}
    assert 1 < simulated.model.peak_in_flight <= 64


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moments", [(100,), (30, 60, 90)])
def test_a_server_that_restarts_costs_nothing(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, ...]
) -> None:
    """It cuts what is under way and refuses connections for a while, once or again and again."""
    simulated.restart = dict.fromkeys(moments, 0.3).get
    done = run_with(simulated, tmp_path, monkeypatch, "error", 0.0)
    assert simulated.restarts == len(moments)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": ROWS, "failed": 0}
    attempts = pq.read_table(done.folder / "detections.parquet")["attempts"].to_pylist()
    assert max(attempts) <= 1 + len(moments)


@pytest.mark.parametrize("text", ["rate-limit", "rate-limit=2", "rate-limit=x", "nonsense=0.1", "hang=-1"])
def test_a_wrong_order_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"none of|expected .*=RATE"):
        parse_fault(text)
