"""The main job in containers: its rows, its messages, its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from scripts import environments
from scripts.docker.project import left_over
from tests.conftest import ROOT
from tests.outages import draw
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, project

# Columns that say how long something took, or when.
TIMINGS = re.compile(r"_ms$|_s$|latency|modified|attempts")


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    """A table's rows without their timings, in the order of paths."""
    content = pq.read_table(run / f"{table}.parquet").to_pylist()
    kept = [{name: value for name, value in row.items() if not TIMINGS.search(name)} for row in content]
    return sorted(kept, key=lambda row: (row["path"], row.get("index", 0)))


def test_both_engines_write_the_same_run(containers: RunningStack, stack: RunningStack, tmp_path: Path) -> None:
    for name, running in (("compose", containers), ("process", stack)):
        arguments = ("--images", "samples/images", "--output", str(tmp_path / name), "--run-name", "run")
        done = running.operate("run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    one, other = tmp_path / "compose" / "run", tmp_path / "process" / "run"
    for table in ("images", "detections"):
        for row, same in zip(rows(one, table), rows(other, table), strict=True):
            # A batch of another size moves boxes (pixels) and scores in their last digits.
            close = {name: pytest.approx(same[name], abs=0.01) for name in ("box", "score") if name in row}
            assert row == same | close
    assert rows(one, "detections")
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    assert files[0] == files[1]
    said = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    assert said[0].keys() == said[1].keys()
    for part in ("status", "identity", "job", "counts"):
        assert said[0][part] == said[1][part], part
    places = ("output", "detector_url", "model_url")
    settings = [{name: value for name, value in each["settings"].items() if name not in places} for each in said]
    assert settings[0] == settings[1]
    for path in one.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid()), path
    assert (tmp_path / "compose" / "latest").resolve() == one


def test_the_jobs_exit_code_and_message_arrive(containers: RunningStack, tmp_path: Path) -> None:
    wrong = containers.operate("run", "--images", str(tmp_path / "nowhere"), "--output", str(tmp_path))
    assert wrong.returncode == 2
    assert "nowhere" in wrong.stdout + wrong.stderr
    unknown = containers.operate("run", SPOTTER_IMAGEZ="x")
    assert unknown.returncode == 2
    assert "SPOTTER_IMAGES" in unknown.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures, under a name that means something to Compose and to shells."""
    folder = tmp_path / "a b:ro $HOME\n" / "photos"
    folder.mkdir(parents=True)
    for name in sorted(path.name for path in (ROOT / "samples" / "images").glob("*.*"))[:2]:
        shutil.copy(ROOT / "samples" / "images" / name, folder / name)
    return folder


def test_names_of_folders_are_taken_as_they_are(containers: RunningStack, photos: Path) -> None:
    runs = photos.with_name("runs: $PATH")
    done = containers.operate("run", "--images", str(photos), "--output", str(runs), "--run-name", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["path"] for row in rows(runs / "run", "images")} == {str(path) for path in photos.iterdir()}


def test_the_runs_of_a_folder_are_its_owners(containers: RunningStack, photos: Path) -> None:
    """Root runs the job for another user; nobody else can: there the user's own folder is the proof."""
    runs, owner = photos.with_name("runs"), 1234 if os.getuid() == 0 else os.getuid()
    runs.mkdir()
    if owner != os.getuid():
        os.chown(runs, owner, owner)
    arguments = ("run", "--images", str(photos), "--output", str(runs / "of" / "today"), "--run-name", "run")
    done = containers.operate(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    written = [path for path in runs.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in written} == {owner}
    assert runs / "of" / "today" / "run" / "run.json" in written
    if owner == os.getuid():
        return
    for path in photos.iterdir():
        path.chmod(0o600)
    refused = containers.operate(*arguments)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "cannot be read by user 1234, the job's user in its container" in line


def test_images_that_are_not_there_are_told_before_anything_starts(containers: RunningStack, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    places = ("--images", str(tmp_path / "phots"), "--output", str(tmp_path / "runs"))
    refused = containers.operate("run", *places, STACK_STATE=state)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"'{tmp_path}/phots' is no file, no folder and matches nothing as a glob" in line
    assert left_over(project(RunningStack({"STACK_STATE": state}))) == ([], [])
    assert "detector" not in refused.stdout


def test_a_job_that_needs_more_memory_than_it_may_use_says_so(containers: RunningStack, tmp_path: Path) -> None:
    before = containers.ids()
    killed = containers.operate("run", "--output", str(tmp_path), STACK_PIPELINE_MEMORY="64MiB")
    assert killed.returncode == 137
    assert "64.0MiB" in killed.stderr
    assert "raise STACK_PIPELINE_MEMORY" in killed.stderr
    assert containers.ids() == before


# With one question at a time they take 15 s or more: a signal that a busy machine sends late is still in the middle.
PICTURES = 100


SLOW = {"SPOTTER_MODEL_CONCURRENCY": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes, enough for a job that is to be interrupted."""
    folder = tmp_path_factory.mktemp("interrupted") / "images"
    draw(folder, PICTURES)
    return folder


def assert_cut_off(run: Path) -> None:
    """See that a run has ended early, with a row for each picture that it reached."""
    manifest = json.loads((run / "run.json").read_text())
    counts = manifest["counts"]["images"]
    assert manifest["status"] == "interrupted"
    assert counts["total"] == PICTURES
    assert counts["not_reached"] > 0
    assert len(rows(run, "images")) == PICTURES - counts["not_reached"]


def interruptible(pictures: Path, output: Path) -> list[str]:
    """The command of a job that takes a while."""
    where = ("--images", str(pictures), "--output", str(output), "--run-name", "run")
    return [str(environments.python("operator")), "-m", "scripts", "run", *where]


def test_ctrl_c_ends_the_job_in_its_container(containers: RunningStack, pictures: Path, tmp_path: Path) -> None:
    """What was done is kept, the container goes, and the services stay."""
    before = containers.ids()
    job = subprocess.Popen(
        interruptible(pictures, tmp_path),
        cwd=ROOT,
        env={**os.environ, **containers.variables, **SLOW},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any((tmp_path / "run" / "crops").glob("*")):  # the job is at work
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert "spotter-job-" not in docker("ps", "--all", "--format", "{{.Names}}")
    assert_cut_off(tmp_path / "run")
    assert containers.ids() == before


def test_ctrl_c_in_a_terminal_ends_the_job_in_its_container(
    containers: RunningStack, pictures: Path, tmp_path: Path
) -> None:
    """There the container has the terminal: it draws the progress, and the key's byte goes through to it."""
    before = containers.ids()
    ours, theirs = os.openpty()
    # The terminal is the job's own: what is typed there reaches its processes and no others.
    job = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *interruptible(pictures, tmp_path)],
        cwd=ROOT,
        env={**os.environ, **containers.variables, **SLOW, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, typed = b"", False
    with suppress(OSError):  # a terminal that nobody has any more
        while said := os.read(ours, 4096):
            shown += said
            if not typed and any((tmp_path / "run" / "crops").glob("*")):  # the job is at work
                os.write(ours, b"\x03")
                typed = True
    os.close(ours)
    text = shown.decode()
    assert typed, text
    assert job.wait(timeout=60) == 130, text
    assert "\x1b[" in text  # drawn, not printed
    assert "the same command again does the rest" in text
    assert "spotter-job-" not in docker("ps", "--all", "--format", "{{.Names}}")
    assert_cut_off(tmp_path / "run")
    assert containers.ids() == before
