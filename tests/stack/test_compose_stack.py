"""The operator's commands and the main job, in containers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from scripts import environments, images
from tests.conftest import ROOT
from tests.stack.conftest import RunningStack, free_port
from tests.stack.container_stack import project

# Columns that say how long something took, or when.
TIMINGS = re.compile(r"_ms$|_s$|latency|modified|attempts")


def docker(*arguments: str) -> str:
    """What a docker command prints; it has to work."""
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def inspect(stack: RunningStack, service: str) -> dict[str, Any]:
    """A service's container."""
    content: dict[str, Any] = json.loads(docker("inspect", f"{project(stack)}-{service}-1"))[0]
    return content


def ids(stack: RunningStack) -> dict[str, str]:
    """The services' containers, as `status` shows them."""
    shown = stack.operate("status", COLUMNS="200").stdout
    return dict(re.findall(r"^(\w+)\s+ready\s+([0-9a-f]{12})", shown, re.MULTILINE))


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    """A table's rows without their timings, in the order of paths."""
    content = pq.read_table(run / f"{table}.parquet").to_pylist()
    kept = [{name: value for name, value in row.items() if not TIMINGS.search(name)} for row in content]
    return sorted(kept, key=lambda row: (row["path"], row.get("index", 0)))


def test_up_again_changes_nothing(containers: RunningStack) -> None:
    before = ids(containers)
    assert set(before) == {"detector", "vllm"}
    again = containers.operate("up")
    assert again.returncode == 0
    assert "engine compose" in again.stdout
    assert ids(containers) == before


def test_both_services_become_healthy(containers: RunningStack) -> None:
    """Healthy is more than ready: vLLM has answered a question about a picture."""
    deadline = time.monotonic() + 60
    for service in ("detector", "vllm"):
        while inspect(containers, service)["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, inspect(containers, service)["State"]["Health"]
            time.sleep(1)
    docker("exec", f"{project(containers)}-vllm-1", "test", "-e", "/tmp/answered")


def test_both_engines_write_the_same_run(containers: RunningStack, stack: RunningStack, tmp_path: Path) -> None:
    for name, running in (("compose", containers), ("process", stack)):
        arguments = ("--images", "samples/images", "--output", str(tmp_path / name), "--run-name", "run")
        done = running.operate("run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    one, other = tmp_path / "compose" / "run", tmp_path / "process" / "run"
    for table in ("images", "detections"):
        for row, same in zip(rows(one, table), rows(other, table), strict=True):
            # A batch of another size moves boxes (pixels) and scores in their last digits.
            close = {name: pytest.approx(same[name], abs=0.01) for name in ("box", "score") if name in row}
            assert row == same | close
    assert rows(one, "detections")
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    assert files[0] == files[1]
    counts = [json.loads((run / "run.json").read_text())["counts"] for run in (one, other)]
    assert counts[0] == counts[1]
    for path in one.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid()), path
    assert (tmp_path / "compose" / "latest").resolve() == one


def test_the_jobs_exit_code_and_message_arrive(containers: RunningStack, tmp_path: Path) -> None:
    wrong = containers.operate("run", "--images", str(tmp_path / "nowhere"), "--output", str(tmp_path))
    assert wrong.returncode == 2
    assert "nowhere" in wrong.stdout + wrong.stderr
    unknown = containers.operate("run", SPOTTER_IMAGEZ="x")
    assert unknown.returncode == 2
    assert "did you mean SPOTTER_IMAGES?" in unknown.stderr


def test_services_are_hardened_in_fact(containers: RunningStack) -> None:
    for service in ("detector", "vllm"):
        name = f"{project(containers)}-{service}-1"
        assert docker("exec", name, "id", "-u") != "0"
        status = docker("exec", name, "cat", "/proc/self/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        written = subprocess.run(["docker", "exec", name, "touch", "/spotter/x"], capture_output=True, text=True)
        assert "Read-only file system" in written.stderr
        assert not inspect(containers, service)["NetworkSettings"]["Ports"]
        networks = inspect(containers, service)["NetworkSettings"]["Networks"]
        assert [json.loads(docker("network", "inspect", network))[0]["Internal"] for network in networks] == [True]


def test_ports_are_not_published_unless_asked(containers: RunningStack) -> None:
    for port in ("STACK_VLLM_PORT", "STACK_DETECTOR_PORT"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(containers.variables[port]))) != 0


def test_a_key_is_shown_nowhere(containers: RunningStack, tmp_path: Path) -> None:
    """Neither Docker, nor a log, nor the run's folder shows the key that the job sends."""
    key = "sesame-open-7391"
    job = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "run", "--output", str(tmp_path), "--run-name", "run"],
        cwd=ROOT,
        env={**os.environ, **containers.variables, "SPOTTER_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown, seen = "", set()
    while job.poll() is None:
        for name in docker("ps", "--all", "--format", "{{.Names}}").split():
            asked = subprocess.run(["docker", "inspect", name], capture_output=True, text=True)
            if asked.returncode == 0:  # a job's container goes with the job
                seen.add(name)
                shown += asked.stdout
        time.sleep(0.1)
    output, _ = job.communicate()
    assert job.returncode == 0, output
    assert any(name.startswith("spotter-job-") for name in seen)
    shown += output + "".join(docker("logs", f"{project(containers)}-{service}-1") for service in ("detector", "vllm"))
    shown += "".join(
        docker("history", "--no-trunc", image.tag) for image in images.IMAGES.values() if images.has(image.tag)
    )
    shown += (tmp_path / "run" / "run.json").read_text()
    assert key not in shown
    secrets = list(Path(containers.variables["STACK_STATE"]).rglob("api_key"))
    assert [secret.stat().st_mode & 0o777 for secret in secrets] == [0o600]


def test_ctrl_c_ends_the_job_in_its_container(containers: RunningStack, tmp_path: Path) -> None:
    """What was done is kept, the container goes, and the services stay."""
    job = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "run", "--output", str(tmp_path), "--run-name", "run"],
        cwd=ROOT,
        env={**os.environ, **containers.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / ".parts").is_dir():  # the job is at work
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode in (0, 130), output
    assert "spotter-job-" not in docker("ps", "--all", "--format", "{{.Names}}")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["counts"]["images"]["total"] == 26
    assert set(ids(containers)) == {"detector", "vllm"}


