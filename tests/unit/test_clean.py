"""`make clean`: what it removes, what it keeps, and that it asks first."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from scripts.commands import clean
from scripts.docker import engine as compose_engine
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker import project as compose_project
from scripts.docker.containers import ContainerEngine
from scripts.settings import NotRemoved, StackSettings
from scripts.stack import api_key


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack's state after some use, on a host without Docker; nothing runs."""
    monkeypatch.setattr(docker_host, "answers", lambda: False)
    for name in ("containers", "processes", "logs", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "something").touch()
    api_key.settle(StackSettings(state=tmp_path))
    return tmp_path


class Person(Console):
    """A terminal with somebody who answers."""

    def __init__(self, answer: str) -> None:
        super().__init__(file=io.StringIO(), width=160)
        self.answer = answer
        self.asked = 0

    def input(self, *_: object, **__: object) -> str:
        self.asked += 1
        return self.answer

    @property
    def said(self) -> str:
        """What was printed."""
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


def left(state: Path) -> set[str]:
    return {path.name for path in state.iterdir()} - {"stack.lock"}


EVERYTHING = {"containers", "processes", "logs", "cache", "api_key"}


@pytest.mark.parametrize("answer", ["", "n", "no", "maybe"])
def test_anything_but_yes_removes_nothing(state: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    person = Person(answer)
    assert clean.run(StackSettings(state=state), person, caches=True, confirmed=False) == 1
    assert person.asked == 1
    assert "nothing was removed" in person.said
    assert left(state) == EVERYTHING


def test_without_a_terminal_nothing_is_removed_unasked(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    person = Person("y")
    assert clean.run(StackSettings(state=state), person, caches=False, confirmed=False) == 1
    assert (person.asked, left(state)) == (0, EVERYTHING)
    assert "YES=1" in person.said


def test_yes_removes_state_and_key_and_keeps_the_caches(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    person = Person("y")
    assert clean.run(StackSettings(state=state), person, caches=False, confirmed=False) == 0
    assert left(state) == {"cache"}
    for name in ("containers", "processes", "logs", "api_key"):
        assert str(state / name) in person.said
    assert "keeps models and the current cache" in person.said


def test_caches_go_when_told(state: Path) -> None:
    person = Person("n")
    assert clean.run(StackSettings(state=state), person, caches=True, confirmed=True) == 0
    assert (person.asked, left(state)) == (0, set())


def test_images_and_volumes_are_named_before_they_go(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images without a name count as well. All belong to the stack of the default state; another one leaves them."""
    removed: list[tuple[str, ...]] = []

    def ask(*arguments: str) -> tuple[str, str]:
        removed.append(arguments)
        return "", ""

    monkeypatch.setattr(docker_host, "answers", lambda: True)
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    monkeypatch.setattr(ContainerEngine, "find", lambda *_: None)
    monkeypatch.setattr(compose_project, "checkouts", lambda _: {})
    monkeypatch.setattr(compose_project, "volumes", lambda _: ["spotter_vllm-cache"])
    monkeypatch.setattr(images, "has", lambda _: True)
    monkeypatch.setattr(images, "left_over", lambda: ["0123abcd"])
    monkeypatch.setattr(clean, "ask", ask)
    monkeypatch.setattr(compose_engine, "left_over", lambda _: ([], []))
    for project, expected in (("spotter-12ab34cd", False), ("spotter", True)):
        monkeypatch.setattr(compose_project, "project_name", lambda _, project=project: project)
        removed.clear()
        person = Person("n")
        assert clean.run(StackSettings(state=state), person, caches=True, confirmed=True) == 0
        assert "volume spotter_vllm-cache" in person.said
        assert ("images of earlier builds, without a name: 1" in person.said) == expected
        tags = {image.tag for image in images.IMAGES.values()} | {"0123abcd"}
        expected_images = {("image", "rm", tag) for tag in tags} if expected else set()
        assert set(removed) == {("volume", "rm", "spotter_vllm-cache"), *expected_images}


def test_what_docker_does_not_let_go_is_told(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_host, "answers", lambda: True)
    monkeypatch.setattr(ContainerEngine, "find", lambda *_: None)
    monkeypatch.setattr(compose_project, "volumes", lambda _: ["busy"])
    monkeypatch.setattr(compose_project, "checkouts", lambda _: {})
    monkeypatch.setattr(compose_engine, "left_over", lambda _: ([], []))
    monkeypatch.setattr(images, "has", lambda _: False)
    monkeypatch.setattr(clean, "ask", lambda *_: (None, "in use"))
    with pytest.raises(NotRemoved, match="volume busy"):
        clean.run(StackSettings(state=state), Person("n"), caches=True, confirmed=True)
