"""Runs that were cut short, grow, fail or are begun twice: nothing is lost, nothing is asked again without need."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.clients.connect import Clients
from pipeline.errors import FolderInUse, OtherRun, RunStopped
from pipeline.flow import Flow
from pipeline.output.manifest import Result
from pipeline.output.parts import Parts
from pipeline.run import run
from pipeline.runtime.interrupts import SIGNALS
from tests.conftest import ROOT
from tests.doubles.faults import hang
from tests.doubles.simulated import ANSWER, Simulated
from tests.killed_runs import BOXES, CONCURRENCY, committed, kill_and_resume, pipeline
from tests.pictures import encoded, gradient, write_plain

pytestmark = pytest.mark.slow

RunJob = Callable[..., tuple[Result, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures, all different."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(encoded(gradient(200 + number, 100)))
    return folder


@pytest.fixture
def run_job(simulated: Simulated, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunJob:
    """Run the bundled job over the pictures; the run, and what it printed."""

    def do(*options: str) -> tuple[Result, str]:
        for name, value in simulated.settings.items():
            monkeypatch.setenv(name, value)
        printed = io.StringIO()
        arguments = ["--images", str(photos), "--output", str(tmp_path / "runs"), *options]
        done = run(pipeline_settings.load(arguments), Console(file=printed, width=200))
        return done, printed.getvalue()

    return do


def rows(done: Result, name: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return content


def test_a_second_run_asks_nothing(run_job: RunJob, simulated: Simulated) -> None:
    first, _ = run_job()
    before = rows(first, "detections")
    simulated.model.bodies.clear()
    second, printed = run_job()
    assert second.folder == first.folder
    assert len(simulated.model.bodies) == 1  # the question before the run
    assert rows(second, "detections") == before
    assert "10 are done already" in printed
    (start,) = first.manifest["starts"]
    assert (start["status"], start["images"]) == ("complete", {"done": 10, "failed": 0})
    assert start["detections"] == {"total": 10, "answered": 10, "failed": 0}
    assert second.manifest["starts"][0] == start
    assert second.manifest["starts"][1]["images"] == {"done": 0, "failed": 0}
    seconds = [each["seconds"] for each in second.manifest["starts"]]
    assert second.manifest["seconds"] == pytest.approx(sum(seconds), abs=0.001)


def test_two_runs_of_the_same_give_the_same_files_but_for_timings(
    run_job: RunJob, simulated: Simulated, photos: Path
) -> None:
    """Whatever the order in which answers and copies of a picture come in."""
    for number in range(10):
        (photos / f"copy-{number}.jpg").write_bytes((photos / f"{number % 5}.jpg").read_bytes())
    (photos / "broken.jpg").write_bytes(b"no picture")
    simulated.boxes = lambda image: [[0, 0, 90, 90], [50, 20, 140, 80], [10, 10, 60, 60]]
    simulated.answer = lambda crop, body: json.dumps(ANSWER | {"facing": "left" if crop.width % 2 else "right"})
    drawn = random.Random(0)
    simulated.latency = lambda: drawn.uniform(0, 0.05)
    first, second = (run_job("--run-name", name)[0] for name in ("first", "second"))
    for name in ("images", "detections"):
        timeless = [
            [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows(done, name)]
            for done in (first, second)
        ]
        assert timeless[0] == timeless[1]
    crops = [{path.name: path.read_bytes() for path in (done.folder / "crops").iterdir()} for done in (first, second)]
    assert crops[0] == crops[1]
    assert len(crops[0]) == 10 * 3
    assert first.manifest["counts"] == second.manifest["counts"]


def test_a_folder_that_grew_is_picked_up(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    run_job()
    (photos / "new.jpg").write_bytes(encoded(gradient(300, 100)))
    simulated.model.bodies.clear()
    done, _ = run_job()
    assert len(simulated.model.bodies) == 1 + 1
    assert done.manifest["counts"]["images"]["detected"] == 11


def test_a_changed_file_is_done_again_and_a_removed_one_leaves(run_job: RunJob, photos: Path) -> None:
    first, _ = run_job()
    detections = len(rows(first, "detections"))
    (photos / "3.jpg").write_bytes(encoded(gradient(500, 400)))
    (photos / "4.jpg").unlink()
    second, _ = run_job()
    images = {Path(row["path"]).name: row for row in rows(second, "images")}
    assert (images["3.jpg"]["width"], "4.jpg" in images) == (500, False)
    assert len(rows(second, "detections")) == detections - 1


def test_what_failed_is_done_again_only_when_asked_for(run_job: RunJob, simulated: Simulated) -> None:
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number % 2 == 0 else None
    failed, _ = run_job()
    assert failed.failures == 5
    simulated.model_fault = lambda number: None
    simulated.model.bodies.clear()
    again, _ = run_job()
    assert (again.failures, len(simulated.model.bodies)) == (5, 1)
    retried, _ = run_job("--retry-failed")
    assert (retried.failures, retried.answered) == (0, 10)
    assert len(simulated.model.bodies) == 2 + 5
    assert len(rows(retried, "detections")) == 10


def test_a_retry_asks_only_about_the_detections_that_failed(run_job: RunJob, simulated: Simulated) -> None:
    """The others of their images keep their answers, whatever the model would say now."""
    simulated.boxes = lambda image: [[0, 0, 50, 50], [20, 20, 120, 90], [60, 10, 180, 80]]
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number in (5, 14, 23) else None
    failed, _ = run_job()
    before = {(row["path"], row["index"]): row for row in rows(failed, "detections")}
    assert (failed.failures, failed.answered) == (3, 27)
    simulated.model_fault = lambda number: None
    simulated.answer = lambda crop, body: json.dumps(ANSWER | {"breed": "dalmatian"})
    simulated.boxes = lambda image: [[0.2, 0, 50.3, 50], [20, 20, 120.4, 90], [60, 10, 180, 80.1]]  # another batch
    simulated.model.bodies.clear()
    retried, _ = run_job("--retry-failed")
    assert (retried.failures, retried.answered) == (0, 30)
    assert len(simulated.model.bodies) == 1 + 3
    for row in rows(retried, "detections"):
        was = before[row["path"], row["index"]]
        kept = ("breed", "raw_answer", "latency_s", "prompt_tokens")
        if was["outcome"] == "answered":
            assert [row[name] for name in kept] == [was[name] for name in kept]
        else:
            assert row["breed"] == "dalmatian"
        assert (retried.folder / row["crop"]).is_file()


def test_a_retry_with_a_service_that_fails_loses_no_answer(run_job: RunJob, simulated: Simulated) -> None:
    simulated.boxes = lambda image: [[0, 0, 50, 50], [20, 20, 120, 90]]
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number in (5, 14) else None
    failed, _ = run_job()
    assert (failed.failures, failed.answered) == (2, 18)
    # Of the two images that are done again one is not even looked at, and of the other the model refuses the crop.
    asked = simulated.detector.requests
    simulated.detector_fault = lambda number: web.Response(status=400, text="no") if number == asked + 2 else None
    asked_model = simulated.model.requests
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number > asked_model + 1 else None
    again, _ = run_job("--retry-failed")
    assert (again.failures, again.answered) == (2, 18)
    assert again.manifest["counts"]["images"]["detected"] == 10
    simulated.detector_fault = simulated.model_fault = lambda number: None
    healed, _ = run_job("--retry-failed")
    assert (healed.failures, healed.answered) == (0, 20)


def test_a_retry_of_an_image_with_copies_loses_no_answer(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    """Whichever of them would be read first: only the one that was asked about is done again."""
    simulated.boxes = lambda image: [[0, 0, 50, 50], [20, 20, 120, 90]]
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number == 5 else None
    run_job()
    for number in range(10):
        for place in ("0", "z"):
            (photos / f"{place}-copy-{number}.jpg").write_bytes((photos / f"{number}.jpg").read_bytes())
    failed, _ = run_job()
    assert (failed.failures, failed.answered) == (3, 57)
    asked = simulated.detector.requests
    simulated.detector_fault = lambda number: web.Response(status=400, text="no") if number > asked + 1 else None
    again, _ = run_job("--retry-failed")
    assert simulated.detector.requests == asked + 2  # the question before the run, and one image
    assert (again.failures, again.answered) == (3, 57)
    simulated.detector_fault = simulated.model_fault = lambda number: None
    simulated.model.bodies.clear()
    healed, _ = run_job("--retry-failed")
    assert (healed.failures, healed.answered, len(simulated.model.bodies)) == (0, 60, 1 + 1)


def test_force_begins_anew(run_job: RunJob, simulated: Simulated) -> None:
    run_job()
    simulated.model.bodies.clear()
    done, _ = run_job("--force")
    assert len(simulated.model.bodies) == 1 + 10
    assert done.manifest["done_before"] == 0


def test_another_model_is_another_run_and_is_said(run_job: RunJob, simulated: Simulated) -> None:
    first, _ = run_job()
    simulated.models = ("other",)
    second, printed = run_job()
    assert second.folder != first.folder
    assert f"a new run; different from {first.folder.name}: model (simulated -> other)" in printed
    assert json.loads((first.folder / "run.json").read_text())["services"]["model"]["name"] == "simulated"


def test_another_threshold_of_the_detector_is_another_run_unless_the_job_names_one(
    run_job: RunJob, simulated: Simulated, tmp_path: Path
) -> None:
    first, _ = run_job()
    simulated.detector_settings["threshold"] = 0.7
    second, printed = run_job()
    assert second.folder != first.folder
    change = "(nms_iou 0.6, threshold 0.4 -> nms_iou 0.6, threshold 0.7)"
    assert f"a new run; different from {first.folder.name}: detector settings {change}" in printed
    job = tmp_path / "job.yaml"
    job.write_text((ROOT / "pipeline" / "jobs" / "dog_breeds.yaml").read_text() + "threshold: 0.5\n")
    named, _ = run_job("--job", str(job))
    simulated.detector_settings["threshold"] = 0.4
    again, _ = run_job("--job", str(job))
    assert again.folder == named.folder


def test_another_job_is_another_run_and_is_said(run_job: RunJob, tmp_path: Path) -> None:
    first, _ = run_job()
    job = tmp_path / "dog_breeds.yaml"
    job.write_text(
        (ROOT / "pipeline" / "jobs" / "dog_breeds.yaml").read_text().replace("max_tokens: ", "max_tokens: 1")
    )
    second, printed = run_job("--job", str(job))
    assert second.folder != first.folder
    assert f"a new run; different from {first.folder.name}: job" in printed


def test_a_named_folder_does_not_mix_two_runs(run_job: RunJob, simulated: Simulated) -> None:
    run_job("--run-name", "mine")
    simulated.models = ("other",)
    with pytest.raises(OtherRun, match=r"mine .*model \(simulated -> other\).*--force"):
        run_job("--run-name", "mine")
    done, _ = run_job("--run-name", "mine", "--force")
    assert done.manifest["services"]["model"]["name"] == "other"


def test_a_folder_with_other_things_is_left_alone(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    precious = tmp_path / "runs" / "mine" / "thesis.txt"
    precious.write_text("do not touch")
    with pytest.raises(OtherRun, match=r"thesis\.txt"):
        run_job("--run-name", "mine", "--force")
    assert precious.read_text() == "do not touch"


def test_duplicates_are_asked_once(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    for name in ("z.jpg", "0-again.jpg"):
        (photos / name).write_bytes((photos / "0.jpg").read_bytes())
    done, _ = run_job()
    assert len(simulated.model.bodies) == 1 + 10
    images = {Path(row["path"]).name: row for row in rows(done, "images")}
    assert done.manifest["counts"]["images"] == {
        "total": 12,
        "detected": 12,
        "no_object": 0,
        "failed": 0,
        "not_reached": 0,
    }
    assert [Path(images[name]["duplicate_of"] or "").name for name in ("0-again.jpg", "0.jpg", "z.jpg")] == [
        "",
        "0-again.jpg",
        "0-again.jpg",
    ]
    found = {Path(row["path"]).name: row for row in rows(done, "detections")}
    assert len(found) == 12
    assert found["z.jpg"]["crop"] == found["0.jpg"]["crop"]
    again, _ = run_job()  # and a later duplicate of what was done before
    (photos / "later.jpg").write_bytes((photos / "5.jpg").read_bytes())
    simulated.model.bodies.clear()
    again, _ = run_job()
    assert len(simulated.model.bodies) == 1
    assert again.manifest["counts"]["detections"]["answered"] == 13


def test_a_duplicate_is_asked_about_when_its_original_has_changed(
    run_job: RunJob, simulated: Simulated, photos: Path
) -> None:
    run_job()
    (photos / "copy.jpg").write_bytes((photos / "0.jpg").read_bytes())
    run_job()  # so that which of the two was asked about does not depend on who was read first
    (photos / "0.jpg").write_bytes(encoded(gradient(500, 400)))
    simulated.model.bodies.clear()
    done, _ = run_job()
    assert (done.status, len(simulated.model.bodies)) == ("complete", 1 + 2)
    assert done.manifest["counts"]["images"]["detected"] == 11


@pytest.fixture
def start(simulated: Simulated, photos: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a run as a process of its own; `change` is Python that is executed before."""

    def do(*options: str, change: str = "") -> subprocess.Popen[str]:
        arguments = ["--images", str(photos), "--output", str(tmp_path / "runs"), *options]
        program = f"import runpy, time\n{change}\nrunpy.run_module('pipeline', run_name='__main__', alter_sys=True)"
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            env={**os.environ, **simulated.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return do


Start = Callable[..., subprocess.Popen[str]]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("sent", SIGNALS)
def test_an_interrupt_keeps_what_was_done_and_the_next_run_does_the_rest(
    run_job: RunJob, start: Start, simulated: Simulated, photos: Path, sent: int
) -> None:
    for number in range(10, 60):
        (photos / f"{number}.jpg").write_bytes(encoded(gradient(200 + number, 100)))
    simulated.latency_s = 0.2
    child = start("--model-concurrency", "4")
    wait_until(lambda: simulated.model.requests >= 30)
    child.send_signal(sent)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 130, output
    assert "not reached" in output
    asked = simulated.model.requests
    simulated.latency_s = 0
    simulated.model.bodies.clear()
    done, printed = run_job()
    assert "are done already" in printed
    starts = done.manifest["starts"]
    assert [each["status"] for each in starts] == ["interrupted", "complete"]
    assert sum(each["images"]["done"] for each in starts) == 60
    # What was on its way: four in flight, as many that wait for them, and both again for Daft's hands.
    assert asked + len(simulated.model.bodies) - 2 - 60 <= 16
    assert done.manifest["counts"]["images"] == {
        "total": 60,
        "detected": 60,
        "no_object": 0,
        "failed": 0,
        "not_reached": 0,
    }


def test_a_second_interrupt_leaves_the_annotated_copies(
    start: Start, simulated: Simulated, photos: Path, tmp_path: Path
) -> None:
    simulated.latency_s = 0.1
    begun = tmp_path / "begun"
    slow = "import pathlib; from pipeline.output import annotate\n"
    slow += f"annotate.annotated = lambda *given: pathlib.Path({str(begun)!r}).touch() or time.sleep(3) or b'jpeg'"
    child = start("--model-concurrency", "1", "--run-name", "one", change=slow)
    wait_until(lambda: simulated.model.requests >= 8)
    child.send_signal(signal.SIGINT)
    manifest = tmp_path / "runs" / "one" / "run.json"
    wait_until(begun.exists)
    assert json.loads(manifest.read_text())["status"] == "interrupted"
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, "Traceback" in output) == (130, False), output
    assert not (manifest.parent / "report.html").exists()


