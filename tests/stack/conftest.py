"""The real stack: Spotter's own commands start it once for all tests, beside whatever a developer has running."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from scripts import environments
from scripts.docker import host as docker_host
from scripts.docker.project import left_over, project_name
from scripts.stack import api_key
from tests.conftest import ROOT, environment_python
from tests.ports import free_port

# Where no Docker engine is to be had, `.ci/run` says so.
collect_ignore_glob = [] if docker_host.answers() else ["test_compose_*.py"]


# `status` gives a service 2 s to answer.
READY_S = 60.0


@dataclass(frozen=True)
class RunningStack:
    """A stack of our own: its settings as environment variables, and its commands."""

    variables: dict[str, str]

    @property
    def detector_url(self) -> str:
        """The detector's address."""
        return f"http://127.0.0.1:{self.variables['STACK_DETECTOR_PORT']}"

    @property
    def model_url(self) -> str:
        """The model server's address, with its /v1."""
        return f"http://127.0.0.1:{self.variables['STACK_VLLM_PORT']}/v1"

    @property
    def api_key(self) -> str:
        """What the model server asks for."""
        return api_key.ensure(api_key.file_in(Path(self.variables["STACK_STATE"])))

    def operate(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of the operator's commands, as the Makefile does."""
        return subprocess.run(
            [environments.python("operator"), "-m", "scripts", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def follow(self, *program: str, **variables: str) -> tuple[int, list[tuple[datetime, str]]]:
        """Run a program of the operator's environment: its exit code, and each line that it printed, with the time."""
        with subprocess.Popen(
            [environments.python("operator"), *program],
            cwd=ROOT,
            env={**os.environ, **self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            assert child.stdout is not None
            said = [(datetime.now(UTC), line.rstrip("\n")) for line in child.stdout]
        return child.returncode, said

    def status(self) -> str:
        """What `status` shows once it calls both services ready: on a busy machine one may answer it too late."""
        deadline = time.monotonic() + READY_S
        while (shown := self.operate("status", COLUMNS="200").stdout).count(" ready ") < 2:
            assert time.monotonic() < deadline, shown
            time.sleep(0.5)
        return shown

    def ids(self) -> dict[str, str]:
        """The services' process ids or containers."""
        return dict(re.findall(r"^(\w+)\s+ready\s+(\w+)", self.status(), re.MULTILINE))

    def pids(self) -> dict[str, int]:
        """The services' process ids, where they are processes."""
        return {name: int(pid) for name, pid in self.ids().items()}


def up_and_down(engine: str, state: Path) -> Iterator[RunningStack]:
    """The CPU stack on free ports: up, and down again when it has been used; its caches stay for the next test run."""
    environment_python("operator")
    ports = {"STACK_VLLM_PORT": str(free_port()), "STACK_DETECTOR_PORT": str(free_port())}
    running = RunningStack({"STACK_ENGINE": engine, "STACK_STATE": str(state), "STACK_DEVICE": "cpu", **ports})
    running.operate("down")  # what a killed test run may have left
    up = running.operate("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert processes_of(state) if engine == "process" else left_over(project_name(state))[0]  # they are seen below
    yield running
    down = running.operate("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert processes_of(state) == []
    assert engine == "process" or left_over(project_name(state)) == ([], [])


def processes_of(state: Path) -> list[psutil.Process]:
    """The processes that were started for the stack with this state, and what these have started."""
    every = psutil.process_iter(["environ"])
    return [each for each in every if (each.info["environ"] or {}).get("STACK_STATE") == str(state)]


# Both go when the last test of this folder has ended, and not when all have: it takes a while, in which the other test
# processes work on.
@pytest.fixture(scope="package")
def stack(cache_dir: Path) -> Iterator[RunningStack]:
    """The stack as processes."""
    yield from up_and_down("process", cache_dir / "stack")


@pytest.fixture(scope="package")
def containers(cache_dir: Path) -> Iterator[RunningStack]:
    """The stack in containers."""
    yield from up_and_down("compose", cache_dir / "containers")
