"""Another question about the detections and crops of an earlier run: nothing is read or detected anew."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image
from rich.console import Console

from pipeline import settings
from pipeline.errors import InvalidJob, InvalidSetting, NotFound, Unreadable, UsageError
from pipeline.output.manifest import Result, fingerprint
from pipeline.run import run
from pipeline.try_one import try_one
from scripts.settings import load_job
from scripts.stack.services import idle
from tests.conftest import ROOT
from tests.doubles.simulated import Simulated
from tests.killed_runs import committed, pipeline
from tests.pictures import encoded, gradient

COLOUR = """
description: Look at things.
question: What colour is it?
schema: {type: object, properties: {color: {enum: [black, white]}}, required: [color]}
max_tokens: 8
summary: color
"""
SIZE = """
description: Look at sizes.
question: How large is it?
schema: {type: object, properties: {pixels: {type: integer}}, required: [pixels]}
max_tokens: 8
"""
Do = Callable[..., Result]


def answer(crop: Image.Image, body: dict[str, Any]) -> str:
    large = "How large" in json.dumps(body)
    return json.dumps({"pixels": crop.width} if large else {"color": "white" if crop.width % 2 else "black"})


@pytest.fixture
def photos(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures with two dogs and two cats each, one with nothing, a copy, and one that is none."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encoded(gradient(320 + number, 240)))
    (folder / "a-copy.jpg").write_bytes((folder / "1.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "nothing.jpg").write_bytes(encoded(gradient(100, 100)))
    simulated.boxes = lambda image: (
        [] if image.width == 100 else [[0, 0, image.width - 200, 90], [50, 20, 140, 80], [900, 900, 950, 950]]
    )
    simulated.answer = answer
    return folder


@pytest.fixture
def do(photos: Path, tmp_path: Path) -> Do:
    def do_job(name: str, content: str, *options: str, again: Result | None = None) -> Result:
        path = tmp_path / f"{name}.yaml"
        path.write_text(content)
        place = ["--from-run", str(again.folder)] if again else ["--images", str(photos)]
        arguments = [*place, "--output", str(tmp_path / "runs"), "--job", str(path), *options]
        return run(settings.load(arguments), Console(file=io.StringIO(), width=200))

    return do_job


def rows(done: Result, table: str = "detections") -> list[dict[str, Any]]:
    """A table's rows without times."""
    found: list[dict[str, Any]] = pq.read_table(done.folder / f"{table}.parquet").to_pylist()
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in found]


def test_the_rows_are_those_of_a_run_over_the_images(do: Do, simulated: Simulated) -> None:
    first = do("colour", "label: dog" + COLOUR)
    detected = simulated.detector.requests
    simulated.model.requests = 0
    again = do("size", "label: dog" + SIZE, again=first)
    assert simulated.detector.requests == detected
    asked = simulated.model.requests - 1
    assert asked == len({(row["key"], row["index"]) for row in rows(again) if row["outcome"] == "answered"}) == 8
    fresh = do("size", "label: dog" + SIZE)
    assert simulated.detector.requests > detected
    assert rows(again) == rows(fresh)
    assert rows(again, "images") == rows(fresh, "images")
    assert {row["outcome"] for row in rows(again)} == {"answered", "failed"}
    assert {row["outcome"] for row in rows(again, "images")} == {"detected", "no_object", "failed"}
    crops = [{path.name: path.read_bytes() for path in (done.folder / "crops").iterdir()} for done in (again, fresh)]
    assert crops[0] == crops[1]
    assert again.manifest["counts"] == fresh.manifest["counts"]
    assert again.manifest["parent"] == {"run": first.folder.name, "identity": fingerprint(first.manifest["identity"])}
    assert again.manifest["services"]["detector"] == first.manifest["services"]["detector"]
    assert again.folder != fresh.folder
    assert again.manifest["annotated"] == fresh.manifest["annotated"]
    assert (again.folder / "report.html").exists()
    assert (again.folder / "profile" / "profile.json").exists()
    # And again of that one.
    third = do("colour", "label: dog" + COLOUR, "--run-name", "third", again=again)
    assert rows(third) == rows(first)


