"""Starts of the stack in containers that fail or are interrupted, and services that die."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from scripts import environments
from scripts.docker import images
from scripts.docker.containers import STATE_AGE_S
from scripts.docker.engine import ComposeEngine
from scripts.docker.files import OVERLAYS
from scripts.docker.project import left_over, volumes
from scripts.settings import ServiceDied, StackSettings
from scripts.stack import api_key, warmup
from scripts.stack.services import make_stack
from tests.conftest import ROOT
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, inspect, project


def test_a_service_that_dies_comes_back(containers: RunningStack) -> None:
    """Killed from outside: Docker starts it again, and it answers."""
    before = containers.ids()
    os.kill(inspect(containers, "detector")["State"]["Pid"], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while not inspect(containers, "detector")["RestartCount"]:
        assert time.monotonic() < deadline, inspect(containers, "detector")["State"]
        time.sleep(0.5)
    assert containers.ids() == before


def told_after_s(said: list[tuple[datetime, str]], words: str, state: Path, event: str, begin: datetime) -> float:
    """How long after Docker's first such event since `begin`, of a stack's detector, a line with these words came."""
    (told, *_) = (at for at, line in said if words in line)
    name = f"{project(RunningStack({'STACK_STATE': str(state)}))}-detector-1"
    filters = ("--filter", f"container={name}", "--filter", f"event={event.partition(':')[0]}")
    since = ("--since", begin.isoformat(), "--until", "0s", "--format", "{{.TimeNano}} {{.Action}}")
    seen = [line.split(" ", 1) for line in docker("events", *filters, *since).splitlines()]
    (happened, *_) = (int(at) / 1e9 for at, action in seen if action == event)
    return told.timestamp() - happened


def assert_nothing_is_left(state: Path) -> None:
    """See that a failed start has taken down what it began; the caches' volumes, which stay, go now."""
    name = project(RunningStack({"STACK_STATE": str(state)}))
    assert left_over(name) == ([], [])
    for volume in volumes(name):
        docker("volume", "rm", volume)


# Over the CPU's overlay: the detector is healthy for eight checks, and then no more; vLLM is never
# ready.
TURNS_UNHEALTHY = """
services:
  detector:
    healthcheck:
      test:
        - CMD-SHELL
        - |
          python3 /spotter/health.py http://127.0.0.1:8001/ || exit 1
          echo >> /tmp/checks
          test $(wc -l < /tmp/checks) -gt 8 || exit 0
          echo the GPU fell off the bus
          exit 1
      interval: 1s
      retries: 2
  vllm:
    entrypoint: [sh, -c, sleep 600]
    healthcheck: {disable: true}
"""


# `make up`, with another overlay.
UP = """
import sys
from scripts.docker import files as compose_files
compose_files.OVERLAY_OF_DEVICE = {{"cpu": {overlay!r}}}
from scripts.__main__ import main
sys.exit(main(["up"]))
"""


def overlaid(changes: str, folder: Path) -> str:
    """A copy of the CPU's overlay with these changes of its services."""
    overlay = yaml.safe_load((OVERLAYS / "cpu.yaml").read_text())
    for name, changed in yaml.safe_load(changes)["services"].items():
        overlay["services"][name] |= changed
    (folder / "toy.yaml").write_text(yaml.safe_dump(overlay))
    return str(folder / "toy.yaml")


# Over the CPU's overlay: the detector ends as a program does that cannot load its model.
CRASHES = """
services:
  detector:
    entrypoint: [sh, -c, "echo the weights are damaged >&2; exit 2"]
"""


def test_a_service_that_crashes_at_start_is_told_at_once(containers: RunningStack, tmp_path: Path) -> None:
    """Name, exit code and last lines; and nothing is left. The preflight refuses a model that is missing before."""
    state, begin = tmp_path / "state", datetime.now(UTC)
    code, said = containers.follow("-c", UP.format(overlay=overlaid(CRASHES, tmp_path)), STACK_STATE=str(state))
    output = "\n".join(line for _, line in said)
    assert code == 1, output
    assert "the weights are damaged" in output
    assert "the weights are damaged" in (state / "logs" / "detector.log").read_text()
    assert told_after_s(said, "detector ended with exit code 2", state, "die", begin) < 10
    assert_nothing_is_left(state)


