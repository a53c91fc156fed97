"""An upgrade says what it changes, asks, and has a way back; runs of another format are refused with the reason."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import OtherRun, Unreadable, UsageError
from pipeline.output.run_folder import open_run_folder
from pipeline.results.finished_run import read_run
from pipeline.version import version
from scripts import environments
from scripts.docker import images
from scripts.release import bundle, install, upgrade
from scripts.release.differences import changed_settings, differences, settings
from tests.conftest import ROOT

OLD = version()


def spotter(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a checkout, with a stack of its own."""
    return subprocess.run(
        [sys.executable, "-m", "scripts", *arguments],
        cwd=tree,
        env={**os.environ, "STACK_STATE": str(tree / ".spotter" / "own"), "STACK_ENGINE": "process", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def git(tree: Path, *arguments: str) -> str:
    named = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    done = subprocess.run(["git", "-C", str(tree), *named, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def change(tree: Path) -> None:
    """Make the next version of a checkout: 9.9.9."""
    edits = {
        "pyproject.toml": (f'version = "{OLD}"', 'version = "9.9.9"'),
        ".env.example": ("#SPOTTER_ATTEMPTS=5", "#SPOTTER_ATTEMPTS=7\n#SPOTTER_PATIENCE=1"),
        "images/locks/pipeline.lock": ("aiohttp==3.", "aiohttp==4."),
        "pipeline/tables.py": ('FORMAT = "4"', 'FORMAT = "5"'),
        "services/vllm/presets/l4.yaml": ("model: google/gemma-3n-E4B-it", "model: owner/other"),
    }
    for name, (before, after) in edits.items():
        text = (tree / name).read_text()
        assert before in text, name
        (tree / name).write_text(text.replace(before, after))
    (tree / "LICENSE").unlink()


CHANGES = (
    f"version: {OLD} -> 9.9.9",
    "packages of pipeline: aiohttp 3.",
    "setting SPOTTER_ATTEMPTS: default 5 -> 7; you set it to '6'",
    "setting SPOTTER_PATIENCE: new, by default 1",
    "model of vllm preset l4: google/gemma-3n-E4B-it@",
    "format of runs: 4 -> 5",
    "images that are made or loaded anew: ",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of this working tree's files."""
    folder = tmp_path / "tree"
    for name in bundle.tracked(exclude=[]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_a_clone_changes_to_a_tag_after_a_yes_and_back(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "a"], ["tag", f"v{OLD}"]):
        git(tree, *arguments)
    change(tree)
    git(tree, "commit", "-qam", "b")
    git(tree, "tag", "v9.9.9")
    git(tree, "reset", "-q", "--hard", f"v{OLD}")
    monkeypatch.setattr(images, "ROOT", tree)
    with pytest.raises(UsageError, match="neither the folder of a bundle nor a version of this clone"):
        upgrade.refuse_changed("v3")
    asked = spotter(tree, "upgrade", "--to", "v9.9.9", SPOTTER_ATTEMPTS="6")
    assert asked.returncode == 1, asked.stderr
    for each in CHANGES:
        assert each in asked.stdout
    assert re.search(r"disk: (about [\d.]+ .*, as large as now: |nothing is made anew; ).*are free", asked.stdout)
    assert "nothing was changed" in asked.stdout
    assert git(tree, "rev-parse", "HEAD") == git(tree, "rev-parse", f"v{OLD}")
    (tree / "LICENSE").write_text("mine")
    with pytest.raises(UsageError, match="1 files of this clone are changed"):
        upgrade.refuse_changed("v9.9.9")
    git(tree, "checkout", "LICENSE")
    done = spotter(tree, "upgrade", "--to", "v9.9.9", "--yes")
    assert done.returncode == 0, done.stderr
    assert "the way back: git checkout main" in done.stdout
    assert version(tree) == "9.9.9"
    git(tree, "checkout", "-q", "main")
    assert version(tree) == OLD


@pytest.mark.slow
def test_a_bundle_replaces_what_a_bundle_installed_and_back(tree: Path, tmp_path: Path) -> None:
    names = [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]
    new = tmp_path / "new"
    shutil.copytree(tree, new)
    change(new)
    folder = tmp_path / "bundle"
    folder.mkdir()
    with tarfile.open(folder / install.CHECKOUT, "w:gz", compresslevel=1) as packed:
        for name in names:
            if (new / name).exists():
                packed.add(new / name, name)
    for name in ("install.py", "install.sh"):
        shutil.copy(ROOT / "scripts" / "release" / name, folder)
    host = {"system": "Linux", "machine": platform.machine(), "python": environments.PYTHON, "glibc": "2.17"}
    record = {"format": install.FORMAT, "version": "9.9.9", "revision": "new", "images": [], "models": []}
    more = {"python": None, "host": host, "disk": {"folder": 1, "images": 0, "models": 0}, "engines": ["process"]}
    files = {path.name: bundle.about(path) for path in folder.iterdir()}
    (folder / install.MANIFEST).write_text(json.dumps({**record, **more, "docker": bundle.DOCKER, "files": files}))

    with pytest.raises(UsageError, match="did not come from a bundle"):
        upgrade.checked(folder)
    (tree / ".spotter").mkdir(exist_ok=True)
    (tree / install.INSTALLED).write_text(json.dumps({**record, "version": OLD, "revision": "old", "checkout": names}))
    (tree / "runs").mkdir()
    (tree / ".env").write_text("SPOTTER_ATTEMPTS=6\n")
    (tree / "my notes.txt").write_text("stay")
    done = spotter(tree, "upgrade", "--to", str(folder), "--yes")
    assert done.returncode == 0, done.stderr
    for each in CHANGES:
        assert each in done.stdout
    assert "the way back: make upgrade TO=" in done.stdout
    assert version(tree) == "9.9.9"
    assert not (tree / "LICENSE").exists()
    assert (tree / ".env").read_text() == "SPOTTER_ATTEMPTS=6\n"
    back = spotter(tree, "upgrade", "--to", ".spotter/versions/old", "--yes")
    assert back.returncode == 0, back.stderr
    for name in names:
        assert (tree / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert (tree / "my notes.txt").read_text() == "stay"


def test_what_a_tag_makes_anew_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environments and images of this host, those of which a lock or a source changes."""
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("kept", "changed"):
        for tree in (old, new):
            (tree / "images" / "locks").mkdir(parents=True, exist_ok=True)
            (tree / "images" / "locks" / f"{name}.lock").write_text("1")
        home = tmp_path / "envs" / name
        home.mkdir(parents=True)
        (home / "spotter.stamp").write_text("x" * 1000)
    (new / "images" / "locks" / "changed.lock").write_text("2")
    monkeypatch.setattr(upgrade, "ROOT", old)
    monkeypatch.setattr(upgrade, "STATE", tmp_path)
    monkeypatch.setattr(upgrade, "changed_images", lambda *_: ["pipeline", "ray"])
    has = {images.IMAGES["ray"].tag: "77"}
    monkeypatch.setattr(upgrade, "ask", lambda *asked: (has.get(asked[-1]), ""))
    assert upgrade.made_anew(new) == {"environment changed": 1000, "image ray": 77}


def test_equal_versions_differ_in_nothing() -> None:
    assert differences(ROOT, ROOT, {}) == [
        f"version: {OLD} -> {OLD}",
        "format of runs: 4, as before: runs are continued and read",
    ]


def test_settings_that_come_go_and_change_are_named(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for tree, text in (
        (old, "# Times.\n#A_B=1\n#A_C=\n# Gone.\n#A_D=x\n"),
        (new, "# Seconds.\n#A_B=1\n#A_C=2\n# New.\n#A_E=\n"),
    ):
        tree.mkdir()
        (tree / ".env.example").write_text(text)
    assert settings(old) == {"A_B": ("1", "Times."), "A_C": ("", "Times."), "A_D": ("x", "Gone.")}
    assert list(changed_settings(old, new, {"A_B": "3", "A_D": "y"})) == [
        "setting A_B: explained in other words, see .env.example; you set it to '3'",
        "setting A_C: default empty -> 2",
        "setting A_D: gone; you set it to 'y': remove it, or it is an error",
        "setting A_E: new, by default empty",
    ]


def test_runs_of_another_format_are_neither_continued_nor_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    identity = {"images": "a", "table_format": "3"}
    (run / "run.json").write_text(json.dumps({"identity": identity, "status": "complete"}))
    with (
        pytest.raises(OtherRun, match=r"table format \(3 -> 4; another version of Spotter\)"),
        open_run_folder(run, identity | {"table_format": "4"}, force=False),
    ):
        pass
    with pytest.raises(Unreadable, match="table format 3, expected 4"):
        read_run(run)
