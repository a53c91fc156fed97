"""Which hosts can run the services as processes."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from scripts import environments
from scripts.settings import BuildFailed, StackSettings
from scripts.stack import hosts
from scripts.stack.hosts import refuse_host
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import make_stack

SERVICES = ("detector-cpu", "detector-torch-cpu", "detector-cuda", "vllm-cpu", "vllm-cuda")


def on(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    """Let this host be another."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize("name", SERVICES)
def test_linux_on_x86_has_all_environments(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    on(monkeypatch, "Linux", "x86_64")
    refuse_host(name)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "ppc64le")])
def test_other_hosts_are_told_what_works(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    """Before anything is downloaded."""
    on(monkeypatch, system, machine)
    monkeypatch.setattr(environments, "prepare", lambda name: pytest.fail("it was prepared"))
    settings = StackSettings()
    with pytest.raises(BuildFailed, match=rf"found {system} on {machine}: .*WSL 2.*SPOTTER_MODEL_URL"):
        ProcessEngine(settings).prepare(make_stack(settings, "cpu", "cpu", {}).services)


def test_on_arm_an_environment_whose_lock_lacks_its_wheel_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(monkeypatch, "Linux", "aarch64")
    monkeypatch.setattr(hosts, "LOCKS", tmp_path)
    first, second, after = (f" \\\n    --hash=sha256:{each}" for each in ("aa", "bb", "cc"))
    other = f"\ntqdm==4.70.1{after}\n"
    for name, pin in {
        "one": f"torch==2.13.0+cpu{first}{other}",
        "both": f"torch==2.13.0+cpu{first}{second}{other}",
        "cuda": f"torch===2.13.0{first}{other}",
    }.items():
        (tmp_path / f"{name}.lock").write_text(pin)
    refuse_host("both")
    refuse_host("cuda")
    with pytest.raises(BuildFailed, match="no hash of PyTorch's CPU build for aarch64: run `make lock`"):
        refuse_host("one")


@pytest.mark.parametrize("name", ["detector-cpu", "detector-cuda", "vllm-cuda"])
def test_on_arm_the_default_detector_and_the_gpu_environments_are_locked(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    on(monkeypatch, "Linux", "aarch64")
    refuse_host(name)
