"""What `up` and `run` take into account before anything starts: the job's options, `.env`, no network."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import yaml
from pydantic import ValidationError
from python_on_whales import DockerException
from rich.console import Console

from scripts import __main__ as operator
from scripts import settings
from scripts.checks.doctor import caches, disk, hub
from scripts.checks.preflight import command
from scripts.commands import build, down, engines, fetch, logs, status, up
from scripts.docker import containers, images
from scripts.docker import engine as compose_engine
from scripts.docker import host as docker_host
from scripts.docker.containers import ContainerEngine
from scripts.environments import ROOT
from scripts.findings import Finding
from scripts.services import KINDS
from scripts.settings import BuildFailed, ChecksFailed, NotRemoved, NotRunning, ServiceDied, StackSettings, load_job
from scripts.stack import api_key
from scripts.stack.engine import Engine
from scripts.stack.process_engine import ProcessEngine, Started
from scripts.stack.service import Service
from scripts.stack.services import Stack, make_stack
from scripts.stack.start_history import StartHistory
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.stack.warmup import is_ready
from scripts.vllm import compile_cache
from scripts.vllm.compile_cache import Kept
from tests.ports import free_port

DOG_BREEDS = ROOT / "pipeline" / "jobs" / "dog_breeds.yaml"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that the code under test sets go with the test."""
    for name in settings.OFFLINE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_job_in_the_options_is_the_one_that_is_checked(tmp_path: Path) -> None:
    job = yaml.safe_load(DOG_BREEDS.read_text())
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(job | {"max_tokens": 2000}))
    given = StackSettings(device="cpu", preset="cpu")
    assert {each.severity for each in command.preflight(given).findings} == {"ok"}
    asked = load_job(["--job", str(tmp_path / "long.yaml"), "--retry-failed"])
    finding = command.preflight(given.for_job(asked.settings)).findings[0]
    assert finding.severity == "error"
    assert "needs at least" in finding.found
    assert {each.severity for each in command.preflight(given).findings} == {"ok"}  # it changed nothing


def test_a_server_elsewhere_in_the_options_is_not_started(tmp_path: Path) -> None:
    asked = load_job(["--model-url=http://192.0.2.1:8000/v1"])
    given = StackSettings(state=tmp_path, engine="process", device="cpu").for_job(asked.settings)
    assert [service.name for service in engines.plan(given)[0].services] == [name for name in KINDS if name != "vllm"]


def test_options_win_over_the_variables_of_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTTER_MODEL_URL", "http://192.0.2.1:8000/v1")
    default = str(load_job().settings.__class__.model_fields["model_url"].default)
    asked = load_job([f"--model-url={default}"])
    assert StackSettings().for_job(asked.settings).user_variables("SPOTTER_")["SPOTTER_MODEL_URL"] == default


def test_options_that_leave_the_stack_as_it_is_set_nothing() -> None:
    asked = load_job(["--run-name", "x", "--force"])
    assert StackSettings().for_job(asked.settings).user_variables("SPOTTER_") == {}
    assert not [name for name, value in os.environ.items() if name.startswith("SPOTTER_") and value]


def test_settings_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("SPOTTER_JOB=of_file\nSPOTTER_MODEL=of_file\n")
    monkeypatch.setattr(settings, "ENV_FILE", tmp_path / ".env")
    monkeypatch.setenv("SPOTTER_JOB", "of_environment")
    monkeypatch.delenv("SPOTTER_MODEL", raising=False)  # empty over a developer's .env
    given = StackSettings()
    monkeypatch.setenv("SPOTTER_JOB", "later")
    (tmp_path / ".env").unlink()
    assert given.user_variables("SPOTTER_") == {"SPOTTER_JOB": "of_environment", "SPOTTER_MODEL": "of_file"}
    with pytest.raises(ValidationError, match="frozen"):
        given.preset = "l4"  # type: ignore[misc]


