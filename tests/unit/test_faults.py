"""Every misbehaviour of a model server, now and then and always: each row ends as it should, and nothing hangs."""

from __future__ import annotations

import io
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
    options = ["--request-timeout-s", "0.5", "--attempts", "6", "--failure-limit", "1", "--model-concurrency", "64"]
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


@pytest.mark.parametrize("text", ["rate-limit", "rate-limit=2", "rate-limit=x", "nonsense=0.1", "hang=-1"])
def test_a_wrong_order_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"none of|expected .*=RATE"):
        parse_fault(text)
