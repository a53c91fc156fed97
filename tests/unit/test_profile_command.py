"""`make profile` without its job: which folder, which options, which exit code, what is written, what an error says."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import settings as job_settings
from pipeline.errors import InvalidSetting, NotFound, Unreadable
from scripts import foreground
from scripts.__main__ import parse
from scripts.profile import command
from scripts.settings import StackSettings, load_job
from tests.conftest import ROOT
from tests.profiles import make_profile, write_profile

PAGES = {"profile.json", "profile.html", "profile.md", "trace.json"}


class FakeJob:
    """Stands in for `make run`: notes its options, leaves a profile in the run's folder, ends with a code."""

    def __init__(self, runs: Path, code: int = 0, leaves_profile: bool = True) -> None:
        self.runs, self.code, self.leaves_profile = runs, code, leaves_profile
        self.options: list[str] = []

    def __call__(self, options: list[str]) -> int:
        self.options = options
        name = job_settings.load(options).run_name
        assert name is not None
        if self.leaves_profile:
            write_profile(self.runs / name, make_profile(name))
        return self.code


@pytest.fixture
def console() -> Console:
    """A wide one that keeps what it shows."""
    return Console(file=StringIO(), width=160)


def said(console: Console) -> str:
    """What was printed."""
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def profile(
    console: Console, runs: Path, *options: str, existing: str | None = None, compare: str | None = None
) -> int:
    """The command, with an output folder of the test's."""
    told = [*options, "--output", str(runs)] if existing is None else list(options)
    return command.run(StackSettings(), console, existing=existing, compare=compare, job=load_job(told))


