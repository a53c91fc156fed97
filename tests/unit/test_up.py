"""What `up` and `run` take into account before anything starts: the job's options, `.env`, no network."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path
from typing import cast

import pytest
import yaml
from python_on_whales import DockerException
from rich.console import Console

from scripts import __main__ as operator
from scripts import compose_engine, docker_host, fetch, images, offline, settings, stack
from scripts.compile_cache import Kept
from scripts.doctor import caches
from scripts.engine import Engine
from scripts.environments import ROOT
from scripts.preflight import command
from scripts.services import VLLM_PRESETS, Service, make_stack
from scripts.settings import StackError, StackSettings, user_variables

DOG_BREEDS = ROOT / "pipeline" / "jobs" / "dog_breeds.yaml"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that the code under test sets go with the test."""
    for name in (*(f"SPOTTER_{each.upper()}" for each in stack.ADOPTED), *offline.VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_job_in_the_options_is_the_one_that_is_checked(tmp_path: Path) -> None:
    job = yaml.safe_load(DOG_BREEDS.read_text())
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(job | {"max_tokens": 2000}))
    settings = StackSettings(device="cpu", preset="cpu")
    assert [each.severity for each in command.preflight(settings).findings] == ["ok"]
    stack.adopt(["--job", str(tmp_path / "long.yaml"), "--retry-failed"])
    (finding,) = command.preflight(settings).findings
    assert finding.severity == "error"
    assert "needs at least" in finding.found


def test_a_server_elsewhere_in_the_options_is_not_started(tmp_path: Path) -> None:
    stack.adopt(["--model-url=http://192.0.2.1:8000/v1"])
    made = make_stack(StackSettings(state=tmp_path), "cpu", "cpu", user_variables("SPOTTER_"))
    assert [service.name for service in made.services] == ["detector"]


def test_options_that_leave_the_stack_as_it_is_set_nothing() -> None:
    stack.adopt(["--run-name", "x", "--force"])
    assert not [name for name in os.environ if name.startswith("SPOTTER_")]


def test_a_token_in_the_env_file_alone_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"HF_TOKEN=hf_file\nHF_HOME={tmp_path}\n")
    monkeypatch.setattr(settings, "ENV_FILE", tmp_path / ".env")
    for name in ("HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    server = command.server_of(VLLM_PRESETS / "l4.yaml", "cuda", [])
    assert server.environment["HF_TOKEN"] == "hf_file"
    assert server.environment["HF_HOME"] == str(tmp_path)
    made = make_stack(StackSettings(state=tmp_path), "cuda", "l4", {})
    for service in made.services:
        variables = dict(service.variables)
        assert variables["HF_HOME"] == str(tmp_path)
        assert variables["HF_HUB_OFFLINE"] == "1"
        assert "HF_TOKEN" not in variables


def test_offline_builds_no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "is_current", lambda image: False)
    monkeypatch.setattr(images, "build", lambda *_: pytest.fail("built"))
    engine = compose_engine.ComposeEngine(StackSettings(state=tmp_path, offline=True), "cpu", "cpu")
    with pytest.raises(StackError, match="spotter-vllm-cpu:local: not built from the files as they are now"):
        engine.ensure_images([images.IMAGES["vllm-cpu"]])
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    settings = StackSettings(state=tmp_path, device="cpu", offline=True)
    with pytest.raises(StackError, match=r"spotter-vllm-cpu:local.*: not built.*STACK_OFFLINE forbids the network"):
        stack.build(settings, Console(file=io.StringIO()))


def test_offline_looks_for_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    monkeypatch.setattr(images, "has", lambda tag: False)
    monkeypatch.setattr(images, "why_not_buildable", lambda device: pytest.fail("looked"))
    assert "STACK_OFFLINE" in (compose_engine.why_not("cpu", offline=True) or "")


