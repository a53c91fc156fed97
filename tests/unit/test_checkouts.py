"""Whose containers those of a Compose project are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.docker import project as compose_project
from scripts.environments import ROOT


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What Docker lists: containers by id with their checkouts; and a network."""
    found: dict[str, str] = {}

    networks = SimpleNamespace(list=lambda filters: [SimpleNamespace(id="a-network")])
    monkeypatch.setattr(compose_project, "client", lambda: SimpleNamespace(network=networks))
    monkeypatch.setattr(compose_project, "ask", lambda *_: ("\n".join(map(" ".join, found.items())), ""))
    return found


def test_another_checkouts_containers_are_told_from_ours(listed: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    listed |= {"ours": str(ROOT), "linked": str(link), "gone": str(tmp_path / "gone"), "unknown": ""}
    assert compose_project.other_checkout("spotter") is None
    assert compose_project.left_over("spotter") == (["ours", "linked", "gone", "unknown"], ["a-network"])
    other = tmp_path / "an other"
    other.mkdir()
    listed["theirs"] = str(other)
    assert compose_project.other_checkout("spotter") == str(other)
    # A network that theirs are in is theirs as well.
    assert compose_project.left_over("spotter") == (["ours", "linked", "gone", "unknown"], [])
