"""Images before Docker sees them: their labels, and a build that is interrupted, with a stand-in for docker."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from scripts.docker import images
from scripts.services import Image
from scripts.settings import BuildFailed, StackSettings
from scripts.stack import plain_lines
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

OCI = "org.opencontainers.image."


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/owner/name.git", "https://github.com/owner/name"),
        ("https://user:ghp_token@github.com/owner/name.git", "https://github.com/owner/name"),
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@gitlab.example.org:2222/group/name.git", "https://gitlab.example.org/group/name"),
        ("/home/me/spotter", None),
        ("../spotter.git", None),
        ("file:///home/me/spotter", None),
        ("http://127.0.0.1:3000/me/spotter", None),
        ("git@10.0.0.7:me/spotter.git", None),
        ("http://buildhost/me/spotter", None),
        ("", None),
    ],
)
def test_the_source_is_an_address_that_others_can_open(remote: str, address: str | None) -> None:
    assert images.public_address(remote) == address


def test_labels_come_from_the_project_and_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {"remote": "https://me:secret@example.org/me/spotter.git", "describe": "0" * 40}
    monkeypatch.setattr(images, "git", lambda *arguments: said.get(arguments[0]))
    labels = images.labels(images.IMAGES["pipeline"])
    for name, field in (("version", "version"), ("licenses", "license"), ("description", "description")):
        assert labels[OCI + name] == project[field]
    assert labels[OCI + "revision"] == "0" * 40
    assert labels[OCI + "source"] == "https://example.org/me/spotter"
    assert "secret" not in str(labels)
    said.clear()  # a bundle without its history
    labels = images.labels(images.IMAGES["pipeline"])
    assert labels[OCI + "revision"] == "unknown"
    assert OCI + "source" not in labels


@pytest.mark.parametrize("image", images.IMAGES.values(), ids=lambda image: image.name)
def test_every_copied_file_counts_for_the_fingerprint(image: Image) -> None:
    """Each COPY of the image's stage is among its sources, so that a change of one builds the image anew."""
    stages = images.DOCKERFILE.read_text().split("\nFROM ")
    (stage,) = [text for text in stages if text.splitlines()[0].endswith(f" AS {image.target}")]
    copied = {
        source
        for line in stage.splitlines()
        if line.startswith("COPY ")
        for source in [word for word in line.split()[1:] if not word.startswith("--")][:-1]
    }
    assert copied == set(image.sources)


@pytest.mark.parametrize("image", images.IMAGES.values(), ids=lambda image: image.name)
def test_an_image_names_the_base_that_its_stage_stands_on(image: Image) -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", images.DOCKERFILE.read_text(), re.MULTILINE)
    below = {name: base for base, name in stages}
    base = image.target
    while base in below:
        base = below[base]
    assert base == f"${{{image.base}}}"


def has(monkeypatch: pytest.MonkeyPatch, *tags: str) -> None:
    """Let the engine have these images."""
    monkeypatch.setattr(images, "has", lambda tag: tag in tags)


def test_a_loaded_base_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of the one that the Dockerfile pins, but only where no registry answers for that."""
    tag = images.base_image("VLLM_IMAGE").partition("@")[0]
    pinned = f"{tag}@sha256:{'a' * 64}"
    copy = tmp_path / "Dockerfile"
    copy.write_text(images.DOCKERFILE.read_text().replace(images.base_image("VLLM_IMAGE"), pinned))
    monkeypatch.setattr(images, "DOCKERFILE", copy)
    monkeypatch.setattr(images, "at_registry", lambda base: False)
    has(monkeypatch, tag)
    assert images.substitutes() == {"VLLM_IMAGE": tag}
    has(monkeypatch, tag, pinned)
    assert images.substitutes() == {}
    has(monkeypatch, tag)
    monkeypatch.setattr(images, "at_registry", lambda base: base == pinned)
    assert images.substitutes() == {}


@pytest.mark.parametrize("name", ["pipeline", "vllm-cuda", "vllm-official"])
def test_a_build_says_when_its_base_is_another(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, told = tmp_path / "docker", io.StringIO()
    fake.write_text("""#!/bin/sh\ncase "$1" in build) echo "$@";; *) echo '[{"Size": 1, "Config": {}}]';; esac\n""")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    has(monkeypatch, images.OFFLINE_BASES["BASE_IMAGE"])
    images.build(images.IMAGES[name], tmp_path, Console(file=told, width=200))
    first = told.getvalue().splitlines()[0]
    base = {"pipeline": "spotter-base", "vllm-cuda": images.COMPILER_BASE}.get(name)
    if base:
        assert first == f"building image {name} on {base}, not on {images.base_image()} ..."
    else:  # it stands on vLLM's own
        assert first == "building image vllm-official ..."
    # Also on the way to vLLM's: the classic builder makes the stages before it as well.
    asked = (tmp_path / f"build-{name}.log").read_text()
    environment = "vllm-cuda" if name == "vllm-cuda" else "pipeline"
    for argument in (
        f"ENVIRONMENT={environment}",
        f"BASE_IMAGE={base or 'spotter-base'}",
        "BUILD_IMAGE=spotter-build-base",
    ):
        assert f"--build-arg {argument} " in asked


def test_a_builder_that_colours_its_log_is_quoted_in_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's classic builder shows a step's stderr in red, and ends it with a line of the escape alone."""
    fake, told = tmp_path / "docker", io.StringIO()
    fake.write_text(
        """#!/bin/sh\n[ "$1" = build ] || { echo '[]'; exit 0; }\n"""
        r"""printf ' ---> Running in ad8f\n\033[91mpreparing environment\n\033[0m\n'; sleep 1; exit 1"""
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(images, "substitutes", dict)
    monkeypatch.setattr(plain_lines, "PLAIN_LINE_S", 0.5)
    with pytest.raises(BuildFailed) as refused:
        images.build(images.IMAGES["pipeline"], tmp_path, Console(file=told, width=200))
    assert re.search(r"^image pipeline, \d s  preparing environment$", told.getvalue(), re.MULTILINE)
    assert "Running in ad8f\npreparing environment\nWhole log: " in str(refused.value)


def test_a_build_that_is_interrupted_is_done_anew(tmp_path: Path) -> None:
    """Ctrl-C while an image is built: 130 and one word; the builder has ended, and the next `build` builds."""
    fake, calls = tmp_path / "bin" / "docker", tmp_path / "calls"
    fake.parent.mkdir()

    def write(on_build: str) -> None:
        fake.write_text(
            f'#!/bin/sh\ncase "$1" in\nbuild) echo $$ >> {calls}; {on_build} ;;\n'
            """image) echo '[{"Size": 5000000, "Config": {}}]' ;;\n"""
            """info) echo '{"ServerVersion": "28.2.2"}' ;;\n*) echo 28 ;;\nesac\n"""
        )
        fake.chmod(0o755)

    def build() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "scripts", "build"],
            cwd=ROOT,
            env=os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "STACK_STATE": str(tmp_path / "state")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    write("exec sleep 600")
    child = build()
    deadline = time.monotonic() + 60
    while not calls.exists() or not calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    output, _ = child.communicate(timeout=30)
    assert (child.returncode, output.splitlines()[-1]) == (130, "interrupted")
    builder = int(calls.read_text().split()[0])
    while psutil.pid_exists(builder) and psutil.Process(builder).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    write("exit 0")
    output, _ = (child := build()).communicate(timeout=60)
    assert child.returncode == 0, output
    assert len(calls.read_text().split()) == 1 + len(images.of_stack(StackSettings(), "cpu"))