def test_a_token_in_the_env_file_alone_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"HF_TOKEN=hf_file\nHF_HOME={tmp_path}\n")
    monkeypatch.setattr(settings, "ENV_FILE", tmp_path / ".env")
    for name in ("HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    given = StackSettings(state=tmp_path)
    server = command.server_of(VLLM_PRESETS / "l4.yaml", "cuda", [], environment=given.environment)
    assert server.environment["HF_TOKEN"] == "hf_file"
    assert server.environment["HF_HOME"] == str(tmp_path)
    for service in make_stack(given, "cuda", "l4", {}).services:
        variables = dict(service.variables)
        assert variables["HF_HOME"] == str(tmp_path)
        assert variables["HF_HUB_OFFLINE"] == "1"
        assert "HF_TOKEN" not in variables


def test_offline_builds_no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "is_current", lambda image: False)
    monkeypatch.setattr(images, "build", lambda *_: pytest.fail("built"))
    engine = compose_engine.ComposeEngine(StackSettings(state=tmp_path, offline=True), "cpu", "cpu")
    with pytest.raises(BuildFailed, match="spotter-vllm-cpu:local: "):
        engine.ensure_images([images.IMAGES["vllm-cpu"]])
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    settings = StackSettings(state=tmp_path, device="cpu", offline=True)
    with pytest.raises(BuildFailed, match=r"spotter-vllm-cpu:local.*STACK_OFFLINE"):
        build.run(settings, Console(file=io.StringIO()))


def test_offline_looks_for_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_host, "fault", lambda: None)
    monkeypatch.setattr(images, "has", lambda tag: False)
    monkeypatch.setattr(images, "why_not_buildable", lambda images: pytest.fail("looked"))
    assert "STACK_OFFLINE" in (compose_engine.why_not(StackSettings(offline=True), "cpu") or "")


def test_offline_is_told_to_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_OFFLINE", "1")
    given = settings.load()
    assert {name: os.environ[name] for name in settings.OFFLINE} == settings.OFFLINE
    assert given.environment["HF_HUB_OFFLINE"] == "1"


class Recording:
    """An engine whose services start at once; it writes down what is done, in order."""

    name = "recording"

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.calls: list[str] = []
        self.preflights: list[str] = []
        self.kept: list[Kept] = []

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
        return self.kept

    def names(self) -> list[str]:
        return list(KINDS)

    def is_running(self, name: str) -> bool:
        return False