def test_a_run_that_hangs_in_a_write_is_left_with_the_reason(start: Start, tmp_path: Path) -> None:
    """As on a disk of a server that is gone; the services answer."""
    gone = (
        "from pipeline.output import parts; from pipeline.runtime import watchdog; "
        "parts.sync_disk = lambda folder: time.sleep(3600); watchdog.AFTERWARDS_S = 4"
    )
    child = start("--stall-limit-s", "4", "--run-name", "one", change=gone)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 1, output
    folder = tmp_path / "runs" / "one"
    assert f"stopped: writing the rows into {folder} did not end within 4 s; stacks in {folder}/stall.txt: " in output
    assert "in commit" in (folder / "stall.txt").read_text()


def test_two_runs_do_not_write_into_one_folder(run_job: RunJob, start: Start, simulated: Simulated) -> None:
    simulated.hold = lambda traffic, number: traffic is simulated.model and number == 3  # it cannot end meanwhile
    child = start("--model-concurrency", "1")
    wait_until(lambda: simulated.model.requests >= 3)
    with pytest.raises(FolderInUse):
        run_job()
    child.kill()  # a crash does not leave the lock behind
    child.communicate(timeout=30)
    assert run_job()[0].status == "complete"


@pytest.mark.parametrize("asked", [0, 2, 200, 400, 601])
def test_kill_9_then_resume_gives_every_row_once(simulated: Simulated, tmp_path: Path, asked: int) -> None:
    """Killed when the model was asked this often; scripts/bench/kills.py does it at random moments of larger runs.

    However late the kill comes on a busy host, no question is answered that came after it was due.
    """
    write_plain(tmp_path / "many", 300)
    simulated.latency_s = 0.1
    simulated.hold = lambda traffic, number: traffic is simulated.model and number >= max(asked, 2)
    folder = tmp_path / "runs" / "killed"
    some_committed = asked >= 200

    def due() -> bool:
        if simulated.model.requests > asked + CONCURRENCY:
            return True  # the answers are kept back no more: it is too late for a part
        return simulated.model.requests >= asked and (not some_committed or committed(folder)[0] > 0)

    resumed = kill_and_resume(simulated, tmp_path / "many", folder, due, part=10)
    assert resumed.killed
    assert (resumed.committed > 0) == some_committed
    assert resumed.rows == 300 * BOXES
    starts = json.loads((folder / "run.json").read_text())["starts"]
    killed_starts = [each["status"] for each in starts[:-1]]
    assert killed_starts == ["unfinished"] or not asked  # the first kill may come before run.json
    assert not resumed.wrong


