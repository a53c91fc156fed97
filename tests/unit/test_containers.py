"""What Docker tells of a container's end, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from scripts.docker import containers
from scripts.docker.containers import KILLED, LATE_S, ContainerEngine
from scripts.docker.engine import ComposeEngine
from scripts.settings import StackSettings

LIMIT = 2**30


# How long after the end Docker has the event.
DELAY_S = LATE_S - 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When Docker was asked for events, by a clock that sleeps alone move on."""
    slept: list[float] = []
    asked: list[float] = []

    def ask(*arguments: str) -> tuple[str | None, str]:
        assert "event=oom" in arguments
        asked.append(sum(slept))
        return ("-" if sum(slept) >= DELAY_S else None), ""

    monkeypatch.setattr(containers, "ask", ask)
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr("scripts.docker.containers.time", clock)
    return asked


def ended(code: int, monkeypatch: pytest.MonkeyPatch) -> ContainerEngine:
    """A project whose service has ended with this code."""
    container = SimpleNamespace(
        id="d0d0",
        created=datetime.now(UTC),
        state=SimpleNamespace(status="exited", exit_code=code, oom_killed=False),
        host_config=SimpleNamespace(memory=LIMIT),
    )
    monkeypatch.setattr(ContainerEngine, "find", lambda self, name: container)
    return ComposeEngine(StackSettings(), "cpu", "cpu")


def test_the_event_of_a_kill_for_memory_may_come_late(looks: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(KILLED, monkeypatch).memory_limit_hit("vllm") == LIMIT
    assert looks[-1] >= DELAY_S


def test_an_end_of_another_kind_is_told_at_once(looks: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(1, monkeypatch).memory_limit_hit("vllm") is None
    assert looks == [0.0]
