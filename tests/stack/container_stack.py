"""The stack in containers, where a Docker engine is to be had: `.ci/run` has one started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.compose_engine import answers, project_name
from tests.conftest import environment_python
from tests.stack.conftest import RunningStack, free_port


def pytest_report_header() -> str:
    """Whether containers are tested."""
    return "containers: tested" if answers() else "containers: left out, no Docker with Compose answers"


@pytest.fixture(scope="session")
def containers(cache_dir: Path) -> Iterator[RunningStack]:
    """The CPU stack in containers, up; down again at the end, and nothing but its caches left."""
    environment_python("operator")
    ports = {"STACK_VLLM_PORT": str(free_port()), "STACK_DETECTOR_PORT": str(free_port())}
    running = RunningStack(
        {"STACK_ENGINE": "compose", "STACK_STATE": str(cache_dir / "containers"), "STACK_DEVICE": "cpu", **ports}
    )
    running.operate("down")
    up = running.operate("up")
    assert up.returncode == 0, up.stdout + up.stderr
    yield running
    down = running.operate("down")
    assert down.returncode == 0, down.stdout + down.stderr


def project(stack: RunningStack) -> str:
    """The Compose project of a stack."""
    return project_name(Path(stack.variables["STACK_STATE"]))