def test_a_second_start_asks_nothing_and_a_retry_only_what_failed(do: Do, simulated: Simulated) -> None:
    first = do("colour", "label: dog" + COLOUR)
    detected = simulated.detector.requests
    simulated.model.requests = 0
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number == 3 else None
    failed = do("size", "label: dog" + SIZE, again=first)
    assert [row["stage"] for row in rows(failed)].count("ask") in (1, 2)  # a copy has the rows of its original
    simulated.model.requests, simulated.model_fault = 0, lambda number: None
    same = do("size", "label: dog" + SIZE, again=first)
    assert (same.folder, simulated.model.requests) == (failed.folder, 1)
    assert rows(same) == rows(failed)
    simulated.model.requests = 0
    healed = do("size", "label: dog" + SIZE, "--retry-failed", again=first)
    assert simulated.model.requests == 1 + 1
    assert "ask" not in {row["stage"] for row in rows(healed)}
    assert simulated.detector.requests == detected


def test_labels_and_scores_choose_among_the_detections(do: Do, simulated: Simulated) -> None:
    first = do("colour", "labels: [dog, cat]" + COLOUR)
    by_label = [row for row in rows(first) if row["label"] == "cat"]
    again = do("size", "label: cat" + SIZE, again=first)
    same = ("path", "key", "index", "label", "box", "score")
    assert [[row[name] for name in same] for row in rows(again)] == [[row[name] for name in same] for row in by_label]
    least = sorted(row["score"] for row in rows(first))[-1]
    high = do("size", f"labels: [dog, cat]\nthreshold: {least:.4f}" + SIZE, again=first)
    assert 0 < len(rows(high)) < len(rows(first))
    assert {row["score"] for row in rows(high)} == {least}
    detected = simulated.detector.requests
    for content, fact in [
        ("label: cow", "label 'cow' was not looked for"),
        ("labels: any", "it takes any label"),
        ("label: dog\nthreshold: 0.1", "threshold 0.1 for dog is below that of run"),
        ("boxes: whole", "boxes is whole, but run .* has detector"),
        ("label: dog\ncrop: {margin: 0.5}", r"crop\.margin is 0\.5, but run .* has 0\.05"),
        ("label: dog\ntiles: {size: 640}", "tiles is .*640"),
        ("label: dog\ninputs: {hint: text}", "input 'hint' .* is not in run"),
    ]:
        wrong = SIZE.replace("How large is it?", "How large is it? {hint}") if "inputs" in content else SIZE
        with pytest.raises(InvalidJob, match=fact) as refused:
            do("wrong", content + wrong, again=first)
        assert "\n" not in str(refused.value)
    assert simulated.detector.requests == detected


def test_a_trial_takes_some_of_the_images(do: Do) -> None:
    first = do("colour", "label: dog" + COLOUR)
    paths = [row["path"] for row in rows(first, "images")]
    few = do("size", "label: dog" + SIZE, "--limit", "3", again=first)
    assert [row["path"] for row in rows(few, "images")] == paths[:3]
    drawn = do("size", "label: dog" + SIZE, "--sample", "4", again=first)
    assert len(rows(drawn, "images")) == 4
    copy = do("size", "label: dog" + SIZE, "--limit", "1", "--run-name", "copy", again=few)
    assert Path(paths[0]).name == "0.jpg"
    assert [row["outcome"] for row in rows(copy, "images")] == ["detected"]


def test_pictures_are_drawn_where_they_are_as_they_were(do: Do, photos: Path) -> None:
    first = do("colour", "label: dog" + COLOUR)
    (photos / "2.jpg").write_bytes(encoded(gradient(50, 50)))
    (photos / "3.jpg").unlink()
    (first.folder / next(row["crop"] for row in rows(first) if row["path"].endswith("0.jpg"))).unlink()
    again = do("size", "label: dog" + SIZE, again=first)
    drawn = {path.name.split("-")[0] for path in (again.folder / "annotated").iterdir()}
    assert drawn == {"0", "1", "a"}
    lost = [row for row in rows(again) if row["stage"] == "crop" and "No such file" in row["reason"]]
    assert len(lost) == 1
    assert [row["outcome"] for row in rows(again) if row["path"].endswith(("2.jpg", "3.jpg"))].count("answered") == 4


def test_values_of_the_table_are_taken_from_the_run(do: Do, photos: Path, tmp_path: Path, simulated: Simulated) -> None:
    place = tmp_path / "table.parquet"
    names = [str(photos / f"{number}.jpg") for number in range(3)]
    pq.write_table(pa.table({"picture": names, "hint": ["red", "green", "blue"], "other": ["x", "", "z"]}), place)
    inputs = "label: dog\ninputs: {hint: hint, other: other}"
    first = do(
        "colour", inputs + COLOUR.replace("What colour is it?", "'{hint}: what colour?'"), "--images", str(place)
    )
    simulated.model.bodies.clear()
    asking = SIZE.replace("How large is it?", "How large is {other}?")
    again = do("size", inputs + asking, again=first)
    said = json.dumps(simulated.model.bodies)
    assert "How large is x?" in said
    assert "How large is z?" in said
    assert [row["outcome"] for row in rows(again, "images")] == ["detected", "failed", "detected"]
    assert "input 'other' (column other) is empty" in rows(again, "images")[1]["reason"]
    assert [row["inputs"] for row in rows(again, "images")] == [row["inputs"] for row in rows(first, "images")]
    assert [row["key"] for row in rows(again, "images")] == [row["key"] for row in rows(first, "images")]