def test_a_service_that_dies_comes_back(containers: RunningStack) -> None:
    """Killed from outside: Docker starts it again, and it answers."""
    os.kill(inspect(containers, "detector")["State"]["Pid"], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while set(ids(containers)) != {"detector", "vllm"} or not inspect(containers, "detector")["RestartCount"]:
        assert time.monotonic() < deadline, inspect(containers, "detector")["State"]
        time.sleep(0.5)


def test_a_service_that_crashes_at_start_is_told_at_once(containers: RunningStack, tmp_path: Path) -> None:
    """The detector with a model that is not there: name, exit code and last lines; and nothing is left."""
    ports = {"STACK_DETECTOR_PORT": str(free_port()), "STACK_VLLM_PORT": str(free_port())}
    state = tmp_path / "state"
    failed = containers.operate("up", STACK_STATE=str(state), DETECTOR_MODEL="no/such/folder/at/all", **ports)
    output = failed.stdout + failed.stderr
    assert failed.returncode == 1
    assert "detector ended with exit code 2" in output
    assert "no/such/folder/at/all" in output
    assert "no/such/folder/at/all" in (state / "logs" / "detector.log").read_text()
    label = f"label=com.docker.compose.project={project(RunningStack({'STACK_STATE': str(state)}))}"
    assert not docker("ps", "--all", "--quiet", "--filter", label)
    assert not docker("network", "ls", "--quiet", "--filter", label)
    for volume in docker("volume", "ls", "--quiet", "--filter", label).split():
        docker("volume", "rm", volume)


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
        assert "set STACK_DETECTOR_PORT to a free port" in second.stderr
    finally:
        for name in ("first", "second"):
            state = str(tmp_path / name)
            cleaned = containers.operate("clean", "--yes", "--caches", **{**variables, "STACK_STATE": state})
            assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_images_say_what_they_are_and_hold_no_tools(containers: RunningStack) -> None:
    for name in images.OF_DEVICE["cpu"]:
        tag = images.IMAGES[name].tag
        labels = json.loads(docker("image", "inspect", tag))[0]["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"]
        assert labels["org.opencontainers.image.revision"]
        script = "! command -v gcc && ! command -v uv && test ! -e /root/.cache/uv && test ! -e /etc/pip.conf"
        docker("run", "--rm", "--entrypoint", "/bin/sh", tag, "-c", script)