def test_the_job_runs_in_a_folder_that_no_run_has_yet(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = FakeJob(tmp_path)
    monkeypatch.setattr(command, "run_job", job)
    for number in (1, 2, 3):
        assert profile(console, tmp_path, "--model-concurrency", "8") == 0
        folder = tmp_path / f"dog_breeds-profile-{number}"
        assert {path.name for path in (folder / "profile").iterdir()} == PAGES
        assert job.options[:2] == ["--model-concurrency", "8"]


def test_a_runs_name_is_kept_as_the_beginning_of_the_folders(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_job", FakeJob(tmp_path))
    profile(console, tmp_path, "--run-name", "mine")
    assert (tmp_path / "mine-profile-1" / "profile" / "profile.html").is_file()


def test_it_says_the_bottleneck_why_and_what_to_try(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_job", FakeJob(tmp_path))
    profile(console, tmp_path)
    text = said(console)
    expected = make_profile()
    assert "bottleneck: ask, to blame for 10.1 s of 11.2 s" in text
    for evidence in expected.diagnosis.evidence:
        assert evidence in text
    assert "SPOTTER_MODEL_CONCURRENCY: 8 -> 32, saves about 7.6 s: rows wait" in text
    assert "crop.max_side: 512 -> 336: a crop costs" in text  # no figure is made up where there is none
    row = next(line.split() for line in text.splitlines() if line.startswith("ask"))
    assert row[:2] == ["ask", "360"]
    assert "7.9/8" in row
    assert row[-1] == "90%"
    assert f"make profile COMPARE={tmp_path / 'dog_breeds-profile-1'}" in text


@pytest.mark.parametrize("code", [2, 130])
def test_a_job_that_did_not_run_or_was_interrupted_leaves_nothing_to_show(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(command, "run_job", FakeJob(tmp_path, code))
    assert profile(console, tmp_path) == code
    assert said(console) == ""


def test_a_failed_job_is_shown_if_it_has_a_profile_and_fails_the_command(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_job", FakeJob(tmp_path, 1))
    assert profile(console, tmp_path) == 1
    assert "bottleneck: ask" in said(console)
    monkeypatch.setattr(command, "run_job", FakeJob(tmp_path, 1, leaves_profile=False))
    assert profile(console, tmp_path) == 1


def test_a_wrong_option_or_run_to_compare_with_is_told_before_anything_runs(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = FakeJob(tmp_path)
    monkeypatch.setattr(command, "run_job", job)
    with pytest.raises(InvalidSetting, match="--model-concurrency: '0'"):
        profile(console, tmp_path, "--model-concurrency", "0")
    with pytest.raises(NotFound, match="nowhere"):
        profile(console, tmp_path, compare="nowhere")
    assert job.options == []


def test_a_run_that_was_is_shown_by_name_or_path_without_running(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTTER_OUTPUT", str(tmp_path))
    folder = write_profile(tmp_path / "old", make_profile("old"))
    monkeypatch.setattr(command, "run_job", None)  # calling it would fail
    for name in ("old", str(folder)):
        assert profile(console, tmp_path, existing=name) == 0
    assert {path.name for path in (folder / "profile").iterdir()} == PAGES
    with pytest.raises(InvalidSetting, match=r"--force.*--run"):
        profile(console, tmp_path, "--force", existing="old")


def test_two_runs_are_shown_side_by_side_on_all_pages(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTTER_OUTPUT", str(tmp_path))
    write_profile(tmp_path / "slow", make_profile("slow", model_slots=8))
    fast = write_profile(tmp_path / "fast", make_profile("fast", model_slots=32))
    assert profile(console, tmp_path, existing="fast", compare="slow") == 0
    faster = f"{make_profile(model_slots=8).wall_s / make_profile(model_slots=32).wall_s:.2f}x faster"
    for shown in (said(console), *((fast / "profile" / name).read_text() for name in ("profile.md", "profile.html"))):
        assert faster in shown
        assert "SPOTTER_MODEL_CONCURRENCY" in shown
    assert "settings that differ: SPOTTER_MODEL_CONCURRENCY 8 -> 32" in said(console)
    assert "bottleneck: ask, then ask" in said(console)


def test_a_run_without_a_profile_is_an_error_with_a_remedy(console: Console, tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    with pytest.raises(NotFound, match=r"profile\.json.*'make profile'"):
        profile(console, tmp_path, existing=str(tmp_path))
    (tmp_path / "profile" / "profile.json").write_text('{"run": "of another version"}')
    with pytest.raises(Unreadable, match=r"profile\.json.*'make profile'"):
        profile(console, tmp_path, existing=str(tmp_path))


def test_the_command_line_keeps_the_jobs_options_for_the_job() -> None:
    name, given = parse(["profile", "--compare", "runs/a", "--images", "x", "--run-name", "mine", "--force"])
    assert (name, given["existing"], given["compare"]) == ("profile", None, "runs/a")
    assert given["job"].options == ("--images", "x", "--run-name", "mine", "--force")
    assert given["job"].settings.run_name == "mine"


def test_exit_codes_are_the_commands() -> None:
    assert foreground.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert foreground.run(["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM


JOB = """
import pathlib, signal, sys, time
def end(number, frame):
    with open("signals", "a") as told:
        print(number, file=told)
    time.sleep(0.5)  # as a job that writes what it has; a second signal would be seen
    sys.exit(130)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def in_foreground(tmp_path: Path) -> list[str]:
    """A command that runs a job in the foreground, in the test's folder."""
    (tmp_path / "job.py").write_text(JOB)
    program = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
    program += f"from scripts import foreground; sys.exit(foreground.run([{sys.executable!r}, 'job.py']))"
    return [sys.executable, "-c", program]


def wait_for(path: Path) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_job_and_its_end_is_waited_for(
    in_foreground: list[str], tmp_path: Path, signum: signal.Signals
) -> None:
    """As when CI stops `make profile`."""
    started = subprocess.Popen(in_foreground, stdin=subprocess.DEVNULL)
    wait_for(tmp_path / "ready")
    started.send_signal(signum)
    assert started.wait(timeout=30) == 130
    assert (tmp_path / "signals").read_text().split() == [str(int(signum))]


def test_ctrl_c_in_a_terminal_reaches_the_job_once(in_foreground: list[str], tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(in_foreground[0], in_foreground)
    wait_for(tmp_path / "ready")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert (tmp_path / "signals").read_text().split() == [str(int(signal.SIGINT))]


def test_the_makefile_passes_runs_and_options_on() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "profile", "RUN=my runs/a", "COMPARE=b", "OPTIONS=--force"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.splitlines()[-1].endswith("./spotter profile --run 'my runs/a' --compare 'b' --force")
