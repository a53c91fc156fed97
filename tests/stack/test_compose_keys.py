"""The model server's key and the hub's token, where the stack runs in containers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from scripts import environments
from scripts.commands import fetch
from scripts.docker import images
from scripts.docker.engine import ComposeEngine
from scripts.docker.project import volumes
from scripts.services import KINDS
from scripts.settings import StackSettings
from scripts.stack.service import Service
from tests.configurations import TINY_VLM
from tests.conftest import ROOT
from tests.simulated_hub import MODEL, TOKEN, of_folder, serve
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, inspect, project
from tests.stack.test_compose_fetch import on_bridge


def address(stack: RunningStack, service: str) -> str:
    """Where this host reaches a service's container."""
    (network,) = inspect(stack, service)["NetworkSettings"]["Networks"].values()
    return f"http://{network['IPAddress']}:{KINDS[service].port}"


def status(url: str, key: str | None = None) -> int:
    """The status of an answer, asked for with a key or without."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_model_server_answers_nobody_without_the_key(containers: RunningStack) -> None:
    models = address(containers, "vllm") + "/v1/models"
    assert status(models) == 401
    assert status(models, "sesame") == 401
    assert status(models, containers.api_key) == 200


def test_keys_are_shown_nowhere(containers: RunningStack, tmp_path: Path) -> None:
    """Neither Docker, nor a log, nor the run's folder shows the key that the job sends, or the hub's token."""
    key, token = containers.api_key, "hf_sesame7391"
    job = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "run", "--output", str(tmp_path), "--run-name", "run"],
        cwd=ROOT,
        env={**os.environ, **containers.variables, "HF_TOKEN": token},
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
    for service in ("detector", "vllm"):
        shown += json.dumps(inspect(containers, service)) + docker("top", f"{project(containers)}-{service}-1")
        shown += docker(
            "exec", f"{project(containers)}-{service}-1", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
        )
    assert "/spotter/with_key.sh" in shown  # it is what was looked for that was looked at
    shown += "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*.json"))
    assert key not in shown
    assert token not in shown


def test_the_hubs_token_reaches_the_hub_and_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model is fetched, and after: not by Docker, and in no log or file of the stack."""
    images.ensure([images.IMAGES["vllm-cpu"]], tmp_path, Console(file=io.StringIO()))
    service = Service("vllm", "vllm-cpu", (), (), 0, "http://127.0.0.1:0/", 0.0, (), model=MODEL, revision="main")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = of_folder(TINY_VLM)
    hub.token, hub.hold_after = TOKEN, 1000
    shown = ""
    with serve(hub, on_bridge()), ThreadPoolExecutor() as pool:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        # After the variables: the settings keep the environment in which they are made.
        engine = ComposeEngine(StackSettings(state=tmp_path / "state", engine="compose", device="cpu"), "cpu", "cpu")
        try:
            ensured = pool.submit(fetch.ensure, engine, [service], Console(file=io.StringIO()), offline=False)
            deadline = time.monotonic() + 60
            while not hub.asked("GET", "/cdn/"):
                assert not ensured.done(), ensured.result()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            (fetching,) = docker(
                "ps", "--quiet", "--filter", f"label=com.docker.compose.project={engine.project}"
            ).split()
            shown += docker("inspect", fetching) + docker("top", fetching) + docker("logs", fetching)
            hub.released.set()
            (fetched,) = ensured.result()
        finally:
            hub.released.set()  # the fetch ends, and so does its thread
            engine.tear_down()
            for volume in volumes(engine.project):
                docker("volume", "rm", volume)
    assert fetched.came == fetched.size > 0
    assert {request.token for request in hub.requests if "/resolve/" in request.path} == {TOKEN}
    assert "hub_download.py" in shown
    shown += "".join(path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert TOKEN not in shown


def test_the_files_that_hold_the_key_are_closed_to_others(containers: RunningStack) -> None:
    """Its own has mode 600. The one that the container gets lies in a folder that only its owner may enter."""
    state = Path(containers.variables["STACK_STATE"])
    small = [path for path in state.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    holders = {str(path.relative_to(state)) for path in small if containers.api_key.encode() in path.read_bytes()}
    assert holders == {"api_key", "containers/secrets/api_key"}
    assert (state / "api_key").stat().st_mode & 0o777 == 0o600
    assert (state / "containers" / "secrets").stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
        for holder in holders:
            read = subprocess.run([*nobody, str(state / holder)], capture_output=True)
            assert (read.returncode, read.stdout) == (1, b"")