def test_offline_is_told_to_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    offline.enforce()
    assert {name: os.environ[name] for name in offline.VARIABLES} == offline.VARIABLES
    makefile = (ROOT / "Makefile").read_text()
    for name in (
        "PIP_NO_INDEX",
        "UV_OFFLINE",
        "UV_PYTHON_DOWNLOADS",
    ):  # the Makefile makes the first environment itself
        assert f"export {name} := {offline.VARIABLES[name]}" in makefile


class Recording:
    """An engine whose services start at once; it writes down what is done, in order."""

    name = "recording"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, service: Service) -> None:
        self.calls.append(f"start {service.name}")

    def claim(self) -> None:
        self.calls.append("claim")

    def locate(self, service: Service) -> Service:
        return service

    def is_current(self, service: Service) -> bool:
        return False

    def stop(self, name: str, grace_s: float) -> bool:
        return False

    def prepare(self, services: list[Service]) -> None:
        self.calls.append("prepare")

    def prepared(self, services: list[Service]) -> list[str]:
        return []

    def compile_caches(self) -> list[Kept]:
        return []


@pytest.mark.parametrize(
    ("device", "preset", "expected"),
    [
        ("cpu", "cpu", ["start detector", "start vllm", "wait for detector, vllm"]),
        # vLLM takes a share of the memory that is free: the detector must have its own by then.
        (
            "cuda",
            "l4",
            ["start detector", "wait for detector", "start vllm", "wait for vllm", "wait for detector, vllm"],
        ),
    ],
)
def test_the_order_of_a_start(
    device: str, preset: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Recording()
    made = make_stack(StackSettings(state=tmp_path), device, preset, {})

    def wait(_: Engine, services: list[Service], *__: object, **___: object) -> None:
        engine.calls.append(f"wait for {', '.join(service.name for service in services)}")

    monkeypatch.setattr(stack, "plan", lambda _: (made, engine, "as a test"))
    monkeypatch.setattr(stack, "wait", wait)
    monkeypatch.setattr(stack, "engines_in_use", lambda _: [])
    monkeypatch.setattr(caches, "require", lambda _: None)
    monkeypatch.setattr(command, "require", lambda *_, **__: None)
    monkeypatch.setattr(fetch, "ensure", lambda *_, **__: [])
    stack.up(StackSettings(state=tmp_path), Console(file=io.StringIO()))
    assert engine.calls == ["claim", "prepare", *expected]


class Failing:
    """An engine that cannot remove what it began."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def stop(self, name: str, grace_s: float) -> bool:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StackError("network abc cannot be removed"), "network abc cannot be removed"),
        (DockerException(["docker"], 1, stderr=b"warning\nno such engine\n"), "docker: no such engine"),
    ],
)
def test_a_failed_clean_up_hides_no_cause(error: Exception, told: str) -> None:
    said = io.StringIO()
    made = make_stack(StackSettings(), "cpu", "cpu", {})
    stack.take_back(cast(Engine, Failing(error)), list(made.services), made, Console(file=said))
    assert said.getvalue() == f"not all of it could be taken down: {told}\n"


def test_services_are_stopped_side_by_side_and_all_of_them() -> None:
    both_stop = threading.Barrier(2, timeout=10)
    stopped = []

    class Stopping:
        def stop(self, name: str, grace_s: float) -> bool:
            both_stop.wait()
            if name == "vllm":
                raise StackError("vllm cannot be stopped")
            stopped.append((name, grace_s))
            return True

    with pytest.raises(StackError, match="vllm cannot"):
        stack.stop(cast(Engine, Stopping()), {"vllm": 1.0, "detector": 2.0})
    assert stopped == [("detector", 2.0)]


def test_what_docker_refuses_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise DockerException(["docker", "inspect"], 1, stderr=b"Cannot connect to the Docker daemon\n")

    monkeypatch.setattr(operator, "command", refuse)
    assert operator.main(["status"]) == 1
    assert re.fullmatch(r"error: docker: Cannot connect to the Docker daemon -> .+\n", capsys.readouterr().err)
