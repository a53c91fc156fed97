"""The job's container is followed to its end, and nothing of it is left, whatever ends the command or its terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.environments import ROOT

pytestmark = pytest.mark.slow

# The shell that is followed takes the `-T`, which is Compose's, for its own name.
FOLLOW = "import sys; from scripts.docker.job import follow; sys.exit(follow(sys.argv[1:], 'job', []))"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for docker that writes down what it is told; there is no such container to be killed."""
    fake, told = tmp_path / "bin" / "docker", tmp_path / "told"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >>{told}\n[ "$1" != kill ]\n')
    fake.chmod(0o755)
    told.touch()
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    return told


def start(tmp_path: Path, script: str) -> subprocess.Popen[bytes]:
    """Follow a shell's script in the place of Compose, once it runs."""
    command = [sys.executable, "-c", FOLLOW, "sh", "-c", f"touch {tmp_path}/runs; {script}"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return child


def test_the_exit_code_is_the_jobs(docker: Path, tmp_path: Path) -> None:
    assert start(tmp_path, "exit 3").wait(60) == 3
    assert docker.read_text().splitlines()[0] == "stop --time 60 job"


def test_nohup_is_heeded(docker: Path, tmp_path: Path) -> None:
    """The end of a terminal ends no job that was to outlive it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = start(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 4")
    finally:
        signal.signal(signal.SIGHUP, before)
    child.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    assert child.wait(60) == 4
    assert "kill" not in docker.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_container_and_what_is_left_of_it_is_stopped(
    docker: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGHUP, the end of a terminal, asks the job to end as SIGTERM does: it writes what it has."""
    child = start(tmp_path, "trap 'exit 130' INT; trap 'exit 143' TERM; while :; do sleep 0.05; done")
    child.send_signal(number)
    sent = signal.SIGTERM if number == signal.SIGHUP else number
    assert child.wait(60) == 128 + sent
    assert docker.read_text().splitlines() == [f"kill --signal {int(sent)} job", "stop --time 60 job", "rm --force job"]
