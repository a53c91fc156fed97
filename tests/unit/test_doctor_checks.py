"""The doctor's checks on hosts that are made up: programs that answer as told, a hub on loopback, other clocks."""

from __future__ import annotations

import argparse
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from scripts.checks.doctor import (
    caches,
    clock,
    command,
    disk,
    docker,
    gpu,
    gpu_in_container,
    hub,
    locks,
    memory,
    ports,
    proxy,
)
from scripts.checks.doctor.context import Context
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker import project as compose_project
from scripts.environments import LOCKS, ROOT
from scripts.findings import Finding, exit_code
from scripts.settings import ChecksFailed, StackSettings
from scripts.vllm import compile_cache
from tests.configurations import cache_model
from tests.disks import read_only, small_disk
from tests.ports import free_port, taken_port

Programs = Callable[..., None]
Hosts = Callable[..., Context]

# A preset whose model is at the hub, and services that look for it on this host.
GATED = {"engine": "process", "preset": "l4"}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Let PATH hold only these programs, each a shell script; none is installed otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    # What this machine's own programs answered is kept for the process, and so would be what these answer.
    cached = (docker_host, "fault"), (docker_host, "client_config"), (docker_gpu, "driver"), (compile_cache, "gpu")
    for module, name in cached:
        monkeypatch.setattr(module, name, cache(getattr(module, name).__wrapped__))

    def install(**scripts: str) -> None:
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    return install


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """A host with these settings and variables, free ports, and nothing of this machine's hub."""
    for name in list(os.environ):
        if name.startswith("HF_") or name.upper().endswith("_PROXY"):
            monkeypatch.setenv(name, "")  # undoes one of .env too
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def make(variables: Mapping[str, str] | None = None, **settings: object) -> Context:
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        ports = {"vllm_port": free_port(), "detector_port": free_port()}
        return Context(StackSettings(**{"state": tmp_path / "state", "device": "cpu", **ports, **settings}))  # type: ignore[arg-type]

    return make


def one(findings: list[Finding], severity: str) -> Finding:
    """The only finding of a severity."""
    (finding,) = (each for each in findings if each.severity == severity)
    return finding


def smi(driver: str = "580.65.06", capability: str = "8.9", total: int = 23034, free: int = 22500) -> str:
    """An nvidia-smi that shows one L4, to devices.py and to the doctor."""
    return (
        f'case "$1" in *driver*) echo "0, NVIDIA L4, {driver}, {capability}, {total}, {free}";; '
        f'*) echo "NVIDIA L4, {total}, 0";; esac'
    )


DOCKER = """
case "$*" in
  info*) echo '{"ServerVersion": "%s", "Runtimes": %s}';;
  "compose version --short") echo %s;;
  "image inspect"*) echo '[{"Config": {}}]';;
  "run "*) %s;;
  *) exit 1;;
esac
"""

# An engine without any image; it tells this of itself.
NO_IMAGES = """case "$1" in info) echo '%s';; image) echo "Error: No such image: $3" >&2; exit 1;; *) exit 1;; esac"""


# Docker and Compose


def test_versions_of_docker(programs: Programs, host: Hosts) -> None:
    programs(docker=DOCKER % ("27.3.1", "{}", "v2.29.7-desktop.1", "exit 1"))
    assert [each.severity for each in docker.check(host())] == ["ok", "ok"]
    programs(docker=DOCKER % ("19.3.9", "{}", "2.5.0", "exit 1"))
    findings = docker.check(host())
    assert [each.severity for each in findings] == ["warning", "warning"]
    assert findings[0].required == "20.10 or later"


def test_no_docker_is_an_error_only_where_it_is_asked_for(programs: Programs, host: Hosts) -> None:
    assert one(docker.check(host()), "ok").found.startswith("not used: the services run as processes")
    assert "STACK_ENGINE=process" in one(docker.check(host(engine="compose")), "error").remedy


