"""scripts/docker_engine.sh stops the engine that it has started, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.environments import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the script alone, and a folder for its engine's state."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "docker_engine.sh", tmp_path / "scripts")
    (tmp_path / ".spotter" / "docker").mkdir(parents=True)
    return tmp_path


@pytest.fixture(params=["dockerd", "another"])
def program(request: pytest.FixtureRequest, checkout: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running program of this name, whose process the engine's pid file names; it removes the file at its end."""
    pid_file = checkout / ".spotter" / "docker" / "dockerd.pid"
    file = checkout / request.param
    file.write_text(f"#!/bin/sh\ntrap 'rm {pid_file}; exit' TERM\necho up\nwhile :; do sleep 0.1; done\n")
    file.chmod(0o755)
    child = subprocess.Popen([file], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    pid_file.write_text(str(child.pid))
    yield request.param, child
    child.kill()
    child.wait()


def test_a_number_that_another_program_has_by_now_is_left_alone(
    checkout: Path, program: tuple[str, subprocess.Popen[bytes]]
) -> None:
    name, child = program
    script = checkout / "scripts" / "docker_engine.sh"
    done = subprocess.run(["sh", script, "stop"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    if name == "dockerd":
        assert done.stdout == "stopped the Docker engine that was started here\n"
        assert child.wait(5) == 0
    else:
        assert done.stdout == ""
        assert child.poll() is None
