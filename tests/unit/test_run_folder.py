"""A run's folder: what a crash leaves in it, and what is a run's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OtherRun, Unwritable
from pipeline.files import sync_disk, write_atomically
from pipeline.output.parts import Parts
from pipeline.output.run_folder import COMMITTED, CONTENTS, open_run_folder, prepare, read_manifest, write_manifest

MINE: dict[str, Any] = {"images": "photos", "model": "a"}
OTHER = MINE | {"model": "b"}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a run that has ended, with two images in two parts."""
    run = tmp_path / "run"
    run.mkdir()
    prepare(run, MINE, force=False)
    write_manifest(run, {"identity": MINE})
    parts = Parts(run, {})
    for name in ("a", "b"):
        parts.add({"path": name, "outcome": "detected", "version": "1-1"}, [])
        parts.commit()
        for folder in ("crops", "annotated"):
            (run / folder / f"{name}.jpg").write_bytes(b"picture")
    for name in ("images.parquet", "detections.parquet", "report.html", "stall.txt"):
        (run / name).write_bytes(b"of the run")
    (run / "profile").mkdir()
    return run


def dies_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process be killed instead of its `step`-th removal."""
    steps = itertools.count()

    def dying(remove: Callable[..., None]) -> Callable[..., None]:
        def do(*arguments: Any, **named: Any) -> None:
            if next(steps) == step:
                raise Killed
            remove(*arguments, **named)

        return do

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


def test_beginning_anew_that_is_cut_short_leaves_the_old_run_or_nothing_that_counts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for step in itertools.count():
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(finished, folder)
        with monkeypatch.context() as patched:
            dies_at(step, patched)
            try:
                prepare(folder, OTHER, force=True)
            except Killed:
                pass
            else:
                break
        counts = (folder / COMMITTED).exists()
        seen.append(counts)
        if counts:
            assert read_manifest(folder) == {"identity": MINE}
            assert sorted(path.name for path in folder.rglob("*.jpg")) == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
            assert len(Parts(folder, {}).names) == 2
    assert seen == sorted(seen, reverse=True)
    assert seen.count(False) > 10
    assert {path.name for path in folder.iterdir()} == {"crops", "annotated", ".parts"}
    assert not list((folder / ".parts").iterdir())


def test_rows_do_not_count_where_nobody_knows_whose_they_are(finished: Path) -> None:
    (finished / "run.json").unlink()
    with pytest.raises(OtherRun, match=r"run\.json.*--force"):
        prepare(finished, MINE, force=False)
    prepare(finished, MINE, force=True)
    assert Parts(finished, {}).names == []


@pytest.mark.parametrize("name", ["run.json", ".published", "report.html"])
def test_what_a_write_left_that_was_cut_short_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    left = tmp_path / f".{name}.partial"
    left.write_bytes(b"half")
    prepare(tmp_path, MINE, force=False)
    assert not left.exists()


def test_all_that_a_run_makes_is_known_as_its_own(tmp_path: Path) -> None:
    for name in CONTENTS:
        if name in ("crops", "annotated", "report", "profile", ".parts"):
            (tmp_path / name).mkdir()
        elif name != "run.json":
            (tmp_path / name).touch()
    prepare(tmp_path, MINE, force=False)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half written takes room on a disk that has none."""
    write_atomically(tmp_path / "run.json", b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "run.json", json.dumps(MINE).encode())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(Unwritable, match=r"No locks available.*OUTPUT="),
        open_run_folder(tmp_path / "run", MINE, force=False),
    ):
        pass


def test_only_the_runs_own_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where the platform has no such call."""
    waited: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: waited.append("for all"))
    sync_disk(tmp_path)
    assert waited == []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    sync_disk(tmp_path)
    assert waited == ["for all"]
