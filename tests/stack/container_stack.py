"""The stack in containers, where a Docker engine is to be had: `.ci/run` has one started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.compose_engine import answers, project_name
from tests.conftest import environment_python
from tests.stack.conftest import RunningStack, free_port

# Set by `.ci/run` once it has started an engine: that no container test is left out there without a word.
REQUIRED = "CONTAINERS_REQUIRED"


def pytest_configure() -> None:
    """End the test run before it begins where container tests are required, and would be left out.

    Raises:
        UsageError: no Docker with Compose answers.
    """
    if os.environ.get(REQUIRED) and not answers():
        raise pytest.UsageError(f"{REQUIRED} is set, and no Docker with Compose answers: container tests cannot run")


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
