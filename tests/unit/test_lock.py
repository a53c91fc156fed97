"""`make lock`: what changes is shown before it is written, and what fails holds up nothing else. No index is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import lock
from scripts.environments import EnvironmentFailed

BEFORE = """\
aiohttp==3.14.5 \\
    --hash=sha256:aa
networkx==3.6.1 ; python_full_version < '3.12' \\
    --hash=sha256:bb
networkx==3.7 ; python_full_version >= '3.12' \\
    --hash=sha256:cc
torch==2.13.0+cpu \\
    --hash=sha256:dd
"""
AFTER = """\
aiohttp==3.14.6 \\
    --hash=sha256:ee
attrs==26.1.0 \\
    --hash=sha256:ff
networkx==3.7 \\
    --hash=sha256:cc
"""


@pytest.fixture
def resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What uv makes of a group, by its name, instead of uv; a group that is not in it cannot be resolved."""
    made: dict[str, str] = {}

    def resolve(group: str, upgrade: bool, output: Path) -> None:
        if group not in made:
            raise EnvironmentFailed(f"group {group} of pyproject.toml cannot be resolved (see above)")
        output.write_text(made[group])

    monkeypatch.setattr(lock, "resolve", resolve)
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    return made


def test_every_change_is_named() -> None:
    assert lock.difference(BEFORE, AFTER) == [
        "aiohttp 3.14.5 -> 3.14.6",
        "attrs 26.1.0: added",
        "networkx 3.6.1, 3.7 -> 3.7",
        "torch 2.13.0+cpu: removed",
    ]
    assert lock.difference(BEFORE, BEFORE) == []
    assert lock.difference(BEFORE, BEFORE.replace("sha256:aa", "sha256:ab")) == ["no version: only hashes or markers"]


def test_the_difference_comes_first(resolved: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "dev.lock").write_text(BEFORE)
    resolved["dev"], said = AFTER, list[str]()

    def say(line: str) -> None:
        said.append(line)
        assert (tmp_path / "dev.lock").read_text() == BEFORE

    lock.lock("dev", False, say)
    assert said == ["images/locks/dev.lock: changes", *(f"  {line}" for line in lock.difference(BEFORE, AFTER))]
    assert (tmp_path / "dev.lock").read_text() == AFTER
    said.clear()
    lock.lock("dev", False, said.append)
    assert said == ["images/locks/dev.lock: as before"]


def test_uv_keeps_to_what_is_locked(resolved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that it writes has the lock in it as it is, which uv takes for its preferences."""
    (tmp_path / "dev.lock").write_text(BEFORE)
    seen = list[str]()
    monkeypatch.setattr(lock, "resolve", lambda group, upgrade, output: seen.append(output.read_text()))
    lock.lock("dev", False, print)
    assert seen == [BEFORE]


def test_a_group_that_cannot_be_resolved_holds_up_no_other(
    resolved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved |= dict.fromkeys(lock.groups(), AFTER)
    del resolved["pipeline"]
    asked = list[Callable[[str], None]]()
    monkeypatch.setattr(lock, "ensure_uv", lambda: None)
    monkeypatch.setattr("scripts.docker.bases.refresh", asked.append)
    monkeypatch.setattr("sys.argv", ["lock.py"])
    assert lock.main() == 1
    assert "group pipeline of pyproject.toml cannot be resolved" in capsys.readouterr().err
    assert {path.stem for path in tmp_path.glob("*.lock")} == set(lock.groups()) - {"pipeline"}
    assert asked == [print]