def test_a_server_that_is_behind_for_a_while_costs_nothing(run_job: RunJob, simulated: Simulated) -> None:
    failing = iter(range(6))
    simulated.model_fault = lambda number: (
        web.Response(status=503) if number > 4 and next(failing, None) is not None else None
    )
    done, _ = run_job()
    assert (done.failures, done.answered) == (0, 10)


def test_a_run_that_only_fails_is_stopped_with_the_reason(run_job: RunJob, simulated: Simulated, photos: Path) -> None:
    for number in range(10, 150):
        (photos / f"{number}.jpg").write_bytes(encoded(gradient(200 + number, 100)))
    simulated.model_fault = lambda number: web.Response(status=400, text="broken") if number > 1 else None
    simulated.latency_s = 0.02
    done, _ = run_job("--model-concurrency", "4")
    assert done.status == "stopped"
    assert "more than SPOTTER_FAILURE_LIMIT" in done.manifest["reason"]
    counts = done.manifest["counts"]["images"]
    assert counts["not_reached"] > 0
    assert counts["detected"] + counts["not_reached"] == counts["total"] == 150


def test_a_run_that_does_not_move_is_stopped_with_what_it_waits_for(
    start: Start, simulated: Simulated, tmp_path: Path
) -> None:
    """After a time in which a busy host begins, or goes on: it is the model that does not answer."""
    simulated.model_fault = lambda number: hang if number > 3 else None
    child = start("--stall-limit-s", "6", "--model-concurrency", "2")
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 1, output
    assert "no row ended for 6 s" in output
    assert "requests in flight" in output
    (dump,) = (tmp_path / "runs").glob("dog_breeds-*/stall.txt")
    assert "Thread" in dump.read_text()
    assert "2 tasks: " in dump.read_text()


