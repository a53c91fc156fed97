"""The stack in containers, where a Docker engine is to be had: `.ci/run` has one started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.docker.host import answers
from scripts.docker.project import project_name
from tests.stack.conftest import RunningStack

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


def project(stack: RunningStack) -> str:
    """The Compose project of a stack."""
    return project_name(Path(stack.variables["STACK_STATE"]))


def docker(*arguments: str) -> str:
    """What a docker command prints; it has to work."""
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def inspect(stack: RunningStack, service: str) -> dict[str, Any]:
    """A service's container."""
    content: dict[str, Any] = json.loads(docker("inspect", f"{project(stack)}-{service}-1"))[0]
    return content
