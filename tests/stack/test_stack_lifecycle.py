"""The operator's commands on the real services."""

from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path

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
