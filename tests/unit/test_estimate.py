"""Trials (LIMIT, SAMPLE) and estimates: what is taken, and how near the estimate of a trial comes to the whole run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.errors import InvalidSetting, NotFound
from pipeline.output.estimate import FEW, LEAST_SPREAD, Range, duration, lines, number, per_image, size
from pipeline.output.manifest import Result
from pipeline.run import run
from scripts.commands import estimate as command
from scripts.settings import StackSettings, load_job
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

IMAGES = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of 30 to 89 pixels: each with another content."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(IMAGES):
        (folder / f"{n:02}.jpg").write_bytes(encoded(gradient(30 + n, 40)))
    return folder


@pytest.fixture
def run_job(
    simulated: Simulated, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the bundled job over the photos with simulated servers."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)

    def do(*options: str) -> Result:
        arguments = ["--images", str(photos), "--output", str(tmp_path / "runs"), *options]
        return run(pipeline_settings.load(arguments), Console(file=io.StringIO()))

    return do


def paths(done: Result) -> list[str]:
    found: list[str] = [Path(path).name for path in pq.read_table(done.folder / "images.parquet")["path"].to_pylist()]
    return found


def test_a_limit_takes_the_first_images_in_a_run_of_its_own(run_job: Callable[..., Result]) -> None:
    trial, whole = run_job("--limit", "5"), run_job()
    assert paths(trial) == [f"{n:02}.jpg" for n in range(5)]
    assert len(paths(whole)) == IMAGES
    assert trial.folder != whole.folder
    assert trial.manifest["trial"] == {"images": "the first 5", "of": IMAGES}
    assert "trial" not in whole.manifest
    assert "estimate" not in whole.manifest


def test_a_sample_is_drawn_by_its_seed(run_job: Callable[..., Result]) -> None:
    first, again = run_job("--sample", "6"), run_job("--sample", "6", "--force")
    other = run_job("--sample", "6", "--sample-seed", "1")
    assert first.folder == again.folder != other.folder
    assert paths(first) == paths(again) != paths(other)
    assert len(set(paths(other))) == 6


def test_a_sample_larger_than_the_folder_takes_all(run_job: Callable[..., Result]) -> None:
    assert len(paths(run_job("--sample", "1000"))) == IMAGES


def test_limit_and_sample_exclude_each_other() -> None:
    with pytest.raises(InvalidSetting, match="SPOTTER_LIMIT is set too"):
        pipeline_settings.load(["--limit", "5", "--sample", "5"])


def test_a_trial_says_what_all_images_would_cost(run_job: Callable[..., Result], simulated: Simulated) -> None:
    # One to three objects, by the picture's width.
    simulated.boxes = lambda image: [[0, 0, 20, 20]] * (1 + image.width % 3)
    trial, whole = run_job("--sample", "30"), run_job()
    told = trial.manifest["estimate"]
    assert told == json.loads((trial.folder / "run.json").read_text())["estimate"]
    assert (told["images"], told["measured"]) == (IMAGES, 30)
    counts, totals = whole.manifest["counts"]["detections"], whole.manifest["totals"]
    came = {
        "detections": counts["total"],
        "prompt_tokens": totals["prompt_tokens"],
        "completion_tokens": totals["completion_tokens"],
    }
    assert counts["total"] == 2 * IMAGES
    for name, value in came.items():
        assert told[name]["low"] <= told[name]["expected"] <= told[name]["high"], name
        assert told[name]["expected"] == pytest.approx(value, rel=0.25), name


def test_the_command_uses_the_last_run_of_the_job_and_asks_nobody(
    run_job: Callable[..., Result],
    photos: Path,
    tmp_path: Path,
    simulated: Simulated,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trial = run_job("--limit", "10")
    before = simulated.detector.requests, simulated.model.requests
    job = load_job(["--images", str(photos), "--output", str(tmp_path / "runs")])
    out = io.StringIO()
    command.run(StackSettings(), Console(file=out, width=200), job=job)
    said = out.getvalue().splitlines()
    assert said[0] == f"all {IMAGES} images, estimated by 10 of run {trial.folder.name}:"
    assert [line.split()[0] for line in said[1:]] == ["time", "detections", "tokens", "disk"]
    assert (simulated.detector.requests, simulated.model.requests) == before


def test_without_a_run_there_is_no_estimate(photos: Path, tmp_path: Path) -> None:
    job = load_job(["--images", str(photos), "--output", str(tmp_path / "runs")])
    with pytest.raises(NotFound, match="LIMIT=50"):
        command.run(StackSettings(), Console(file=io.StringIO()), job=job)


def test_the_range_holds_the_mean_and_is_never_too_narrow() -> None:
    assert per_image([2.0] * (FEW - 1)) == Range(2 - 2 * LEAST_SPREAD, 2, 2 + 2 * LEAST_SPREAD)
    assert per_image([2.0] * FEW) == Range(2, 2, 2)
    wide = per_image([0.0, 4.0] * 50)
    # Standard deviation 2.01, of 100 values: 1.96 * 0.201.
    assert (wide.low, wide.expected, wide.high) == pytest.approx((1.606, 2, 2.394), abs=0.001)
    assert per_image([3.0]) == Range(0, 3, 6)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(123_456), "120,000"),
        (number(0), "0"),
        (size(950), "950 B"),
        (size(99_700), "100 kB"),
        (size(999_600), "1 MB"),
        (size(1_234_567), "1.2 MB"),
        (size(234_000_000_000), "234 GB"),
        (size(3.21e15), "3,210.0 TB"),
        (duration(59.6), "60 s"),
        (duration(600), "10 min"),
        (duration(9_000), "2.5 h"),
        (duration(300_000), "3.5 days"),
    ],
)
def test_figures_have_a_unit(shown: str, text: str) -> None:
    assert shown == text


def test_an_estimate_without_a_profile_has_no_time() -> None:
    flat: dict[str, Any] = dict.fromkeys(("low", "expected", "high"), 0.0)
    names = ("detections", "prompt_tokens", "completion_tokens", "disk_bytes")
    found = {"images": 1, "measured": 1, "run": "x", "seconds": None, "cost": None, **dict.fromkeys(names, flat)}
    assert not any(line.split()[0] == "time" for line in lines(found))
