"""The operator's commands on the real services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil

from scripts import environments
from tests.conftest import ROOT
from tests.stack.conftest import RunningStack, free_port


def test_up_again_changes_nothing(stack: RunningStack) -> None:
    before = stack.pids()
    assert set(before) == {"detector", "vllm"}
    again = stack.operate("up")
    assert again.returncode == 0
    assert "the stack is up" in again.stdout
    assert stack.pids() == before


def test_status_and_logs(stack: RunningStack) -> None:
    shown = stack.operate("status", COLUMNS="200").stdout
    assert shown.count(" ready ") == 2
    assert stack.detector_url in shown
    logs = stack.operate("logs", "vllm")
    assert "INFO" in logs.stdout
    assert "detector" not in logs.stdout


def test_another_stack_needs_other_ports(stack: RunningStack, tmp_path: Path) -> None:
    refused = stack.operate("up", STACK_STATE=str(tmp_path))
    assert refused.returncode == 1
    assert "STACK_DETECTOR_PORT" in refused.stderr
    assert "cannot be used (Address already in use" in refused.stderr
    assert set(stack.pids()) == {"detector", "vllm"}  # the first is untouched


def test_a_service_that_dies_at_start_is_told_at_once(stack: RunningStack, tmp_path: Path) -> None:
    """The detector with a model that is not there: its last lines are shown, and nothing is left running."""
    ports = {"STACK_DETECTOR_PORT": str(free_port()), "STACK_VLLM_PORT": str(free_port())}
    started = time.monotonic()
    failed = stack.operate("up", STACK_STATE=str(tmp_path), DETECTOR_MODEL="no/such/folder/at/all", **ports)
    assert failed.returncode == 1
    assert "detector ended with exit code" in failed.stderr
    assert "no/such/folder/at/all" in failed.stderr
    assert time.monotonic() - started < 60  # of the 1,800 s that a start may take
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def test_services_listen_on_loopback_only(stack: RunningStack) -> None:
    host = socket.gethostbyname(socket.gethostname())
    for url in (stack.detector_url, stack.model_url.removesuffix("/v1") + "/health"):
        with urllib.request.urlopen(url, timeout=5) as response:
            assert response.status == 200
        if not host.startswith("127."):
            port = int(url.split(":")[2].split("/")[0])
            with socket.socket() as probe:
                probe.settimeout(2)
                assert probe.connect_ex((host, port)) != 0


def test_ctrl_c_during_a_start_stops_what_was_started(stack: RunningStack, tmp_path: Path) -> None:
    ports = {"STACK_DETECTOR_PORT": str(free_port()), "STACK_VLLM_PORT": str(free_port())}
    child = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "up"],
        cwd=ROOT,
        env={**os.environ, **stack.variables, **ports, "STACK_STATE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    states = [tmp_path / "processes" / f"{name}.json" for name in ("detector", "vllm")]
    deadline = time.monotonic() + 60
    while not all(state.exists() for state in states):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = [json.loads(state.read_text())["pid"] for state in states]
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 130, output
    assert not any(psutil.pid_exists(pid) for pid in started)
    assert not any(state.exists() for state in states)


def test_down_leaves_nothing_also_after_a_crash(stack: RunningStack, tmp_path: Path) -> None:
    """The detector alone, whose main process is killed: its workers would hold the port for good."""
    variables = {
        "STACK_STATE": str(tmp_path),
        "STACK_DETECTOR_PORT": str(free_port()),
        "SPOTTER_MODEL_URL": stack.model_url,  # that service runs elsewhere, and is not started
    }
    up = stack.operate("up", **variables)
    assert up.returncode == 0, up.stdout + up.stderr
    main = psutil.Process(json.loads((tmp_path / "processes" / "detector.json").read_text())["pid"])
    family = [main, *main.children(recursive=True)]
    assert len(family) > 1
    main.kill()
    main.wait(10)
    assert "ended by itself" in stack.operate("status", **variables).stdout
    down = stack.operate("down", **variables)
    assert down.returncode == 0, down.stderr
    psutil.wait_procs(family, timeout=10)
    assert not any(process.is_running() for process in family)