def test_an_engine_that_does_not_answer_is_none_whatever_docker_ends_with(programs: Programs, host: Hosts) -> None:
    """As of docker's client 23 to 28.0."""
    for said in (
        """echo '{}'; echo 'permission denied while trying to connect to the Docker daemon' >&2""",
        """echo '{"ServerErrors": ["permission denied while trying to connect to the Docker daemon"]}'""",
    ):
        programs(docker=said)
        assert "this user may not use the Docker engine" in one(docker.check(host()), "ok").found
        assert "join the group docker" in one(docker.check(host(engine="compose")), "error").remedy
    programs(docker="echo '{}'")
    assert (
        one(docker.check(host()), "ok").found
        == "not used: the services run as processes (no Docker engine answers: it names no version)"
    )


def test_docker_without_compose(programs: Programs, host: Hosts) -> None:
    programs(docker="""case "$1" in info) echo '{"ServerVersion": "27.3.1"}';; *) exit 1;; esac""")
    assert "no Compose" in one(docker.check(host()), "warning").found
    assert "no Compose" in one(docker.check(host(engine="compose")), "error").found


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ('"OperatingSystem": "Docker Desktop", "SecurityOptions": ["name=seccomp"]', "Docker Desktop"),
        ('"OperatingSystem": "Ubuntu 24.04", "SecurityOptions": ["name=seccomp", "name=rootless"]', "rootless"),
    ],
)
def test_containers_that_this_host_does_not_reach(programs: Programs, host: Hosts, said: str, named: str) -> None:
    info = f'{{"ServerVersion": "27.3.1", {said}}}'
    programs(docker=f"""case "$1" in info) echo '{info}';; *) exit 1;; esac""")
    finding = one(docker.check(host()), "ok")
    assert finding.found.startswith("not used: the services run as processes")
    assert named in finding.found
    assert "STACK_ENGINE=process" in one(docker.check(host(engine="compose")), "error").remedy


# GPU


def test_a_good_gpu(programs: Programs, host: Hosts) -> None:
    programs(nvidia_smi=smi())
    assert [each.severity for each in gpu.check(host(device="auto"))] == ["ok"]


@pytest.mark.parametrize(
    ("wrong", "found", "remedy"),
    [
        ({"driver": "535.104.05"}, "535.104.05", "update the NVIDIA driver"),
        ({"capability": "7.5"}, "compute capability 7.5", "newer GPU"),
        ({"free": 9000}, "9000 of 23034 MiB are free", "nvidia-smi"),
        ({"total": 16000, "free": 15900}, "too small for every preset", "STACK_PRESET"),
    ],
)
def test_what_a_gpu_lacks(programs: Programs, host: Hosts, wrong: dict[str, object], found: str, remedy: str) -> None:
    programs(nvidia_smi=smi(**wrong))  # type: ignore[arg-type]
    finding = one(gpu.check(host(device="auto")), "error")
    assert found in finding.found
    assert remedy in finding.remedy


def test_no_gpu(programs: Programs, host: Hosts) -> None:
    assert "CPU" in one(gpu.check(host(device="auto")), "ok").found
    assert "STACK_DEVICE=cpu" in one(gpu.check(host(device="cuda")), "error").remedy
    programs(nvidia_smi="echo NVIDIA-SMI has failed because it could not communicate with the driver >&2; exit 9")
    assert "could not communicate" in one(gpu.check(host(device="cuda")), "error").found
    programs(nvidia_smi="echo [N/A]")
    assert "[N/A]" in one(gpu.check(host(device="cuda")), "unchecked").found


def test_a_gpu_that_containers_do_not_see(programs: Programs, host: Hosts) -> None:
    programs(nvidia_smi=smi(), docker=DOCKER % ("27.3.1", '{"nvidia":{},"runc":{}}', "2.29.7", "echo GPU 0: NVIDIA L4"))
    assert "NVIDIA L4" in one(gpu_in_container.check(host(device="auto")), "ok").found
    programs(docker=DOCKER % ("27.3.1", '{"runc":{}}', "2.29.7", "exit 1"))
    assert "nvidia-container-toolkit" in one(gpu_in_container.check(host(device="auto")), "error").remedy
    programs(docker=DOCKER % ("27.3.1", '{"nvidia":{}}', "2.29.7", "echo could not select device driver >&2; exit 125"))
    assert "could not select device" in one(gpu_in_container.check(host(device="auto")), "error").found


