"""Every misbehaviour of both services, now and then and always: each row ends as it should, and nothing hangs."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.output.manifest import Result
from pipeline.run import run
from tests.doubles.faults import (
    BAD_BOXES,
    DETECTOR_FAULTS,
    HEALING,
    MODEL_FAULTS,
    UNCOUNTED,
    grid,
    misbehave,
    parse_fault,
)
from tests.doubles.simulated import Fault, Misbehaviour, Simulated
from tests.pictures import encoded, gradient

pytestmark = pytest.mark.slow

IMAGES, BOXES = 20, 10
ROWS = IMAGES * BOXES
# The question before the run is answered: what is tested is the run.
BEFORE = 1
# With it three of the first 20 requests are struck at 5%: the detector has hardly more in a run.
SEED = 0
SILENT = frozenset({"hang", "slow-body"})
# At 5% no row is struck so often; where each request is, more tries would only take longer.
TRIES_NOW_AND_THEN, TRIES_ALWAYS = 6, 3


def now_and_then(kind: str, kinds: dict[str, Misbehaviour]) -> Fault:
    """One request in twenty."""
    return misbehave({kind: 0.05}, seed=SEED, after=BEFORE, kinds=kinds)


def always(kind: str, kinds: dict[str, Misbehaviour]) -> Fault:
    """Every request."""
    return misbehave({kind: 1.0}, after=BEFORE, kinds=kinds)


def run_with(
    simulated: Simulated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *options: str,
    console: Console | None = None,
) -> Result:
    """200 rows of 20 images."""
    monkeypatch.setattr("pipeline.clients.rate_limit.FIRST_PAUSE_S", 0.01)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(encoded(gradient(400 + number, 60)))
    simulated.boxes = lambda image: grid(BOXES)
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    arguments = ["--images", str(folder), "--output", str(tmp_path / "runs"), "--failure-limit", "1", *options]
    return run(pipeline_settings.load(arguments), console or Console(file=io.StringIO()))


def patience(kind: str, tries: int, timeout_s: str) -> list[str]:
    """Only what never answers has to be given up; else a busy machine would add tries of its own.

    Where some are answered, the time is longer than such a machine stops for.
    """
    return ["--attempts", str(tries), "--request-timeout-s", timeout_s if kind in SILENT else "30"]


def rows(done: Result, name: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return content


def struck(fault: Fault, requests: int) -> int:
    return sum(fault(number) is not None for number in range(1, requests + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", MODEL_FAULTS)
def test_a_model_server_that_misbehaves_now_and_then(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What heals costs attempts, what does not costs exactly the rows that it met."""
    simulated.model_fault = fault = now_and_then(kind, MODEL_FAULTS)
    done = run_with(simulated, tmp_path, monkeypatch, *patience(kind, TRIES_NOW_AND_THEN, "5"))
    counts = done.manifest["counts"]["detections"]
    met = struck(fault, simulated.model.requests)
    assert met > 0
    assert counts["total"] == ROWS
    attempts = [row["attempts"] for row in rows(done, "detections")]
    if kind in HEALING:
        assert counts["answered"] == ROWS
        assert simulated.model.requests - BEFORE == ROWS + met
        assert sum(attempts) == ROWS + (0 if kind in UNCOUNTED else met)
    else:
        assert (counts["failed"], counts["answered"]) == (met, ROWS - met)
        assert set(attempts) == {1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [kind for kind in MODEL_FAULTS if kind not in UNCOUNTED])