# Two runs on a small file system of its own: the first fills it, the second finds room.
FULL_DISK = """
set -e
mount -t tmpfs -o size=400k tmpfs "$1"
set +e
"$4" -c "$5" --images "$2" --output "$1" --run-name run; echo "first: $?"
mount -o remount,size=50m "$1"
"$4" -c "$5" --images "$2" --output "$1" --run-name run; echo "second: $?"
cp "$1/run/run.json" "$3"
"""


def test_a_full_disk_is_a_clear_stop_and_the_rest_follows_when_there_is_room(
    simulated: Simulated, photos: Path, tmp_path: Path
) -> None:
    for number in range(10, 200):
        (photos / f"{number}.jpg").write_bytes(encoded(gradient(600 + number, 400)))
    (tmp_path / "disk").mkdir()
    # Slowly enough that a part is committed before crops have filled the disk, which a busy host may collect late.
    simulated.model_latency_s = 0.1
    # Without small copies for the report, which would fill it first.
    slowly = {"SPOTTER_MODEL_CONCURRENCY": "4", "SPOTTER_ANNOTATED": "none"}
    python, _, small_parts = pipeline(part=5)
    told = [*(str(tmp_path / name) for name in ("disk", "photos", "run.json")), python, small_parts]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", *told],
        cwd=ROOT,
        env={**os.environ, **simulated.settings, **slowly},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "first: 1" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stdout + done.stderr
    assert "second: 0" in done.stdout, done.stdout + done.stderr
    already = re.search(r"(\d+) are done already", done.stdout)
    assert already, done.stdout
    assert int(already[1]) >= 5
    counts = json.loads((tmp_path / "run.json").read_text())["counts"]
    assert counts["images"] == {"total": 200, "detected": 200, "no_object": 0, "failed": 0, "not_reached": 0}
    assert counts["detections"] == {"total": 200, "answered": 200, "failed": 0}