def test_without_an_image_the_gpu_in_containers_is_unchecked(programs: Programs, host: Hosts) -> None:
    programs(nvidia_smi=smi(), docker=NO_IMAGES % '{"ServerVersion": "27.3.1", "Runtimes": {"nvidia": {}}}')
    assert "make build" in one(gpu_in_container.check(host(device="auto")), "unchecked").found


# Memory, disk, ports, folders


@pytest.mark.parametrize(("available", "total", "severity"), [(8, 16, "ok"), (3, 16, "warning"), (3, 4, "error")])
def test_memory(host: Hosts, monkeypatch: pytest.MonkeyPatch, available: int, total: int, severity: str) -> None:
    @dataclass
    class Memory:
        available: int
        total: int

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(available * 2**30, total * 2**30))
    assert one(memory.check(host()), severity).found == f"{available:.1f} of {total:.1f} GiB are available"


def test_a_full_disk_is_told_for_images_and_for_caches(
    programs: Programs, host: Hosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100 * 2**30, 100 * 2**30, 0))
    programs(docker=NO_IMAGES % f'{{"ServerVersion": "27.3.1", "DockerRootDir": "{tmp_path}"}}')
    findings = disk.check(host(engine="compose"))
    assert {each.check for each in findings if each.severity == "error"} == {"disk for images", "disk for caches"}
    assert all("0 GiB free" in each.found for each in findings)
    findings = disk.check(host({"HF_HUB_OFFLINE": "1"}, **GATED))
    assert "disk for models" in {each.check for each in findings if each.severity == "error"}


def test_a_taken_port_names_its_owner(host: Hosts) -> None:
    with taken_port() as port:
        finding = one(ports.check(host(engine="process", vllm_port=port)), "error")
    assert f"process {os.getpid()}" in finding.found
    assert "STACK_VLLM_PORT" in finding.remedy


