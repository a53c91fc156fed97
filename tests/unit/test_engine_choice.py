"""Which engine runs the stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.commands import engines
from scripts.docker import engine as compose_engine
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.settings import NoEngine, StackSettings
from scripts.stack.services import make_stack

CACHED = (docker_host.client_config, docker_host.fault, docker_gpu.driver, images.why_not_buildable, images.at_registry)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for docker, first in the path, that fails at everything until a test writes another."""
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    write(fake, "exit 1")
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    for cached in CACHED:
        cached.cache_clear()
    yield fake
    for cached in CACHED:
        cached.cache_clear()


def write(fake: Path, script: str) -> None:
    """Make docker do this."""
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)


def script(info: str = "", compose: str = "v2.29.7", images: str = "*", context: str = "") -> str:
    """A docker whose engine tells this of itself, with this Compose and these images (a pattern of the shell)."""
    return f"""case "$*" in
info*) echo '{{"ServerVersion": "28.2.2"{info}}}';;
context*) echo {context};;
*"compose version"*) echo {compose};;
"image inspect "{images}) echo '[{{"Config": {{}}}}]';;
*) echo "Error: No such image: $3" >&2; exit 1;;
esac"""


def test_without_docker_processes_and_why(docker: Path, tmp_path: Path) -> None:
    engine, why = engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")
    assert engine.name == "process"
    assert "no Docker engine answers" in why


@pytest.mark.parametrize(
    ("complaint", "why"),
    [
        ("", "no Docker engine answers: it names no version"),
        ("permission denied", "this user may not use the Docker engine"),
    ],
)
def test_a_docker_without_an_engine_that_ends_with_0_is_none(
    docker: Path, tmp_path: Path, complaint: str, why: str
) -> None:
    """As of docker's client 23 to 28.0: a template is filled in with nothing."""
    write(docker, f"""case "$1" in info) echo '{{}}'; echo '{complaint}' >&2;; *) echo 28;; esac""")
    engine, reason = engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")
    assert engine.name == "process"
    assert reason.startswith(why)


def test_an_old_compose_is_told_before_it_fails(docker: Path, tmp_path: Path) -> None:
    write(docker, script(compose="v2.17.3"))
    with pytest.raises(NoEngine, match=r"v2\.17\.3.* 2\.20 "):
        engines.choose_engine(StackSettings(state=tmp_path, engine="compose"), "cpu", "cpu")


def test_a_docker_on_another_host_is_not_taken(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its variable, and by the context in use."""
    write(docker, script(context="tcp://gpu-7:2376"))
    assert engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")[1].startswith("this Docker is on gpu-7")
    for cached in CACHED:
        cached.cache_clear()
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/docker.sock")
    assert engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")[0].name == "compose"


def test_without_a_base_to_build_on_processes_and_why(docker: Path, tmp_path: Path) -> None:
    write(docker, script(images="none"))
    engine, why = engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")
    assert engine.name == "process"
    assert "no container registry can be reached" in why


def test_each_image_needs_its_own_base(docker: Path, tmp_path: Path) -> None:
    """vLLM on a GPU needs a base with a compiler, and vLLM's own image `docker load`."""
    settings, there = StackSettings(state=tmp_path), [images.OFFLINE_BASES["BASE_IMAGE"]]

    def choose(device: str, preset: str, settings: StackSettings = settings) -> tuple[str, str]:
        write(docker, script(info=', "Runtimes": {"nvidia": {}}', images='|"image inspect "'.join(there)))
        for cached in CACHED:
            cached.cache_clear()
        engine, why = engines.choose_engine(settings, device, preset)
        return engine.name, why

    assert choose("cpu", "cpu")[0] == "compose"
    engine, why = choose("cuda", "l4")
    assert engine == "process"
    assert "offline_base.py --cuda makes a base" in why
    there.append(images.COMPILER_BASE)
    assert choose("cuda", "l4")[0] == "compose"
    official = StackSettings(state=tmp_path, vllm_image="official")
    engine, why = choose("cuda", "l4", official)
    assert engine == "process"
    vllm = images.base_image("VLLM_IMAGE")
    assert why.startswith(f"no container registry can be reached for {vllm}; `docker pull {vllm}`")
    assert "offline_base" not in why
    there.append(vllm)
    assert choose("cuda", "l4", official)[0] == "compose"


def test_where_docker_has_the_images_containers(docker: Path, tmp_path: Path) -> None:
    write(docker, script())
    engine, why = engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")
    assert (engine.name, why) == ("compose", "Docker answers")


def test_a_gpu_needs_dockers_nvidia_runtime(docker: Path, tmp_path: Path) -> None:
    write(docker, script(info=', "Runtimes": {"runc": {}}, "DiscoveredDevices": null'))
    engine, why = engines.choose_engine(StackSettings(state=tmp_path), "cuda", "l4")
    assert engine.name == "process"
    assert "nvidia-container-toolkit" in why
    docker_gpu.driver.cache_clear()
    write(docker, script(info=', "DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}]'))
    assert engines.choose_engine(StackSettings(state=tmp_path), "cuda", "l4")[0].name == "compose"


@pytest.mark.parametrize(
    "said",
    [
        'could not select device driver "nvidia" with capabilities: [[gpu]]',
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object",
        "failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=0",
        'Auto-detected mode as "legacy"\nnvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0',
    ],
)
def test_a_gpu_that_docker_cannot_give_has_the_toolkits_remedy(tmp_path: Path, said: str) -> None:
    vllm = make_stack(StackSettings(state=tmp_path), "cuda", "l4", {}).services[1]
    assert "install nvidia-container-toolkit" in str(compose_engine.cannot_start(vllm, said))
    assert "nvidia" not in str(compose_engine.cannot_start(vllm, "port is already allocated"))


@pytest.mark.parametrize(
    ("system", "option", "named"),
    [
        ("Docker Desktop", "seccomp", "Docker Desktop keeps"),
        ("Ubuntu 24.04", "rootless", "a rootless Docker keeps"),
        ("Ubuntu 24.04", "userns", "this Docker's containers have other users"),
        ("Fedora", "selinux", "this Docker's SELinux keeps"),
    ],
)
def test_where_containers_and_host_do_not_reach_each_other_processes_and_why(
    docker: Path, tmp_path: Path, system: str, option: str, named: str
) -> None:
    """A start would wait for an answer until its time is up."""
    write(docker, script(info=f', "OperatingSystem": "{system}", "SecurityOptions": ["name={option}"]'))
    engine, why = engines.choose_engine(StackSettings(state=tmp_path), "cpu", "cpu")
    assert engine.name == "process"
    assert why.startswith(named)
    with pytest.raises(NoEngine, match=f"^{named} .*STACK_ENGINE=process"):
        engines.choose_engine(StackSettings(state=tmp_path, engine="compose"), "cpu", "cpu")


def test_the_engine_that_is_asked_for_or_none(docker: Path, tmp_path: Path) -> None:
    with pytest.raises(NoEngine, match="STACK_ENGINE=process"):
        engines.choose_engine(StackSettings(state=tmp_path, engine="compose"), "cpu", "cpu")
    write(docker, script())
    engine, why = engines.choose_engine(StackSettings(state=tmp_path, engine="process"), "cpu", "cpu")
    assert (engine.name, why) == ("process", "STACK_ENGINE=process")
