"""The containers' images: their contents, and how they are built."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from scripts import environments
from scripts.docker import images
from scripts.services import Image
from scripts.settings import StackSettings
from tests.conftest import ROOT
from tests.stack.conftest import RunningStack
from tests.stack.container_stack import docker

# Shows what an image holds that only its making needed: compilers and installers, what apt, pip and uv keep, the site's
# settings. As root, who alone may look into /root.
TOOLS = r"""
for tool in cc gcc g++ c++ clang make uv; do command -v $tool; done
find /var/lib/apt /var/cache/apt \( -name '*_Packages*' -o -name '*_InRelease' -o -name '*.deb' \) 2>/dev/null
find / -xdev -path '*/.cache/*' \( -name pip -o -name uv \) -prune -print
for left in /spotter/.spotter/uv /etc/pip.conf /etc/ssl/site.crt /wheels; do [ ! -e $left ] || echo $left; done
"""


def test_images_say_what_they_are_and_hold_no_tools(containers: RunningStack) -> None:
    for image in images.of_stack(StackSettings(), "cpu"):
        labels = json.loads(docker("image", "inspect", image.tag))[0]["Config"]["Labels"]
        for label in ("title", "description", "licenses", "version", "revision"):
            assert labels[f"org.opencontainers.image.{label}"]
        assert str(ROOT) not in str(labels)
        assert docker("run", "--rm", "--user=0", "--network=none", "--entrypoint=/bin/sh", image.tag, "-c", TOOLS) == ""


def test_ctrl_c_during_a_build_leaves_no_container(tmp_path: Path) -> None:
    """A real builder, in the middle of a step; the next build is done."""
    base = images.OFFLINE_BASES["BASE_IMAGE"] if images.has(images.OFFLINE_BASES["BASE_IMAGE"]) else images.base_image()
    program = (
        "import sys\nfrom pathlib import Path\nfrom rich.console import Console\nfrom scripts.docker import images\n"
        f"images.ROOT = Path({str(tmp_path)!r})\nimages.DOCKERFILE = images.ROOT / 'Dockerfile'\n"
        "images.labels = lambda image: {'test': 'interrupted'}\n"
        "image = images.Image('interrupted', 'step', 'a test', None, ())\n"
        "images.build(image, images.ROOT / 'logs', Console())\n"
    )

    def build(step: str) -> subprocess.Popen[str]:
        bases = f"ARG BASE_IMAGE={base}\nARG VLLM_IMAGE={base}\n"
        (tmp_path / "Dockerfile").write_text(f"{bases}FROM ${{BASE_IMAGE}} AS step\nRUN {step}\n")
        return subprocess.Popen(
            [environments.python("operator"), "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    before = set(docker("ps", "--all", "--quiet").split())
    # Both builders show the command, before the step and each in its own form; this is what only the step itself says.
    child = build("echo step begun: $((40 + 2)) && sleep 77")
    log = tmp_path / "logs" / "build-interrupted.log"
    deadline = time.monotonic() + 60
    while not log.exists() or "step begun: 42" not in log.read_text():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in output
    deadline = time.monotonic() + 60
    while set(docker("ps", "--all", "--quiet").split()) - before:  # the engine's own clean-up takes a moment
        assert time.monotonic() < deadline, docker("ps", "--all")
        time.sleep(0.2)
    assert not images.has("spotter-interrupted:local")
    output, _ = (child := build("true")).communicate(timeout=60)
    assert child.returncode == 0, output
    docker("image", "rm", "spotter-interrupted:local")


class Copied(Image):
    """The pipeline's image under another name, from the same lock."""

    @property
    def tag(self) -> str:
        return "spotter-copied-pipeline:local"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pipeline's image is built from, as a copy to change; the copy's name for the image is its own."""
    folder = tmp_path / "checkout"
    sources = images.IMAGES["pipeline"].sources
    for part in ("images", *sources, "scripts/environments.py", "pyproject.toml", ".dockerignore"):
        place = folder / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, place)
    for name, value in (("ROOT", folder), ("DOCKERFILE", folder / "images" / "Dockerfile")):
        monkeypatch.setattr(images, name, value)
    monkeypatch.setattr(images, "LOCKS", folder / "images" / "locks")
    return folder


def test_a_change_in_the_pipeline_rebuilds_no_layer_of_dependencies(checkout: Path, tmp_path: Path) -> None:
    image = Copied(**{each.name: getattr(images.IMAGES["pipeline"], each.name) for each in fields(Image)})
    layers: list[list[str]] = []
    try:
        for content in ("# as it was\n", "# changed\n"):
            (checkout / "pipeline" / "extra.py").write_text(content)
            images.build(image, tmp_path / "logs", Console(file=io.StringIO()))
            layers.append(json.loads(docker("image", "inspect", image.tag))[0]["RootFS"]["Layers"])
    finally:
        docker("image", "rm", image.tag)
    before, after = layers
    assert after[:-2] == before[:-2]
    # The code's own layer, and the one that opens its files to whoever runs the job.
    assert not set(after[-2:]) & set(before)
    assert len(after) > 4  # below them: the base, the user, the environment, the entry point