def test_a_container_that_turns_unhealthy_is_told_at_once(containers: RunningStack, tmp_path: Path) -> None:
    """Also when it was ready before, and another is waited for: name, what the check said, last lines."""
    state, begin = tmp_path / "state", datetime.now(UTC)
    code, said = containers.follow("-c", UP.format(overlay=overlaid(TURNS_UNHEALTHY, tmp_path)), STACK_STATE=str(state))
    output = "\n".join(line for _, line in said)
    assert code == 1, output
    for part in (
        "detector: ready after",
        "The cause: its health check says: the GPU fell off the bus",
        "What helps: ",
        "Its last lines:\n",
        f"Whole log: {state}/logs/detector.log",
    ):
        assert part in output
    words = "detector turned unhealthy before the stack was ready."
    assert told_after_s(said, words, state, "health_status: unhealthy", begin) < 10
    assert_nothing_is_left(state)


# Takes memory until it is killed, over and over.
TAKES_TOO_MUCH = """
services:
  detector:
    image: spotter-pipeline:local
    restart: unless-stopped
    mem_limit: 64m
    entrypoint: [python, -c, "print('loading', flush=True); held = [b'x' * 10**7 for _ in range(1000)]"]
"""


def test_a_service_that_dies_of_its_memory_limit_is_told_the_limit(tmp_path: Path) -> None:
    images.ensure([images.IMAGES["pipeline"]], tmp_path, Console(file=io.StringIO()))
    settings = StackSettings(state=tmp_path / "state", engine="compose", device="cpu")
    engine = ComposeEngine(settings, "cpu", "cpu")
    (tmp_path / "toy.yaml").write_text(TAKES_TOO_MUCH)
    engine.files.files = [tmp_path / "toy.yaml"]
    (service,) = (each for each in make_stack(settings, "cpu", "cpu", {}).services if each.name == "detector")
    try:
        engine.start(service)
        with pytest.raises(ServiceDied, match=r"(?s)detector .* 137.* 64\.0MiB.*_DETECTOR_MEM"):
            warmup.wait(engine, [engine.locate(service)], 60, Console(file=io.StringIO()))
    finally:
        engine.stop("detector", grace_s=0)
        engine.tear_down()


# Dies once, and lives on when Docker has started it again. Docker stamps a line when it copies it: that is to be before
# the end.
DIES_ONCE = """
services:
  detector:
    image: spotter-pipeline:local
    restart: unless-stopped
    entrypoint:
      - sh
      - -c
      - |
        test -e /tmp/once && echo loading && exec sleep 600
        touch /tmp/once
        echo RuntimeError of the first
        sleep 1
        exit 1
"""


def test_what_docker_started_again_is_judged_by_its_own_log(tmp_path: Path) -> None:
    """The death before is in the same log: it counts where a death is explained, and nowhere else."""
    images.ensure([images.IMAGES["pipeline"]], tmp_path, Console(file=io.StringIO()))
    settings = StackSettings(state=tmp_path / "state", engine="compose", device="cpu")
    engine = ComposeEngine(settings, "cpu", "cpu")
    (tmp_path / "toy.yaml").write_text(DIES_ONCE)
    engine.files.files = [tmp_path / "toy.yaml"]
    (service,) = (each for each in make_stack(settings, "cpu", "cpu", {}).services if each.name == "detector")
    try:
        engine.start(service)
        deadline = time.monotonic() + 60
        while "loading" not in engine.last_lines("detector", earlier=True):
            assert time.monotonic() < deadline, engine.last_lines("detector", earlier=True)
            time.sleep(0.1)
        time.sleep(STATE_AGE_S)  # the container's state is asked for no more often
        assert engine.last_lines("detector") == "loading"
        assert engine.last_lines("detector", earlier=True) == "RuntimeError of the first\nloading"
    finally:
        engine.stop("detector", grace_s=0)
        engine.tear_down()
    assert left_over(engine.project) == ([], [])


def test_ctrl_c_during_a_start_leaves_nothing_and_the_next_command_works(
    containers: RunningStack, tmp_path: Path
) -> None:
    state = {"STACK_STATE": str(tmp_path / "state")}
    child = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "up"],
        cwd=ROOT,
        env={**os.environ, **containers.variables, **state},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "state" / "containers" / "vllm.json").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output.splitlines()[-1]) == (130, "interrupted")
    name = project(RunningStack(state))
    assert left_over(name) == ([], [])
    elsewhere = {**state, "SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}  # only the detector, which is quick
    up = containers.operate("up", **elsewhere)
    assert up.returncode == 0, up.stdout + up.stderr
    assert len(left_over(name)[0]) == 1
    down = containers.operate("down", **elsewhere)
    assert down.returncode == 0, down.stdout + down.stderr
    assert left_over(name) == ([], [])  # no container, no network; the caches' volumes stay
    assert volumes(name)
    cleaned = containers.operate("clean", "--yes", "--caches", **elsewhere)
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert not volumes(name)
    assert not api_key.file_in(tmp_path / "state").exists()
