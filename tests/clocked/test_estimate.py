"""The time that a trial estimates for all images, against the time that they take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import settings
from pipeline.run import run
from tests.doubles.simulated import serve
from tests.pictures import encoded, gradient

IMAGES, TRIAL = 90, 30


def test_the_estimate_of_a_trial_comes_within_a_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(IMAGES):
        (photos / f"{number:02}.jpg").write_bytes(encoded(gradient(30 + number, 40)))
    with serve() as simulated:
        # Slow services, so that their pace decides and not this machine's other work.
        simulated.latency_s = 0.2
        simulated.boxes = lambda image: [[0, 0, 20, 20]] * (1 + image.width % 3)
        for name, value in simulated.settings.items():
            monkeypatch.setenv(name, value)
        place = ["--images", str(photos), "--output", str(tmp_path / "runs")]
        limits = ["--detector-concurrency", "4", "--model-concurrency", "4"]
        trial, whole = (
            run(settings.load([*place, *limits, *options]), Console(file=io.StringIO()))
            for options in (["--sample", str(TRIAL)], [])
        )
    told = trial.manifest["estimate"]["seconds"]
    assert told["low"] <= told["expected"] <= told["high"]
    assert told["expected"] == pytest.approx(whole.manifest["seconds"], rel=0.25)