class Panic(BaseException):
    """What Rust raises: no Exception."""


@pytest.mark.parametrize("broken", [RuntimeError, Panic, OSError])
def test_an_error_that_nobody_expected_costs_no_rows(
    run_job: RunJob, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, broken: type[BaseException]
) -> None:
    flow_rows = Flow.rows

    def breaks(*arguments: Any) -> Iterator[dict[str, Any]]:
        yield from itertools.islice(flow_rows(*arguments), 6)
        raise broken("a gremlin")

    with monkeypatch.context() as patched:
        patched.setattr(Flow, "rows", breaks)
        done, printed = run_job()
    assert done.status == "stopped"
    reason = done.manifest["reason"]
    assert reason.startswith(
        f"unexpected {broken.__name__}: a gremlin (more in {done.folder / 'error.txt'}): run again"
    )
    assert "in breaks" in (done.folder / "error.txt").read_text()
    assert "Traceback" not in printed
    assert json.loads((done.folder / "run.json").read_text())["counts"]["images"]["not_reached"] == 4
    simulated.model.bodies.clear()
    again, printed = run_job()
    assert "6 are done already" in printed
    assert (again.status, len(simulated.model.bodies)) == ("complete", 1 + 4)
    assert not (again.folder / "error.txt").exists()


def test_an_error_in_the_tables_is_told_in_one_line_and_costs_no_rows(
    run_job: RunJob, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(self: Parts, listed: set[str]) -> None:
        raise pa.ArrowInvalid("offset overflow")

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "merge", breaks)
        with pytest.raises(RunStopped, match="ArrowInvalid: offset overflow"):
            run_job("--run-name", "mine")
    manifest = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert manifest["status"] == "stopped"
    assert "offset overflow" in manifest["reason"]
    assert [(each["status"], each["images"]["done"]) for each in manifest["starts"]] == [("stopped", 10)]
    _, printed = run_job("--run-name", "mine")
    assert "10 are done already" in printed