def test_a_folder_that_cannot_be_written(host: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in one(caches.check(host(engine="process", state=tmp_path / "file")), "error").found
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"user {os.getuid()} cannot write" in one(caches.check(host(engine="process")), "error").found


def test_a_cache_on_a_read_only_disk(host: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache" / "vllm"))
    with read_only(tmp_path / "cache"):
        finding = one(caches.check(host(engine="process")), "error")
        assert finding.found == f"{tmp_path / 'cache'} is on a read-only file system"
        assert "VLLM_CACHE_ROOT" in finding.remedy
        with pytest.raises(ChecksFailed, match="read-only"):
            caches.require(host(engine="process"))


def test_a_disk_that_is_full(host: Hosts, tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", 1024) as full:
        (full / "filler").write_bytes(bytes(1000 * 1024))
        assert "0.00 GiB free" in one(disk.check(host(engine="process")), "error").found
        with pytest.raises(ChecksFailed, match=r"0\.00 GiB.*STACK_STATE"):
            caches.require(host(engine="process"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "told"), [("full", "0.00 GiB free"), ("read-only", "Read-only file system")])
def test_up_on_such_a_disk_starts_nothing(tmp_path: Path, kind: str, told: str) -> None:
    """The command as people have it: one line, no traceback, and no half-written state."""
    state = tmp_path / "state"
    with small_disk(state, 1024) if kind == "full" else read_only(state):
        if kind == "full":
            (state / "filler").write_bytes(bytes(1000 * 1024))
        variables = {"STACK_STATE": str(state), "STACK_ENGINE": "process", "STACK_DEVICE": "cpu"}
        command = [sys.executable, "-m", "scripts", "up"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
        assert done.returncode == 1
        assert told in done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert not list(state.glob("processes/*.json"))


VOLUMES = """
case "$*" in
  "volume ls"*) echo PROJECT_hub-cache; echo PROJECT_vllm-cache; echo others_vllm-cache;;
  "image inspect"*) echo '[{}]';;
  "run "*PROJECT_hub-cache*) exit 1;;
  "run "*) exit 0;;
  *) exit 1;;
esac
"""


def test_a_volume_that_the_containers_user_cannot_write(programs: Programs, host: Hosts) -> None:
    here = host(engine="compose")
    project = compose_project.project_name(here.settings.state)
    programs(docker=VOLUMES.replace("PROJECT", project))
    findings = caches.volumes(here)
    assert one(findings, "ok").found == f"{project}_vllm-cache can be written"
    assert f"{project}_hub-cache: the container's user" in one(findings, "error").found
    assert f"`make fetch` gets again: docker volume rm {project}_hub-cache" in one(findings, "error").remedy
    assert "others" not in str(findings)


# The stack in containers

CONTAINERS = """
case "$*" in
  info*) echo '{"ServerVersion": "27.3.1", "DockerRootDir": "ROOT"}';;
  "image inspect"*) echo "Error: No such image: $3" >&2; exit 1;;
  "ps "*project=PROJECT*service=vllm*Ports*) echo "127.0.0.1:PUBLISHED->8000/tcp, 8001/tcp";;
  "ps "*project=PROJECT*service=vllm*) echo 0123456789ab;;
  "ps "*) ;;
  "volume ls"*) echo PROJECT_hub-cache;;
  "run "*PROJECT_hub-cache*readonly*google--gemma-3n-E4B-it*) echo IN_VOLUME;;
  *) exit 1;;
esac
"""


@pytest.fixture
def containers(programs: Programs, host: Hosts, tmp_path: Path) -> Hosts:
    """A host whose Docker runs this stack's vLLM, and has its model in a volume."""

    def make(
        variables: Mapping[str, str] | None = None, published: int = 0, in_volume: str = "there", **settings: object
    ) -> Context:
        context = host(variables, **{"engine": "compose", **settings})
        script = CONTAINERS.replace("PROJECT", compose_project.project_name(context.settings.state))
        script = script.replace("PUBLISHED", str(published)).replace("IN_VOLUME", in_volume)
        programs(docker=script.replace("ROOT", str(tmp_path)), nvidia_smi=smi(free=3000))
        started = context.settings.state / "containers" / "vllm.json"
        started.parent.mkdir(parents=True, exist_ok=True)
        started.touch()
        return context

    return make


def test_the_stacks_own_container_may_have_the_gpu_and_the_memory(
    containers: Hosts, host: Hosts, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: argparse.Namespace(available=2**30, total=2**32))
    here = containers(device="auto")
    assert [each.severity for each in (*gpu.check(here), *memory.check(here))] == ["ok", "ok"]
    programs(docker="exit 0")  # it has ended
    assert "3000 of 23034 MiB are free" in one(gpu.check(here), "error").found
    assert one(memory.check(here), "warning").found == "1.0 of 4.0 GiB are available"


def test_containers_use_no_port_of_this_host_unless_published(containers: Hosts) -> None:
    with taken_port() as port:
        assert {each.severity for each in ports.check(containers(vllm_port=port))} == {"ok"}
        assert "STACK_VLLM_PORT" in one(ports.check(containers(vllm_port=port, publish=True)), "error").remedy
        own = ports.check(containers(vllm_port=port, publish=True, published=port))
        assert {each.found for each in own} == {"free", "vllm of this stack listens"}


def test_a_service_elsewhere_uses_no_port_of_this_host(host: Hosts) -> None:
    with taken_port() as port:
        here = host({"SPOTTER_MODEL_URL": "http://192.0.2.1/v1"}, engine="process", vllm_port=port)
        assert {each.severity for each in ports.check(here)} == {"ok"}


def test_containers_need_no_cache_of_this_host(programs: Programs, host: Hosts, tmp_path: Path) -> None:
    """Also where nobody asked for containers, but Docker is there and has the images."""
    (tmp_path / "hf").touch()  # where processes would keep models: a file
    programs(docker=DOCKER % ("27.3.1", "{}", "2.29.7", "exit 0"))
    assert {each.severity for each in caches.check(host(engine="auto", preset="l4"))} == {"ok"}
    assert "is a file" in one(caches.check(host(engine="process", preset="l4")), "error").found


def test_a_model_in_the_containers_volume_is_there(containers: Hosts, simulated_hub: Hub) -> None:
    here = containers({"HF_ENDPOINT": simulated_hub.url}, preset="l4")
    assert one(hub.check(here), "ok").found.startswith("no request needed")
    assert "disk for models" not in {each.check for each in disk.check(here)}
    assert simulated_hub.asked == []


def test_a_model_in_this_hosts_cache_is_not_there_for_containers(
    containers: Hosts, simulated_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not see that cache: theirs is in a volume, below the engine's root."""
    cache_model(tmp_path / "hf" / "hub", "google/gemma-3n-E4B-it", "c1221e9c62e34a43ab7ffacd1be0ea71f126ef10")
    here = containers({"HF_ENDPOINT": simulated_hub.url}, in_volume="", preset="l4")
    assert "can be fetched" in one(hub.check(here), "ok").found
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=2**29 if path == tmp_path else 2**40))
    full = {each.check for each in disk.check(here) if each.severity == "error"}
    assert full == {"disk for images", "disk for caches", "disk for models"}


# The hub


@dataclass
class Hub:
    """A hub that answers every HEAD alike; remembers what was asked."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def simulated_hub() -> Iterator[Hub]:
    """The hub, on loopback."""
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            state.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "code", "token", "found", "remedy"),
    [
        pytest.param(401, "GatedRepo", None, "is gated, and there is no hub token", "set HF_TOKEN", id="no token"),
        pytest.param(403, "GatedRepo", "hf_x", "has not accepted the licence", "accept the licence", id="no licence"),
        pytest.param(404, "RevisionNotFound", "hf_x", "no such revision", "correct `revision:`", id="no revision"),
        pytest.param(401, "RepoNotFound", None, "no such model", "correct `model:`", id="no model"),
        pytest.param(401, None, "hf_x", "refuses the token", "make a new token", id="bad token"),
        pytest.param(404, "EntryNotFound", None, "has no config.json", "correct `model:`", id="no config"),
    ],
)
def test_the_hubs_refusals_are_told_apart(
    host: Hosts, simulated_hub: Hub, status: int, code: str | None, token: str | None, found: str, remedy: str
) -> None:
    simulated_hub.status = status
    simulated_hub.headers = {"X-Error-Code": code} if code else {}
    variables = {"HF_ENDPOINT": simulated_hub.url, **({"HF_TOKEN": token} if token else {})}
    finding = one(hub.check(host(variables, **GATED)), "error")
    assert found in finding.found
    assert remedy in finding.remedy
    ((path, authorization),) = simulated_hub.asked  # once: a refusal is not tried again
    assert path.startswith("/google/gemma-3n-E4B-it/resolve/c1221e9c62e34a43")
    assert authorization == (f"Bearer {token}" if token else None)
    assert "hf_x" not in str(finding)


@pytest.mark.parametrize("status", [200, 302, 307])
def test_a_model_that_can_be_fetched(host: Hosts, simulated_hub: Hub, status: int) -> None:
    simulated_hub.status = status
    simulated_hub.headers = {"Location": "http://127.0.0.1:9/"} if status > 300 else {}
    assert "can be fetched" in one(hub.check(host({"HF_ENDPOINT": simulated_hub.url}, **GATED)), "ok").found


def test_the_hub_is_not_asked_without_need(host: Hosts, simulated_hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": simulated_hub.url}
    assert one(hub.check(host(variables, engine="process")), "ok").found.startswith(
        "no request needed"
    )  # the CPU preset's model is a folder
    assert "HF_HUB_OFFLINE" in one(hub.check(host({**variables, "HF_HUB_OFFLINE": "1"}, **GATED)), "unchecked").found
    cache_model(tmp_path / "hf" / "hub", "google/gemma-3n-E4B-it", "c1221e9c62e34a43ab7ffacd1be0ea71f126ef10")
    assert one(hub.check(host({**variables, "HF_HUB_OFFLINE": ""}, **GATED)), "ok").found.startswith(
        "no request needed"
    )
    assert simulated_hub.asked == []


def test_a_hub_that_cannot_be_reached_is_unchecked(host: Hosts) -> None:
    finding = one(hub.check(host({"HF_ENDPOINT": "http://127.0.0.1:9"}, **GATED)), "unchecked")
    assert "cannot be reached" in finding.found


# Clock, proxy, locks


def test_the_clock(host: Hosts, simulated_hub: Hub) -> None:
    context = host({"HF_ENDPOINT": simulated_hub.url}, preset="l4")
    assert one(clock.check(context), "ok").found.startswith("within")
    assert "s ahead" in one(clock.check(context, lambda: time.time() + 3600), "error").found
    assert "1970-01-01" in one(clock.check(context, lambda: 0.0), "error").found


@pytest.mark.parametrize(
    ("variables", "severity"),
    [
        ({}, "ok"),
        ({"HTTPS_PROXY": "http://user:secret@proxy:3128", "NO_PROXY": "127.0.0.1,localhost"}, "ok"),
        ({"https_proxy": "http://user:secret@proxy:3128", "no_proxy": "example.org"}, "warning"),
    ],
)
def test_the_proxy(host: Hosts, variables: dict[str, str], severity: str) -> None:
    finding = one(proxy.check(host(variables)), severity)
    assert "secret" not in str(finding)


def test_the_locks_are_in_step_and_a_change_is_seen(tmp_path: Path) -> None:
    assert locks.missing_pins(ROOT / "pyproject.toml", LOCKS) == {}
    changed = tmp_path / "pyproject.toml"
    changed.write_text((ROOT / "pyproject.toml").read_text().replace("mosec==0.9.8", "mosec==9.9.9"))
    assert locks.missing_pins(changed, LOCKS) == {
        name: ["mosec==9.9.9"] for name in ("detector-cpu", "detector-torch-cpu", "detector-cuda")
    }


# All of them


def test_a_check_that_fails_is_never_green(host: Hosts) -> None:
    def broken(_: Context) -> list[Finding]:
        raise RuntimeError("no idea")

    findings = command.examine(host(), {"fine": lambda _: [Finding("fine", "ok", "yes")], "broken": broken})
    assert [(each.check, each.severity) for each in findings] == [("fine", "ok"), ("broken", "unchecked")]
    assert "RuntimeError: no idea" in findings[1].found


@pytest.mark.slow
def test_a_check_that_hangs_does_not_hold_up_the_others(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LIMIT_S", 1.0)
    release, ended = threading.Event(), threading.Event()

    def hanging(_: Context) -> list[Finding]:
        release.wait(60)
        ended.set()
        return []

    findings = command.examine(host(), {"hanging": hanging, "fine": lambda _: [Finding("fine", "ok", "yes")]})
    assert not ended.is_set()
    release.set()
    assert {each.check: each.severity for each in findings} == {"hanging": "unchecked", "fine": "ok"}


def test_the_report_and_its_exit_code(programs: Programs, host: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    shown = io.StringIO()
    settings = host(engine="compose").settings
    assert command.run(settings, Console(file=shown, width=200)) == 1
    assert "do: install Docker Engine" in shown.getvalue()
    assert command.run(settings, Console(file=shown), json_output=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {"check", "severity", "found", "required", "remedy"} == set(report["findings"][0])


def test_a_finding_that_complains_must_help() -> None:
    with pytest.raises(ValueError, match="needs `required` and `remedy`"):
        Finding("x", "error", "broken")
    assert exit_code([Finding("x", "unchecked", "?"), Finding("y", "warning", "a", "b", "c")]) == 0


def test_the_doctor_changes_nothing(host: Hosts, tmp_path: Path) -> None:
    context = host(engine="process")
    before = sorted(tmp_path.rglob("*"))
    command.examine(context)
    assert sorted(tmp_path.rglob("*")) == before
