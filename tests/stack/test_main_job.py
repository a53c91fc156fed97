"""The main job on the real services: what it finds and answers, against what was drawn."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.clients.detector import Detected, DetectorClient
from pipeline.clients.http import HttpClient, Limits
from samples.agreement import compare
from samples.crops import labelled_crops
from samples.detection_metrics import ScoredBoxes, average_precision
from samples.evaluate_vlm import evaluate_server
from samples.scenes import make_scene
from tests.conftest import ROOT
from tests.drawn_truth import as_coco
from tests.pictures import awkward_folder
from tests.stack.conftest import RunningStack

TRUTH = json.loads((ROOT / "samples/truth.json").read_text())["images"]

# Seeds that no training used: see samples/train_detector.py and samples/train_vlm.py.
FRESH_SEED = 9_000_000
FRESH_SCENES = 300


@dataclass(frozen=True)
class Finished:
    """A run's folder, read."""

    folder: Path
    output: str

    @property
    def manifest(self) -> dict[str, Any]:
        """run.json."""
        content: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return content

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table's rows."""
        content: list[dict[str, Any]] = pq.read_table(self.folder / f"{table}.parquet").to_pylist()
        return content


def run_job(stack: RunningStack, images: Path, output: Path, *options: str) -> Finished:
    done = stack.operate("run", "--images", str(images), "--output", str(output), "--run-name", "run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(output / "run", done.stdout)


@pytest.fixture(scope="module")
def bundled(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The main job on the bundled pictures, with what is drawn in them as its labels file."""
    folder = tmp_path_factory.mktemp("bundled")
    (folder / "truth.json").write_text(as_coco())
    return run_job(stack, ROOT / "samples/images", folder, "--truth", str(folder / "truth.json"))


def test_bundled_every_image_is_accounted_for(bundled: Finished) -> None:
    images = {Path(row["path"]).name: row for row in bundled.rows("images")}
    assert set(images) == set(TRUTH)
    counts = bundled.manifest["counts"]
    assert counts["images"]["failed"] == counts["images"]["not_reached"] == counts["detections"]["failed"] == 0
    assert counts["images"]["total"] == len(TRUTH) == counts["images"]["detected"] + counts["images"]["no_object"]
    for name, row in images.items():
        assert (row["width"], row["height"]) == (TRUTH[name]["width"], TRUTH[name]["height"]), name
        assert row["detections"] == sum(Path(found["path"]).name == name for found in bundled.rows("detections"))


def test_bundled_pictures_without_a_dog_are_recorded_as_such(bundled: Finished) -> None:
    dogless = {name for name, picture in TRUTH.items() if all(thing["label"] != "dog" for thing in picture["objects"])}
    assert dogless
    assert {Path(row["path"]).name for row in bundled.rows("images") if row["outcome"] == "no_object"} == dogless


def test_bundled_dogs_are_found_and_their_breeds_named(bundled: Finished) -> None:
    agreement = compare(bundled.rows("detections"), TRUTH)
    assert agreement.found >= 0.95 * agreement.drawn, agreement
    for field, right in agreement.right.items():
        assert right >= 0.90 * agreement.found, (field, agreement)


def test_bundled_run_is_evaluated_against_its_labels_file(bundled: Finished) -> None:
    figures = json.loads((bundled.folder / "evaluation.json").read_text())
    assert figures["images"]["compared"] == len(TRUTH)
    agreement, dogs = compare(bundled.rows("detections"), TRUTH), figures["detections"]["dog"]
    assert dogs["found"] + dogs["missed"] == agreement.drawn == 78
    assert dogs["found"] >= 0.95 * agreement.drawn, dogs
    assert dogs["ap50"] >= 0.9
    for field in agreement.right:
        assert figures["answers"][field]["rows"] == dogs["found"]
        assert figures["answers"][field]["share"] >= 0.90
    assert "against " in bundled.output


def test_bundled_detections_are_asked_again(stack: RunningStack, bundled: Finished, tmp_path: Path) -> None:
    """Without an image and without the detector, the model says the same about the stored crops."""
    options = ("--from-run", str(bundled.folder), "--output", str(tmp_path), "--run-name", "again")
    done = stack.operate("run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Finished(tmp_path / "again", done.stdout)
    same = ("path", "key", "index", "label", "box", "score", "crop", "outcome")
    before, after = bundled.rows("detections"), again.rows("detections")
    assert [[row[name] for name in same] for row in after] == [[row[name] for name in same] for row in before]
    equal = sum(new["breed"] == old["breed"] for new, old in zip(after, before, strict=True))
    assert equal >= 0.95 * len(before)
    assert f"crops of run {bundled.folder.name}" in done.stdout


def test_bundled_run_shows_its_results(bundled: Finished) -> None:
    for word in ("dog_breeds: ", "count", "breed", "detections.parquet", "report.html"):
        assert word in bundled.output
    services = bundled.manifest["services"]
    assert services["model"]["name"] == "tiny-vlm"
    assert "tiny-detector" in services["detector"]["name"]


@dataclass(frozen=True)
class FreshRun:
    """A run over pictures that nobody has seen, and what was seen of it from outside."""

    finished: Finished
    truth: dict[str, Any]
    peak_memory_mb: float
    most_at_the_server: int


@pytest.fixture(scope="module")
def fresh(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> FreshRun:
    """300 new scenes, about 1,000 dogs, at most 24 requests in flight; the server's own count is read meanwhile."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "images").mkdir()
    truth = {}
    for number in range(FRESH_SCENES):
        scene = make_scene(FRESH_SEED + number)
        scene.image.save(folder / "images" / f"{number:03}.jpg", quality=92)
        truth[f"{number:03}.jpg"] = {"objects": [vars(thing) for thing in scene.objects]}
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.05):
            with urllib.request.urlopen(stack.model_url.removesuffix("/v1") + "/metrics", timeout=10) as response:
                lines = response.read().decode().splitlines()
            now = [
                float(line.split()[-1])
                for line in lines
                if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
            ]
            most = max(most, int(sum(now)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "--images", folder / "images", "--output", folder, "--run-name", "run"],
            cwd=ROOT,
            env={
                **os.environ,
                "SPOTTER_DETECTOR_URL": stack.detector_url,
                "SPOTTER_MODEL_URL": stack.model_url,
                "SPOTTER_API_KEY": stack.api_key,
                "SPOTTER_MODEL_CONCURRENCY": "24",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        stop.set()
        watcher.join()
    assert child.returncode == 0, output
    return FreshRun(Finished(folder / "run", output), truth, usage.ru_maxrss / 1024, most)


def test_fresh_scenes_every_row_is_accounted_for(fresh: FreshRun) -> None:
    counts = fresh.finished.manifest["counts"]
    assert counts["images"]["total"] == FRESH_SCENES == counts["images"]["detected"] + counts["images"]["no_object"]
    assert counts["detections"]["total"] == counts["detections"]["answered"] >= 800


def test_fresh_scenes_need_little_memory_and_few_requests_at_once(fresh: FreshRun) -> None:
    assert fresh.peak_memory_mb <= 1024
    assert 1 <= fresh.most_at_the_server <= 24


def test_fresh_scenes_are_counted_and_named_right(fresh: FreshRun) -> None:
    """The tiny models' promise, on crops that the pipeline cut from the detector's boxes."""
    agreement = compare(fresh.finished.rows("detections"), fresh.truth)
    assert agreement.found >= 0.95 * agreement.drawn, agreement
    for field, right in agreement.right.items():
        assert right >= 0.95 * agreement.found, (field, agreement)
    dogs = {name: sum(thing["label"] == "dog" for thing in picture["objects"]) for name, picture in fresh.truth.items()}
    found = {Path(row["path"]).name: row["detections"] for row in fresh.finished.rows("images")}
    exact = sum(found[name] == number for name, number in dogs.items())
    assert exact >= 0.95 * FRESH_SCENES, f"{exact} of {FRESH_SCENES} scenes have the exact number of dogs"


def test_answers_follow_the_picture(stack: RunningStack) -> None:
    """Replaced by another breed's, the picture decides; without one, the model can only guess."""
    crops = [crop for crop, _ in zip(labelled_crops(FRESH_SEED + FRESH_SCENES, 0.05), range(100), strict=False)]
    figures = asyncio.run(evaluate_server(stack.model_url, "tiny-vlm", crops, 16, stack.api_key))
    assert figures.followed >= 0.95
    assert figures.right_without_picture <= 0.35  # one breed of seven: 14% of many crops, some more of 100


def test_the_detector_ranks_dogs_before_all_else(stack: RunningStack, fresh: FreshRun) -> None:
    """The tiny detector's promise over all thresholds, through its service, on 200 of the pictures: AP50 of dogs."""
    names = sorted(fresh.truth)[:200]

    async def ask() -> list[Detected]:
        http = HttpClient(stack.detector_url, Limits(concurrency=16))
        client = DetectorClient(http, {"dog": 0.05})
        pictures = [(fresh.finished.folder.parent / "images" / name).read_bytes() for name in names]
        try:
            return await asyncio.gather(*map(client.detect, pictures))
        finally:
            await http.aclose()

    found = [
        ScoredBoxes(
            np.array([box.box for box in one.boxes], dtype=float).reshape(-1, 4),
            np.array([box.score for box in one.boxes], dtype=float),
        )
        for one in asyncio.run(ask())
    ]
    drawn = [[thing["box"] for thing in fresh.truth[name]["objects"] if thing["label"] == "dog"] for name in names]
    truth = [np.array(boxes, dtype=float).reshape(-1, 4) for boxes in drawn]
    assert average_precision(found, truth) >= 0.95


def test_readme_shows_what_a_newcomer_sees(bundled: Finished) -> None:
    """Every line of the README's transcript is printed by the job, but for names of folders and times.

    The next step follows from the name of the images' folder, which is another one here: tests/unit/test_display.py.
    """
    block = (ROOT / "README.md").read_text().split("<!-- transcript -->\n```\n")[1].split("```")[0]
    printed = "\n".join(line.rstrip() for line in bundled.output.splitlines())
    lines = [line.rstrip() for line in block.splitlines() if line.strip()]
    assert len(lines) > 10
    for line in lines:
        if (
            not line.startswith(("$", "rows:", "report:", "next:", "preparing ", "environment ", "waiting ", "engine "))
            and " ready after " not in line
        ):
            assert line in printed, line


def test_awkward_files_have_their_rows_on_the_real_services(stack: RunningStack, tmp_path: Path) -> None:
    """What the pipeline passes on to the detector, the detector can read."""
    (tmp_path / "images").mkdir()
    expected = awkward_folder(tmp_path / "images")
    del expected["no permission.jpg"]  # root may read it; tests/unit/test_run.py takes that privilege away
    finished = run_job(stack, tmp_path / "images", tmp_path)
    rows = {Path(row["path"]).name: row for row in finished.rows("images")}
    for name, reason in expected.items():
        assert (rows[name]["outcome"] == "failed") == (reason is not None), (name, rows[name])
        assert reason is None or reason in rows[name]["reason"], name