ORDERS: dict[str, tuple[dict[str, object], str, list[str]]] = {
    "a CPU": ({}, "cpu", ["start detector", "start vllm"]),
    "two on a CPU": ({"replicas": 2}, "cpu", ["start detector", "start vllm", "start vllm-2"]),
    "a GPU": ({}, "l4", ["start detector", "wait for detector", "start vllm"]),
    "GPUs of one kind": (
        {"gpus": "0,2,4"},
        "l4",
        ["start detector", "wait for detector", "start vllm", "wait for vllm", "start vllm-2", "start vllm-3"],
    ),
    "GPUs of one kind with a filled cache": (
        {"gpus": "0,2,4"},
        "l4",
        ["start detector", "wait for detector", "start vllm", "start vllm-2", "start vllm-3"],
    ),
    "GPUs of two kinds": (
        {"gpus": "0,1,2"},
        "l4",
        [
            *("start detector", "wait for detector"),
            *("start vllm", "start vllm-2", "wait for vllm, vllm-2", "start vllm-3"),
        ],
    ),
    "GPUs of one kind without compiling": (
        {"gpus": "0,2,4", "start": "fast"},
        "l4",
        ["start detector", "wait for detector", "start vllm", "start vllm-2", "start vllm-3"],
    ),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_order_of_a_start(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU vLLM takes a share of the memory that is free: the detector must have its own by then.

    Where servers share a cold compile cache, one fills it before the others start.
    """
    given, preset, starts = ORDERS[case]
    monkeypatch.setattr(compile_cache, "gpu", lambda number: ("NVIDIA L4", "NVIDIA L40")[number % 2])
    settings = StackSettings.model_validate({"state": tmp_path, **given})
    api_key.settle(settings)
    engine = Recording(settings)
    made = make_stack(settings, "cpu" if preset == "cpu" else "cuda", preset, {})
    if case.endswith("a filled cache"):
        engine.kept = [Kept(made.services[1].cache, 1)]
        StartHistory(tmp_path).add("recording/vllm/l4", made.services[1].fingerprint, 60.0, {})
    start_with(engine, made, monkeypatch)
    up.up(settings, Console(file=io.StringIO()), load_job())
    before = ["claim", "see that it can be prepared", "prepare"]
    assert engine.calls == [*before, *starts, f"wait for {', '.join(each.name for each in made.services)}"]


def start_with(engine: Recording, made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `up` start a stack on an engine that records what it is asked for, with all checks passed."""

    def wait(_: Engine, services: list[Service], *__: object, **___: object) -> None:
        engine.calls.append(f"wait for {', '.join(service.name for service in services)}")

    monkeypatch.setattr(up, "plan", lambda _: (made, engine, "as a test"))
    monkeypatch.setattr(up, "wait", wait)
    monkeypatch.setattr(up, "is_ready", lambda _: True)
    monkeypatch.setattr(up, "engines_in_use", lambda _: [])
    monkeypatch.setattr(caches, "require", lambda _: None)
    monkeypatch.setattr(command, "require", lambda *_, **__: engine.preflights.append("preflight"))
    monkeypatch.setattr(fetch, "ensure", lambda *_, **__: [])
    monkeypatch.setattr(up, "refuse_in_vain", lambda _: engine.calls.append("see that it can be prepared"))


def test_a_server_that_died_starts_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutOne(Recording):
        def is_current(self, service: Service) -> bool:
            return service.name != "vllm-2"

        def stop(self, name: str, grace_s: float) -> bool:  # children that outlived it
            return name == "vllm-2"

    settings = StackSettings(state=tmp_path, replicas=3)
    engine, made = WithoutOne(settings), make_stack(settings, "cpu", "cpu", {})
    start_with(engine, made, monkeypatch)
    up.up(settings, Console(file=(said := io.StringIO())), load_job())
    wait_for_all = "wait for detector, vllm, vllm-2, vllm-3"
    assert engine.calls[-2:] == ["start vllm-2", wait_for_all]
    assert engine.calls.count("start vllm-2") == len([call for call in engine.calls if call.startswith("start")])
    assert engine.preflights == ["preflight"]
    assert "vllm-2: has ended, starts anew\n" in said.getvalue()


def test_servers_that_the_settings_no_longer_name_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithMore(Recording):
        def names(self) -> list[str]:
            return [*KINDS, "vllm-2", "vllm-3"]

        def is_current(self, service: Service) -> bool:
            return True

        def stop(self, name: str, grace_s: float) -> bool:
            self.calls.append(f"stop {name} within {grace_s:.0f} s")
            return True

    settings = StackSettings(state=tmp_path, replicas=2)
    engine, said = WithMore(settings), io.StringIO()
    start_with(engine, make_stack(settings, "cpu", "cpu", {}), monkeypatch)
    up.up(settings, Console(file=said), load_job())
    assert engine.calls == ["stop vllm-3 within 75 s"]
    assert said.getvalue() == "vllm-3: stopped, since the settings name fewer servers\n"


def test_each_server_is_shown_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    """`status` and `logs` with two servers that answer, one that has ended, and one that is too many."""
    monkeypatch.setenv("SPOTTER_JOB", "dog_breeds")
    settings = StackSettings(state=tmp_path, engine="process", device="cpu", replicas=3, vllm_port=free_port())
    stack, engine, _ = engines.plan(settings)
    for service in stack.services[1:]:
        processes(engine, service, HEALTHY)
    engine.stop("vllm-3", 1)
    engine.write_record("vllm-3", Started(1, 0.0, ""))
    processes(engine, replace(stack.services[1], name="vllm-4", port=free_port()), HEALTHY)
    said = io.StringIO()
    status.run(settings, Console(file=said, width=200))
    rows = {line.split()[0]: line for line in said.getvalue().splitlines()}
    assert list(rows) == ["service", "detector", "vllm", "vllm-2", "vllm-3", "vllm-4"]
    for service in stack.services[1:3]:
        assert " ready " in rows[service.name]
        assert f"http://127.0.0.1:{service.port} " in rows[service.name]
        assert rows[service.name].rstrip().endswith(f"{service.name}.log")
    assert " ended by itself " in rows["vllm-3"]
    assert " the settings name fewer servers: make up stops it " in rows["vllm-4"]
    shown: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(ProcessEngine, "show_logs", lambda _, names, follow: shown.append((list(names), follow)))
    for name in (None, "vllm-2"):
        logs.run(settings, Console(), service=name, follow=False)
    assert shown == [(["detector", "vllm", "vllm-2", "vllm-3", "vllm-4"], False), (["vllm-2"], False)]
    with pytest.raises(NotRunning, match="no service vllm-9: name one of detector, vllm, vllm-2, vllm-3, vllm-4"):
        logs.run(settings, Console(), service="vllm-9", follow=False)
    down.run(settings, Console(file=(ended := io.StringIO())))
    assert ended.getvalue() == "stopped vllm, vllm-2, vllm-4\n"


# A server whose health check is content.
HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

Processes = Callable[[Engine, Service, str], None]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Start programs in the place of services; all are stopped in the end."""
    engine = ProcessEngine(StackSettings(state=tmp_path))

    def start(_: Engine, service: Service, code: str) -> None:
        engine.start(replace(service, command=(sys.executable, "-c", code, str(service.port))))
        started = engine.started(service.name)
        assert started is not None
        engine.write_record(service.name, replace(started, fingerprint=service.fingerprint))
        deadline = time.monotonic() + 60
        while not is_ready(service) and time.monotonic() < deadline:
            time.sleep(0.05)

    yield start
    for name in engine.names():
        engine.stop(name, 1)


@pytest.mark.parametrize(("job", "boxes"), [("visual_qa", ""), ("cars.yaml", "boxes: input")])
@pytest.mark.parametrize("runs", [False, True])
def test_a_job_that_asks_no_detector_starts_none_and_stops_none(
    job: str, boxes: str, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cars.yaml").write_text(f"label: car\n{boxes}\n" + without_label(DOG_BREEDS))

    class Running(Recording):
        def is_running(self, name: str) -> bool:
            return runs and name == "detector"

        def tear_down(self) -> None:
            self.calls.append("tear down")

    engine = Running(StackSettings(state=tmp_path))
    made = make_stack(StackSettings(state=tmp_path), "cpu", "cpu", {})
    monkeypatch.setattr(up, "plan", lambda _: (made, engine, "as a test"))
    monkeypatch.setattr(up, "wait", lambda *_, **__: (_ for _ in ()).throw(ServiceDied("vllm ended")))
    monkeypatch.setattr(up, "engines_in_use", lambda _: [])
    monkeypatch.setattr(caches, "require", lambda _: None)
    monkeypatch.setattr(command, "require", lambda *_, **__: None)
    monkeypatch.setattr(fetch, "ensure", lambda *_, **__: [])
    monkeypatch.setattr(up, "refuse_in_vain", lambda _: None)
    said = io.StringIO()
    with pytest.raises(ServiceDied):
        up.up(StackSettings(state=tmp_path), Console(file=said, width=200), load_job(["--job", job]))
    torn_down = [] if runs else ["tear down"]  # a network that the detector uses stays
    assert engine.calls == ["claim", "prepare", "start vllm", *torn_down]
    assert (f"detector: not started, since job {job} does not need it" in said.getvalue()) is not runs


def without_label(path: Path) -> str:
    """A job file without the line of its label."""
    return "".join(line for line in path.read_text().splitlines(True) if not line.startswith("label:"))


@pytest.mark.parametrize(("job", "told"), [("dog_breeds", False), ("visual_qa", True), ("no_such_job", False)])
def test_status_says_that_a_job_needs_no_detector(
    job: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTTER_JOB", job)
    said = io.StringIO()
    status.run(StackSettings(state=tmp_path, engine="process", device="cpu"), Console(file=said, width=200))
    detector, vllm = (line for line in said.getvalue().splitlines() if line.startswith(("detector", "vllm")))
    assert ("the job does not need it" in detector) is told
    assert "the job does not need it" not in vllm


@pytest.mark.parametrize("check", [disk, hub])
def test_what_cannot_end_well_is_told_before_anything_is_made(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A licence that was not accepted, after 40 GiB of images."""
    for each in (disk, hub):
        monkeypatch.setattr(each, "check", lambda _: [])
    monkeypatch.setattr(check, "check", lambda _: [Finding("that", "error", "too little", "more", "get some")])
    settings = StackSettings(state=tmp_path)
    engine = Recording(settings)
    made = make_stack(settings, "cpu", "cpu", {})
    with pytest.raises(ChecksFailed, match=r"(?s)that: too little.*get some"):
        up.obtain(settings, cast(Engine, engine), made, list(made.services), Console(file=io.StringIO()))
    assert engine.calls == []


def test_why_a_start_failed_is_told_before_what_it_began_is_stopped_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []

    class Dying(Recording):
        def stop(self, name: str, grace_s: float) -> bool:
            told.append(capsys.readouterr().err)
            return False

        def is_running(self, name: str) -> bool:
            return True

    made = make_stack(StackSettings(state=tmp_path), "cpu", "cpu", {})
    monkeypatch.setattr(up, "plan", lambda _: (made, Dying(StackSettings(state=tmp_path)), "as a test"))
    monkeypatch.setattr(up, "wait", lambda *_, **__: (_ for _ in ()).throw(ServiceDied("vllm ended")))
    monkeypatch.setattr(up, "engines_in_use", lambda _: [])
    monkeypatch.setattr(up, "obtain", lambda *_: None)
    monkeypatch.setattr(caches, "require", lambda _: None)
    monkeypatch.setattr(command, "require", lambda *_, **__: None)
    monkeypatch.setenv("STACK_STATE", str(tmp_path))
    assert operator.main(["up"]) == 1
    assert "error: vllm ended\n" in told
    assert capsys.readouterr().err == ""


def test_a_command_that_waits_for_another_says_so(tmp_path: Path) -> None:
    said, first, ended = io.StringIO(), threading.Event(), threading.Event()
    settings = StackSettings(state=tmp_path)

    def hold() -> None:
        with engines.one_at_a_time(settings, Console(file=io.StringIO())):
            first.set()
            ended.wait(60)

    def end_when_told() -> None:
        while "another command is changing the stack" not in said.getvalue():
            ended.wait(0.02)
        ended.set()

    for target in (hold, end_when_told):
        threading.Thread(target=target, daemon=True).start()
        assert first.wait(60)
    with engines.one_at_a_time(settings, Console(file=said)):
        assert ended.is_set()


def test_images_of_a_device_are_built_on_a_host_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    monkeypatch.setattr(build, "find_gpus", lambda _: [])
    monkeypatch.setattr(images, "ensure", lambda wanted, *_, **__: built.extend(image.name for image in wanted))
    monkeypatch.setattr(images, "find", lambda _: None)
    build.run(StackSettings(state=tmp_path, device="cuda"), Console(file=io.StringIO()))
    assert built == [*(kind.image("cuda").name for kind in KINDS.values()), "pipeline"]


def test_what_a_cut_off_job_left_is_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep the other engine from starting."""
    monkeypatch.setattr(docker_host, "answers", lambda: True)
    engine = compose_engine.ComposeEngine(StackSettings(state=tmp_path), "cpu", "cpu")
    engine.jobs.mkdir(parents=True)
    (engine.jobs / "spotter-job-1.json").touch()
    assert engines.engines_in_use(StackSettings(state=tmp_path)) == []
    monkeypatch.setattr(compose_engine, "left_over", lambda _: ([], []))
    engine.tear_down()
    assert not engine.jobs.exists()


def test_a_full_disk_keeps_no_container_from_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    class Stopping:
        id = "1"

        def remove(self, force: bool) -> None:
            calls.append("remove")

    (tmp_path / "logs").touch()  # where a folder is wanted: nothing can be written
    monkeypatch.setattr(ContainerEngine, "find", lambda *_: Stopping())
    monkeypatch.setattr(containers, "log", lambda *_: "said")
    monkeypatch.setattr(containers, "ask", lambda *asked: calls.append(" ".join(asked)))
    assert compose_engine.ComposeEngine(StackSettings(state=tmp_path), "cpu", "cpu").stop("vllm", 4.9)
    assert calls == ["stop --time 5 1", "remove"]
    assert "vllm: its log cannot be kept" in capsys.readouterr().err


class Failing:
    """An engine that cannot remove what it began."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def stop(self, name: str, grace_s: float) -> bool:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotRemoved("network abc cannot be removed"), "network abc cannot be removed"),
        (DockerException(["docker"], 1, stderr=b"warning\nno such engine\n"), "docker: no such engine"),
    ],
)
def test_a_failed_clean_up_hides_no_cause(error: Exception, told: str) -> None:
    said = io.StringIO()
    made = make_stack(StackSettings(), "cpu", "cpu", {})
    up.take_back(cast(Engine, Failing(error)), list(made.services), Console(file=said))
    assert said.getvalue() == f"not all of it could be taken down: {told}\n"


def test_services_are_stopped_side_by_side_and_all_of_them() -> None:
    both_stop = threading.Barrier(2, timeout=10)
    stopped = []

    class Stopping:
        def stop(self, name: str, grace_s: float) -> bool:
            both_stop.wait()
            if name == "vllm":
                raise NotRemoved("vllm cannot be stopped")
            stopped.append((name, grace_s))
            return True

    with pytest.raises(NotRemoved, match="vllm cannot"):
        engines.stop(cast(Engine, Stopping()), {"vllm": 1.0, "detector": 2.0})
    assert stopped == [("detector", 2.0)]


def test_what_docker_refuses_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise DockerException(["docker", "inspect"], 1, stderr=b"Cannot connect to the Docker daemon\n")

    monkeypatch.setattr(status, "run", refuse)
    assert operator.main(["status"]) == 1
    assert re.fullmatch(r"error: docker: Cannot connect to the Docker daemon -> .+\n", capsys.readouterr().err)