def test_a_run_that_is_none_or_half_or_of_another_version_is_one_line(do: Do, tmp_path: Path) -> None:
    first = do("colour", "label: dog" + COLOUR)
    manifest = json.loads((first.folder / "run.json").read_text())
    of_run = ["--output", str(tmp_path / "runs"), "--job", str(tmp_path / "colour.yaml")]

    def refused(kind: type[UsageError], fact: str, *options: str) -> None:
        with pytest.raises(UsageError, match=fact) as raised:
            run(settings.load([*of_run, *options]), Console(file=io.StringIO()))
        assert raised.type is kind
        assert "\n" not in str(raised.value)

    def change(**values: Any) -> None:
        (first.folder / "run.json").write_text(json.dumps(manifest | values))

    folder = str(first.folder)
    refused(NotFound, "no run nowhere", "--from-run", "nowhere")
    refused(Unreadable, "is no folder of a run that has ended", "--from-run", str(tmp_path))
    refused(
        InvalidSetting,
        "SPOTTER_IMAGES and SPOTTER_FROM_RUN are both set",
        "--from-run",
        folder,
        "--images",
        str(tmp_path),
    )
    refused(
        InvalidSetting, "SPOTTER_BOXES and SPOTTER_FROM_RUN are both set", "--from-run", folder, "--boxes", "x.json"
    )
    with pytest.raises(InvalidSetting, match="or run with LIMIT=1"):
        try_one(settings.load([*of_run, "--from-run", folder, "--try-one"]), Console(file=io.StringIO()))
    refused(InvalidSetting, "copy the run to this host", "--from-run", "s3://bucket/runs/x")
    itself = ("--run-name", first.folder.name, "--force")
    refused(InvalidSetting, "holds the run that is asked again", "--from-run", folder, *itself)
    assert (first.folder / "detections.parquet").exists()
    for status in ("running", "interrupted", "stopped"):
        change(status=status)
        refused(Unreadable, rf"is not complete \({status}\)", "--from-run", first.folder.name)
    change(identity=manifest["identity"] | {"table_format": "3"})
    refused(Unreadable, "table format 3, expected 4", "--from-run", folder)
    change(job={})
    refused(Unreadable, "the job in", "--from-run", folder)
    (first.folder / "run.json").write_text("{")
    refused(Unreadable, "is no folder of a run that has ended", "--from-run", folder)


@pytest.mark.slow
def test_after_a_kill_only_the_rest_is_asked(do: Do, simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    for number in range(10, 60):
        (photos / f"{number}.jpg").write_bytes(encoded(gradient(310 + number, 200)))
    simulated.boxes = lambda image: [[0, 0, image.width / 2, 90], [50, 20, 140, 80]]
    first = do("colour", "label: dog" + COLOUR)
    job = tmp_path / "size.yaml"
    job.write_text("label: dog" + SIZE)
    detected, simulated.model.requests = simulated.detector.requests, 0
    folder = tmp_path / "runs" / "again"
    options = [f"--from-run={first.folder}", f"--output={folder.parent}", "--run-name=again", f"--job={job}"]
    command = [*pipeline(10), *options, "--model-concurrency=4", "--bytes-in-flight=64KiB"]
    simulated.hold = lambda traffic, number: traffic is simulated.model and number > 60
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while committed(folder)[1] < 10 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    simulated.hold = lambda traffic, number: False
    simulated.settle()
    _, safe = committed(folder)
    assert safe >= 10
    simulated.model.requests = 0
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    done = pq.read_table(folder / "detections.parquet").to_pylist()
    answered = {(row["key"], row["index"]) for row in done}
    assert len(done) == len(rows(first))
    assert {row["outcome"] for row in done} == {"answered"}
    assert 1 < simulated.model.requests - 1 <= len(answered) - 2 * (safe - 1)
    assert simulated.detector.requests == detected


def test_the_stack_starts_no_detector_for_an_earlier_runs_detections(tmp_path: Path) -> None:
    assert idle(load_job(["--from-run", str(tmp_path)]).settings) == {"detector"}
    assert idle(load_job([]).settings) == frozenset()
