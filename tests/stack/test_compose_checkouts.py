"""Two checkouts on one host whose stacks have the same Compose project, as by default: neither touches the other's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from scripts.docker import images
from scripts.docker.engine import ComposeEngine
from scripts.docker.host import client_config
from scripts.docker.project import other_checkout, volumes
from scripts.settings import StackSettings
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker, project

# What the other checkout runs: a service under the name that ours has, with a volume of models.
TOY = """
services:
  detector:
    image: spotter-pipeline:local
    entrypoint: [sleep, "600"]
    volumes: ["hub-cache:/cache/hub"]
volumes:
  hub-cache: {}
"""


@pytest.fixture
def stack(tmp_path: Path) -> RunningStack:
    """A stack of this checkout that is not up; the model server is elsewhere."""
    return RunningStack(
        {
            "STACK_ENGINE": "compose",
            "STACK_DEVICE": "cpu",
            "STACK_STATE": str(tmp_path / "state"),
            "SPOTTER_MODEL_URL": "http://192.0.2.1/v1",
        }
    )


@pytest.fixture
def other(tmp_path: Path, stack: RunningStack) -> Iterator[Path]:
    """Another checkout, whose detector runs in the same project."""
    images.ensure([images.IMAGES["pipeline"]], tmp_path, Console(file=io.StringIO()))
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "toy.yaml").write_text(TOY)
    config = ("--config", str(found)) if (found := client_config()) else ()
    compose = (*config, "compose", "--project-name", project(stack), "--project-directory", str(folder))
    compose = (*compose, "--file", str(folder / "toy.yaml"))
    docker(*compose, "up", "--detach")
    yield folder
    docker(*compose, "down", "--timeout", "0", "--volumes")


def runs(stack: RunningStack) -> bool:
    """Whether the container is there, as it was."""
    content = json.loads(docker("inspect", f"{project(stack)}-detector-1"))[0]
    return bool(content["State"]["Running"]) and content["Config"]["Entrypoint"] == ["sleep", "600"]


def test_no_command_takes_down_another_checkouts_containers(stack: RunningStack, other: Path) -> None:
    for command in ("up", "run", "fetch"):
        refused = stack.operate(command)
        assert refused.returncode == 1, refused.stdout
        (line,) = refused.stderr.splitlines()
        assert str(other) in line
        assert "STACK_STATE" in line
    down = stack.operate("down")
    assert down.returncode == 0, down.stderr
    assert down.stdout.splitlines() == [
        "nothing was running",
        f"the containers of {project(stack)} belong to another checkout, {other}: `make down` there stops them",
    ]
    cleaned = stack.operate("clean", "--yes", "--caches")
    assert cleaned.returncode == 0, cleaned.stderr
    assert f"keeps images and volumes: another checkout, {other}" in cleaned.stdout
    assert "down" in stack.operate("status").stdout
    assert runs(stack)
    assert volumes(project(stack)) == [f"{project(stack)}_hub-cache"]


def test_a_checkout_that_is_gone_leaves_its_containers_to_whoever_comes(stack: RunningStack, other: Path) -> None:
    engine = ComposeEngine(StackSettings(state=Path(stack.variables["STACK_STATE"])), "cpu", "cpu")
    assert other_checkout(engine.project) == str(other)
    moved = other.rename(other.with_name("moved"))
    try:
        assert other_checkout(engine.project) is None
        assert engine.find("detector") is not None
    finally:
        moved.rename(other)