def test_a_model_server_that_always_misbehaves(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every row fails, with a reason, and the run ends."""
    simulated.model_fault = always(kind, MODEL_FAULTS)
    options = ["--model-concurrency", "256", *patience(kind, TRIES_ALWAYS, "0.5")]
    done = run_with(simulated, tmp_path, monkeypatch, *options)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": 0, "failed": ROWS}
    assert done.manifest["counts"]["images"]["not_reached"] == 0
    failed = rows(done, "detections")
    assert all(row["stage"] == "ask" and row["reason"] for row in failed)
    assert {row["attempts"] for row in failed} == {TRIES_ALWAYS if kind in HEALING else 1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", DETECTOR_FAULTS)
def test_a_detector_that_misbehaves_now_and_then(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What heals costs attempts, what does not costs exactly the images that it met, or the boxes that it made up."""
    simulated.detector_fault = fault = now_and_then(kind, DETECTOR_FAULTS)
    done = run_with(simulated, tmp_path, monkeypatch, *patience(kind, TRIES_NOW_AND_THEN, "5"))
    met = struck(fault, simulated.detector.requests)
    assert met > 0
    failed = 0 if kind in HEALING or kind in BAD_BOXES else met
    made_up = met if kind in BAD_BOXES else 0
    counts = done.manifest["counts"]
    assert (counts["images"]["detected"], counts["images"]["failed"]) == (IMAGES - failed, failed)
    assert counts["images"]["total"] == IMAGES
    answered = BOXES * (IMAGES - failed - made_up)
    assert counts["detections"] == {"total": answered + made_up, "answered": answered, "failed": made_up}
    assert {row["stage"] for row in rows(done, "detections")} <= {None, "crop"}
    images = rows(done, "images")
    assert all(row["stage"] == "detect" and row["reason"] for row in images if row["outcome"] == "failed")
    uncounted = met if kind in UNCOUNTED else 0
    assert sum(row["attempts"] for row in images) == simulated.detector.requests - BEFORE - uncounted


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [kind for kind in DETECTOR_FAULTS if kind not in UNCOUNTED])
def test_a_detector_that_always_misbehaves(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every image fails, or its made-up box does, with a reason, and the run ends; no question is asked."""
    simulated.detector_fault = always(kind, DETECTOR_FAULTS)
    options = ["--detector-concurrency", "32", *patience(kind, TRIES_ALWAYS, "0.5")]
    done = run_with(simulated, tmp_path, monkeypatch, *options)
    images, detections = rows(done, "images"), rows(done, "detections")
    assert len(images) == IMAGES
    assert done.manifest["counts"]["images"]["not_reached"] == 0
    assert simulated.model.requests == BEFORE
    if kind in BAD_BOXES:
        assert {row["outcome"] for row in images} == {"detected"}
        assert [row["stage"] for row in detections] == ["crop"] * IMAGES
        assert all(row["reason"].startswith("box [") for row in detections)
    else:
        assert not detections
        assert all(row["stage"] == "detect" and row["reason"] for row in images)
        assert {row["attempts"] for row in images} == {TRIES_ALWAYS if kind in HEALING else 1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("service", ["detector", "model server"])
def test_a_rate_limit_that_never_ends_stops_the_run(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """No row fails by it: a later run does them all."""
    fault = always("rate-limit", HEALING)
    if service == "detector":
        simulated.detector_fault = fault
    else:
        simulated.model_fault = fault
    done = run_with(simulated, tmp_path, monkeypatch, "--outage-limit-s", "1")
    assert f"the {service} limits the rate of requests" in done.manifest["reason"]
    assert "HTTP 429: too many requests" in done.manifest["reason"]
    counts = done.manifest["counts"]
    assert counts["images"]["failed"] == counts["detections"]["failed"] == 0


@pytest.mark.timeout(120)
def test_a_rate_limit_is_told_while_it_lasts(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = web.Response(status=429, headers={"x-ratelimit-reset-requests": "2s"})
    simulated.model_fault = lambda number: limit if number == 5 else None
    printed = io.StringIO()
    done = run_with(simulated, tmp_path, monkeypatch, console=Console(file=printed, width=200))
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": ROWS, "failed": 0}
    assert {row["attempts"] for row in rows(done, "detections")} == {1}
    assert printed.getvalue().count("waiting for the rate limit of the model server") == 1


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
    done = run_with(simulated, tmp_path, monkeypatch)
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
    done = run_with(simulated, tmp_path, monkeypatch)
    assert simulated.restarts == len(moments)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": ROWS, "failed": 0}
    attempts = pq.read_table(done.folder / "detections.parquet")["attempts"].to_pylist()
    assert max(attempts) <= 1 + len(moments)


@pytest.mark.parametrize("text", ["rate-limit", "rate-limit=2", "rate-limit=x", "nonsense=0.1", "hang=-1"])
def test_a_wrong_order_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"none of|expected .*=RATE"):
        parse_fault(text)


def test_each_service_has_faults_of_its_own() -> None:
    assert parse_fault("no-numbers=0.5", DETECTOR_FAULTS) == ("no-numbers", 0.5)
    with pytest.raises(Exception, match="'no-numbers' is none of"):
        parse_fault("no-numbers=0.5", MODEL_FAULTS)
