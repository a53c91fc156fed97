"""`./spotter`: from any folder, with quiet output, its command's exit code, and a word where Python is missing."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scripts import environments
from scripts.commands.job_options import located
from scripts.environments import ROOT
from scripts.settings import OFFLINE

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def prepared() -> None:
    """The operator's environment, so that no test waits for one."""
    environments.prepare("operator")


def spotter(
    *arguments: str, cwd: Path, program: Path = ROOT / "spotter", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run it as a scheduler does."""
    return subprocess.run(
        [program, *arguments], cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_help_from_another_folder_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "spotter").symlink_to(ROOT / "spotter")
    done = spotter("--help", cwd=tmp_path, program=tmp_path / "spotter")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ./spotter ")
    for command in ("run", "up", "down", "doctor"):
        assert f"\n    {command} " in done.stdout
    assert "--model-concurrency" in spotter("run", "--help", cwd=tmp_path).stdout
    told = spotter("estimate", "--help", cwd=tmp_path).stdout
    assert "Say what a run would cost" in told
    assert "./spotter run --help" in told


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status"], 0, ""),
        (["logs"], 1, "no logs yet"),
        (["run", "--attempts", "0"], 2, "--attempts"),
        (["up", "--now"], 2, "unrecognized arguments: --now"),
        (["nothing"], 2, "invalid choice: 'nothing'"),
    ],
)
def test_it_ends_with_the_commands_own_code(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = spotter(*arguments, cwd=tmp_path, STACK_STATE=str(tmp_path), STACK_ENGINE="process", STACK_DEVICE="cpu")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert bool(done.stdout) == (code == 0)


def test_an_interrupted_command_ends_with_130(tmp_path: Path) -> None:
    """Here while it waits for another one to end."""
    with (tmp_path / "stack.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        environment = {**os.environ, "STACK_STATE": str(tmp_path)}
        child = subprocess.Popen(
            [ROOT / "spotter", "down"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout
        assert "another command is changing the stack" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


def test_relative_paths_in_options_start_at_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    options = ["--images", "photos/*.jpg", "--output=runs", "--job", "mine.yaml", "--run-name", "a", "--force"]
    expected = ["--images", f"{tmp_path}/photos/*.jpg", f"--output={tmp_path}/runs", "--job", f"{tmp_path}/mine.yaml"]
    assert located(options, tmp_path) == [*expected, "--run-name", "a", "--force"]
    unchanged = ["--images", "s3://bucket/photos", "--output", "/data/runs", "--job=dog_breeds"]
    assert located(unchanged, tmp_path) == unchanged
    boxes = ["--boxes", "column:boxes", "--boxes=coco.json", "--ca-file", "own.pem"]
    there = ["--boxes", "column:boxes", f"--boxes={tmp_path}/coco.json", "--ca-file", f"{tmp_path}/own.pem"]
    assert located(boxes, tmp_path) == there
    assert located(options, ROOT) == options  # the same run as `make run` would have


def test_without_python_it_says_what_to_install(tmp_path: Path) -> None:
    done = spotter("status", cwd=tmp_path, PYTHON="python-of-nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: python-of-nobody ")
    assert "venv" in done.stderr


def test_without_venv_it_says_what_to_install(tmp_path: Path) -> None:
    for name in ("spotter", "scripts/python.sh", "scripts/environments.py", "images/locks/operator.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "images/locks/uv.lock", tmp_path / "images/locks")
    (tmp_path / "without" / "venv").mkdir(parents=True)
    (tmp_path / "without" / "venv" / "__init__.py").touch()  # before the real one, as on a Debian without the package
    done = spotter("status", cwd=tmp_path, program=tmp_path / "spotter", PYTHONPATH=str(tmp_path / "without"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "python3-venv" in done.stderr


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_offline_is_told_to_pip_and_uv_before_the_first_environment(tmp_path: Path, place: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "python.sh", tmp_path / "scripts")
    (tmp_path / ".env").write_text("STACK_OFFLINE=1\n" if place == ".env" else "")
    program = (
        "import os; print(*(os.environ.get(name) for name in ('PIP_NO_INDEX', 'UV_OFFLINE', 'UV_PYTHON_DOWNLOADS')))"
    )
    given = {"STACK_OFFLINE": "1"} if place == "environment" else {}
    done = spotter("-c", program, cwd=tmp_path, program=tmp_path / "scripts" / "python.sh", **given)
    assert done.stdout.split() == [OFFLINE[name] for name in ("PIP_NO_INDEX", "UV_OFFLINE", "UV_PYTHON_DOWNLOADS")]


@pytest.mark.parametrize("system", ["MINGW64_NT-10.0-22631", "MSYS_NT-10.0", "CYGWIN_NT-10.0"])
def test_on_windows_it_names_wsl(tmp_path: Path, system: str) -> None:
    (tmp_path / "uname").write_text(f"#!/bin/sh\necho {system}\n")
    (tmp_path / "uname").chmod(0o755)
    done = spotter("status", cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "WSL 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_without_python_311_it_says_so(tmp_path: Path) -> None:
    """The host has another Python 3, and uv can fetch none: as with OFFLINE=1 on a host with Python 3.12 alone."""
    for name in ("spotter", "scripts/python.sh", "scripts/environments.py", "images/locks/operator.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "images/locks/uv.lock", tmp_path / "images/locks")
    environments.ensure_uv()
    (tmp_path / ".spotter").mkdir()
    (tmp_path / ".spotter" / "uv").symlink_to(environments.STATE / "uv")
    variables = {"UV_PYTHON_PREFERENCE": "only-managed", "UV_PYTHON_INSTALL_DIR": str(tmp_path / "none")}
    done = spotter("status", cwd=tmp_path, program=tmp_path / "spotter", STACK_OFFLINE="1", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: environment operator: no Python {environments.PYTHON} could be found or fetched: " in done.stderr
