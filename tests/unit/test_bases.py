"""The images' bases and their digests, with a stand-in for docker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.docker import bases, images

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    """The Dockerfile, with a digest at one base."""
    copy = tmp_path / "Dockerfile"
    shutil.copy(bases.DOCKERFILE, copy)
    copy.write_text(copy.read_text().replace(images.base_image(), f"{images.base_image().split('@')[0]}@{OLD}"))
    return copy


def answer_with(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str = "echo v0.30.1") -> None:
    """Let docker alone be in the path, whose buildx does this when it is asked for a digest, and for its version."""
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncase "$2" in version) {version};; *) {answer};; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))


def test_new_digests_are_shown_and_written(dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(f"echo {NEW}", tmp_path, monkeypatch)
    before, said = dockerfile.read_text(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        assert dockerfile.read_text() == before  # the difference comes first

    bases.refresh(say, dockerfile)
    assert len(said) == 2
    assert any(f"{OLD} -> {NEW}" in line for line in said)
    assert [match[3] for match in bases.BASE.finditer(dockerfile.read_text())] == [NEW, NEW]
    said.clear()
    bases.refresh(said.append, dockerfile)
    assert all("as before" in line for line in said)


@pytest.mark.parametrize(
    ("answer", "version", "why"),
    [
        ("echo ERROR: no such host >&2; exit 1", "echo v0.30.1", "its registry does not answer (ERROR: no such host)"),
        ("echo what", "echo v0.30.1", "its registry does not answer (it says 'what')"),
        ("exit 1", "echo no such command: buildx >&2; exit 1", "takes docker with buildx (no such command: buildx)"),
    ],
)
def test_without_a_registry_nothing_changes_and_it_is_said(
    dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, version: str, why: str
) -> None:
    answer_with(answer, tmp_path, monkeypatch, version)
    before, said = dockerfile.read_text(), list[str]()
    bases.refresh(said.append, dockerfile)
    assert len(said) == 2
    assert all(line.endswith(why) for line in said)
    assert any(f": stays at {OLD}: " in line for line in said)
    assert dockerfile.read_text() == before


def test_without_docker_too(dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = list[str]()
    bases.refresh(said.append, dockerfile)
    assert all("takes docker with buildx (docker is not installed)" in line for line in said)
