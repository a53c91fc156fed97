"""The images' bases and their digests, with a stand-in for docker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import bases, images

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    """The Dockerfile, with a digest at one base."""
    copy = tmp_path / "Dockerfile"
    shutil.copy(bases.DOCKERFILE, copy)
    copy.write_text(copy.read_text().replace(images.base_image(), f"{images.base_image().split('@')[0]}@{OLD}"))
    return copy


def answer_with(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a docker first in the path that prints this."""
    fake = tmp_path / "docker"
    fake.write_text(f"#!/bin/sh\necho '{text}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_new_digests_are_shown_and_written(dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(NEW, tmp_path, monkeypatch)
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


def test_without_a_registry_nothing_changes_and_it_is_said(
    dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with("ERROR: no such host", tmp_path, monkeypatch)
    before, said = dockerfile.read_text(), list[str]()
    bases.refresh(said.append, dockerfile)
    assert any(f"no registry can be asked (it takes docker with buildx): stays at {OLD}" in line for line in said)
    assert dockerfile.read_text() == before
