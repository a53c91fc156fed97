"""Whole runs against simulated servers: what is asked, and what becomes of every image."""

import errno
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.errors import Unwritable
from pipeline.metrics.sampler import Usage
from pipeline.output.manifest import Result
from pipeline.run import run
from pipeline.sources import reader
from tests.conftest import Cli
from tests.doubles.simulated import Simulated
from tests.pictures import awkward_folder, encoded, gradient, rotated_by_exif

RunJob = Callable[..., Result]


@pytest.fixture
def run_job(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunJob:
    """Run the bundled job over a folder, with the simulated servers; options are command line arguments."""

    def do(images: Path, *options: str, measure: bool = True) -> Result:
        for name, value in simulated.settings.items():
            monkeypatch.setenv(name, value)
        arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), *options]
        return run(pipeline_settings.load(arguments), Console(file=io.StringIO()), measure=measure)

    return do


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(320, 240), (640, 480), (800, 600)]):
        (folder / f"{number}.jpg").write_bytes(encoded(gradient(*size)))
    return folder


def table(done: Result, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return rows


def test_every_detection_becomes_a_row_with_its_answer(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    simulated.boxes = lambda image: [[10, 10, 60, 40], [0, 0, image.width / 2, image.height / 2]]
    done = run_job(photos)
    rows = table(done, "detections")
    assert [(Path(row["path"]).name, row["index"]) for row in rows] == [
        (f"{n}.jpg", i) for n in range(3) for i in range(2)
    ]
    assert {row["outcome"] for row in rows} == {"answered"}
    assert {(row["breed"], row["coat_color"], row["facing"]) for row in rows} == {("poodle", "white", "left")}
    assert rows[0]["box"] == [10, 10, 60, 40]
    assert rows[0]["score"] == pytest.approx(0.9)
    assert rows[0]["prompt_tokens"] == 40
    assert Image.open(done.folder / rows[0]["crop"]).size == (50 + 2 * 3, 30 + 2 * 2)  # 5% margin, whole pixels
    assert done.manifest["counts"] == {
        "images": {"total": 3, "detected": 3, "no_object": 0, "failed": 0, "not_reached": 0},
        "detections": {"total": 6, "answered": 6, "failed": 0},
    }


@pytest.mark.slow
def test_boxes_come_back_in_pixels_of_the_full_image(run_job: RunJob, simulated: Simulated, tmp_path: Path) -> None:
    """Of 2560 x 1920 pixels, the detector sees what its model has use for: its boxes are scaled up again."""
    simulated.detector_input = (960, 960)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a.tif").write_bytes(encoded(gradient(2560, 1920), "TIFF"))
    widths: list[int] = []

    def left_half(image: Image.Image) -> list[list[float]]:
        widths.append(image.width)
        return [[0, 0, image.width / 2, image.height / 2]]

    simulated.boxes = left_half
    (row,) = table(run_job(tmp_path / "large"), "detections")
    assert widths == [64, 1280]  # the question before the run, and the image
    assert row["box"] == [0, 0, 1280, 960]


def test_the_crop_is_what_the_model_sees_upright_and_before_the_question(
    run_job: RunJob, simulated: Simulated, tmp_path: Path
) -> None:
    folder = tmp_path / "rotated"
    folder.mkdir()
    (folder / "r.jpg").write_bytes(rotated_by_exif(gradient()))
    simulated.boxes = lambda image: [[160, 0, 320, 240]]
    seen: list[tuple[int, ...]] = []

    def look(crop: Image.Image, request: dict[str, Any]) -> str:
        if crop.size != (64, 64):  # the question before the run is about a grey square
            seen.append(crop.resize((1, 1)).getpixel((0, 0)))  # type: ignore[arg-type]
        return json.dumps({"breed": "pug", "coat_color": "tan", "facing": "left"})

    simulated.answer = look
    run_job(folder)
    ((red, green, _),) = seen
    assert abs(red - gradient().crop((160, 0, 320, 240)).resize((1, 1)).getpixel((0, 0))[0]) < 10  # type: ignore[index]
    assert red > 150 > green
    content = simulated.model.bodies[-1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert content[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.slow
def test_every_awkward_file_has_its_row_and_reason(simulated: Simulated, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "awkward"
    folder.mkdir()
    expected = awkward_folder(folder)
    # Root reads every file: without that privilege the one without permission is refused to root, too.
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    options = ("--images", str(folder), "--output", str(tmp_path / "runs"), "--run-name", "one")
    done = cli(*options, env=simulated.settings, prefix=prefix)
    assert done.returncode == 0, done.stderr
    rows = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / "runs/one/images.parquet").to_pylist()}
    assert set(rows) == set(expected)
    for name, reason in expected.items():
        if reason is None:
            assert (rows[name]["outcome"], rows[name]["reason"]) == ("detected", None), name
        else:
            assert (rows[name]["outcome"], rows[name]["stage"]) == ("failed", "read"), name
            assert reason in rows[name]["reason"], name
    counts = json.loads((tmp_path / "runs/one/run.json").read_text())["counts"]["images"]
    assert counts == {"total": 11, "detected": 7, "no_object": 0, "failed": 4, "not_reached": 0}
    assert "failed at read" in done.stdout


def test_names_of_every_kind(run_job: RunJob, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = [
        b"with space.jpg",
        b"line\nbreak.jpg",
        b"<b>bold</b>&amp;.jpg",
        "größe.jpg".encode(),
        b"no-utf8-\xff.jpg",
        b"'\".jpg",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name.replace(b"/", b""))).write_bytes(encoded(gradient()))
    done = run_job(folder)
    assert done.manifest["counts"]["images"]["detected"] == len(names)
    assert any(row["path"].endswith("no-utf8-\\udcff.jpg") for row in table(done, "images"))
    assert "<b>bold</b>" not in (done.folder / "report.html").read_text().replace("&lt;b&gt;", "")


@pytest.mark.parametrize("limit", ["all", "1", "none"])
def test_each_source_is_read_once(
    run_job: RunJob, simulated: Simulated, photos: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Also for the annotated copies: of a photograph, of small pictures and of copies of one; nothing else is left."""
    simulated.detector_input = (640, 640)
    (photos / "large.jpg").write_bytes(encoded(gradient(2400, 1800)))
    (photos / "same.jpg").write_bytes((photos / "0.jpg").read_bytes())
    seen: list[str] = []
    read_file = reader.read_file

    def noted(path: str) -> bytes:
        seen.append(Path(path).name)
        return read_file(path)

    monkeypatch.setattr(reader, "read_file", noted)
    done = run_job(photos, "--annotated", limit)
    assert sorted(seen) == ["0.jpg", "1.jpg", "2.jpg", "large.jpg", "same.jpg"]
    copies = list((done.folder / "annotated").iterdir())
    assert len(copies) == {"all": 5, "1": 1, "none": 0}[limit]
    assert all(path.suffix == ".jpg" for path in copies)


def test_images_without_an_object_are_recorded(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    simulated.boxes = lambda image: []
    done = run_job(photos)
    assert {row["outcome"] for row in table(done, "images")} == {"no_object"}
    assert table(done, "detections") == []
    assert done.manifest["counts"]["images"]["no_object"] == 3


def test_one_bad_row_does_not_take_its_batch_along(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    good = json.dumps({"breed": "pug", "coat_color": "tan", "facing": "left"})
    simulated.boxes = lambda image: [[0, 0, 100 + 20 * n, 100] for n in range(10)]
    # The first box of each image is the narrowest, its crop 105 pixels wide.
    simulated.answer = lambda crop, request: "no idea" if crop.width == 105 else good
    done = run_job(photos)
    failed = [row for row in table(done, "detections") if row["outcome"] == "failed"]
    assert done.manifest["counts"]["detections"] == {"total": 30, "answered": 30 - len(failed), "failed": len(failed)}
    assert {row["index"] for row in failed} == {0}
    assert failed[0]["raw_answer"] == "no idea"
    assert (failed[0]["stage"], failed[0]["breed"]) == ("ask", None)
    assert "not JSON" in failed[0]["reason"]


@pytest.mark.slow
def test_passing_trouble_costs_attempts_but_no_row(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    simulated.detector_fault = lambda number: web.Response(status=524) if number == 2 else None
    simulated.model_fault = lambda number: web.Response(status=503) if number == 3 else None
    done = run_job(photos)
    assert done.failures == 0
    assert sorted(row["attempts"] for row in table(done, "images")) == [1, 1, 2]
    assert sorted(row["attempts"] for row in table(done, "detections")) == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("boxes", "code"), [(1, 1), (0, 0)], ids=["every row failed", "nothing there, which is fine"])
def test_exit_codes(simulated: Simulated, photos: Path, tmp_path: Path, cli: Cli, boxes: int, code: int) -> None:
    (photos / "text.jpg").write_text("no picture")
    simulated.boxes = lambda image: [[0, 0, 50, 50]] * boxes
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number > 1 else None
    options = ("--images", str(photos), "--output", str(tmp_path / "runs"))
    done = cli(*options, env=simulated.settings)
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def test_lasting_trouble_is_a_reason_in_each_row(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number > 1 else None
    done = run_job(photos)
    assert done.manifest["failures"] == [{"stage": "ask", "reason": "HTTP 400: no", "rows": 3}]
    assert done.answered == 0


@pytest.mark.slow
def test_requests_in_flight_stay_within_the_settings(run_job: RunJob, simulated: Simulated, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.png").write_bytes(encoded(gradient(64 + number, 64), "PNG"))
    simulated.boxes = lambda image: [[0, 0, 30, 30 + n] for n in range(5)]
    simulated.latency_s = 0.02
    done = run_job(folder, "--detector-concurrency", "3", "--model-concurrency", "5")
    assert done.manifest["counts"]["detections"]["answered"] == 300
    assert (simulated.detector.peak_in_flight, simulated.model.peak_in_flight) == (3, 5)


def test_two_runs_agree(run_job: RunJob, photos: Path) -> None:
    first, second = run_job(photos, "--run-name", "a"), run_job(photos, "--run-name", "b")
    timings = {"images": ["read_s", "detect_s", "crop_s"], "detections": ["latency_s"]}
    for name, columns in timings.items():
        one, other = (pq.read_table(done.folder / f"{name}.parquet").drop_columns(columns) for done in (first, second))
        assert isinstance(one, pa.Table)
        assert one.equals(other)
    crops = [{path.name: path.read_bytes() for path in (done.folder / "crops").iterdir()} for done in (first, second)]
    assert crops[0] == crops[1]


def test_the_folder_of_a_run(run_job: RunJob, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTTER_API_KEY", "s3cret")
    done = run_job(photos)
    present = {path.name for path in done.folder.iterdir()}
    shown = {name for name in present if not name.startswith(".")}
    files = {"images.parquet", "detections.parquet", "run.json", "report.html", "run.log"}
    assert shown == files | {"crops", "annotated", "report", "profile"}
    assert (done.folder.parent / "latest").resolve() == done.folder.resolve()
    assert len(list((done.folder / "annotated").iterdir())) == 3
    manifest = (done.folder / "run.json").read_text()
    assert "s3cret" not in manifest + (done.folder / "run.log").read_text()
    assert json.loads(manifest)["services"]["model"] == {
        "name": "simulated",
        "root": "root/simulated",
        "revision": None,
        "api": "chat",
        "schema_form": "json_schema",
        "logprobs": False,
    }


def test_the_log_says_what_happened_and_when(run_job: RunJob, photos: Path, simulated: Simulated) -> None:
    done = run_job(photos)
    lines = (done.folder / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) pipeline\.", line) for line in lines)
    assert "3 images, 0 done before" in lines[0]
    assert "complete after" in lines[-1]
    again = run_job(photos)
    assert (again.folder / "run.log").read_text().splitlines()[: len(lines)] == lines  # it goes on


@pytest.mark.parametrize(("level", "recorded"), [("warning", False), ("debug", True)])
def test_the_level_of_the_log_is_a_setting(
    run_job: RunJob, photos: Path, simulated: Simulated, level: str, recorded: bool
) -> None:
    simulated.model_fault = lambda number: web.Response(status=503) if number == 2 else None
    done = run_job(photos, "--log-level", level)
    log = done.folder / "run.log"
    assert (log.exists() and "HTTP 503" in log.read_text()) is recorded


def test_a_name_that_is_too_long_is_said(run_job: RunJob, photos: Path) -> None:
    run_job(photos)
    with pytest.raises(Unwritable, match="File name too long"):
        run_job(photos, "--run-name", 300 * "x")


@pytest.mark.parametrize("full", [True, False], ids=["a full disk", "a folder in its place"])
def test_a_log_that_cannot_be_written_ends_no_run(run_job: RunJob, photos: Path, tmp_path: Path, full: bool) -> None:
    log = tmp_path / "runs" / "mine" / "run.log"
    (log if not full else log.parent).mkdir(parents=True)
    if full:
        log.symlink_to("/dev/full")
    done = run_job(photos, "--run-name", "mine")
    assert (done.status, done.answered) == ("complete", 3)


def test_a_host_that_cannot_be_measured_ends_no_run(
    run_job: RunJob, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Usage) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files", "/proc/meminfo")

    monkeypatch.setattr(Usage, "now", refuse)
    done = run_job(photos)
    assert (done.status, done.answered) == ("complete", 3)
    profile = json.loads((done.folder / "profile" / "profile.json").read_text())
    assert "ask.working" in profile["samples"]["series"]
    assert "host.cpu" not in profile["samples"]["series"]


def test_measuring_changes_nothing(run_job: RunJob, photos: Path, simulated: Simulated) -> None:
    """The same rows, as many requests: the profile alone is missing."""
    measured = run_job(photos, "--run-name", "measured")
    requests = simulated.model.requests, simulated.detector.requests
    unmeasured = run_job(photos, "--run-name", "unmeasured", measure=False)
    assert (simulated.model.requests, simulated.detector.requests) == (2 * requests[0], 2 * requests[1])
    times = {"latency_s", "read_s", "detect_s", "crop_s"}
    for name in ("images", "detections"):
        rows, expected = (
            [{key: row[key] for key in row.keys() - times} for row in table(each, name)]
            for each in (unmeasured, measured)
        )
        assert rows == expected
    assert (measured.folder / "profile" / "profile.json").exists()
    assert not (unmeasured.folder / "profile" / "profile.json").exists()


def test_a_key_that_a_server_repeats_is_written_nowhere(
    run_job: RunJob, photos: Path, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTTER_API_KEY", "s3cret-key")
    text = "bad request with Bearer s3cret-key"
    # The first request is the probe's.
    simulated.model_fault = lambda number: web.Response(status=400, text=text) if number > 1 else None
    done = run_job(photos, "--failure-limit", "1", "--log-level", "debug")
    (reason,) = {row["reason"] for row in table(done, "detections")}
    assert reason == "HTTP 400: bad request with Bearer ***"
    for file in ("run.json", "run.log", "report.html"):
        assert "s3cret-key" not in (done.folder / file).read_text()