def test_rows_are_written_down_while_the_services_are_left(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take its time; a power cut then must not cost rows."""
    seen = []
    close = Clients.close

    def status() -> str:
        (manifest,) = (tmp_path / "runs").glob("dog_breeds-*/run.json")
        return str(json.loads(manifest.read_text())["status"])

    def close_late(self: Clients) -> None:
        wait_until(lambda: status() == "complete")
        seen.append(status())
        close(self)

    monkeypatch.setattr(Clients, "close", close_late)
    run_job()
    assert seen == ["complete"]


@pytest.mark.parametrize("boxes", [1, 2], ids=["an image without any", "an image that lacks one"])
def test_a_run_that_lost_rows_is_not_complete(
    run_job: RunJob, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, boxes: int
) -> None:
    simulated.boxes = lambda image: [[0, 0, 50, 50 + number] for number in range(boxes)]
    flow_rows = Flow.rows
    with monkeypatch.context() as patched:
        patched.setattr(Flow, "rows", lambda *arguments: itertools.islice(flow_rows(*arguments), 10 * boxes - 1))
        done, _ = run_job()
    assert done.status == "stopped"
    assert done.manifest["reason"].startswith("the flow ended, but 1 of 10 images have no rows or too few: run again")
    assert run_job()[0].status == "complete"


def test_a_run_that_lost_rows_of_what_is_done_again_is_not_complete(
    run_job: RunJob, simulated: Simulated, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image has rows, but they are those of the file before it changed."""
    run_job()
    (photos / "0.jpg").write_bytes(encoded(gradient(500, 400)))
    with monkeypatch.context() as patched:
        patched.setattr(Flow, "rows", lambda *arguments: iter(()))
        done, _ = run_job()
    assert "1 of 10 images" in done.manifest["reason"]


def test_a_disk_that_is_full_from_the_beginning_is_no_trouble_when_there_is_room(
    run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunStopped, match="No space left on device"):
            run_job()
    assert run_job()[0].status == "complete"
