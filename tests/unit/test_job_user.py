"""As whom the job runs in its container, and what that user can reach."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import Unreadable, Unwritable
from scripts.docker.job_user import User, make_folder, may, owner_of, refuse_unreachable, some

ROOT = User(0, 0, ())
ANNA = User(1234, 4321, (100,))

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")


def test_an_ordinary_user_runs_the_job_with_all_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("getuid", 1000), ("getgid", 1000), ("getgroups", [1000, 27, 44])):
        monkeypatch.setattr(os, name, lambda value=value: value)
    assert owner_of(tmp_path) == User(1000, 1000, (27, 44))


@as_root
def test_root_runs_the_job_as_the_owner_of_the_runs_folder(tmp_path: Path) -> None:
    assert owner_of(tmp_path).uid == 0
    os.chown(tmp_path, ANNA.uid, ANNA.gid)
    assert owner_of(tmp_path) == User(ANNA.uid, ANNA.gid, ())


@as_root
def test_a_folder_that_root_makes_belongs_to_the_owner_of_the_one_around_it(tmp_path: Path) -> None:
    os.chown(tmp_path, ANNA.uid, ANNA.gid)
    make_folder(tmp_path / "deep" / "runs")
    for folder in (tmp_path / "deep", tmp_path / "deep" / "runs"):
        assert (folder.stat().st_uid, folder.stat().st_gid) == (ANNA.uid, ANNA.gid)
    os.chown(tmp_path, 77, 77)
    make_folder(tmp_path / "deep" / "runs")  # what was there stays as it was
    assert (tmp_path / "deep").stat().st_uid == ANNA.uid


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "user", "allowed"),
    [
        ((1234, 4321), 0o400, ANNA, True),
        ((1234, 4321), 0o044, ANNA, False),
        ((77, 4321), 0o040, ANNA, True),
        ((77, 100), 0o040, ANNA, True),
        ((77, 77), 0o004, ANNA, True),
        ((77, 77), 0o660, ANNA, False),
        ((77, 77), 0o600, ROOT, False),  # a container's root passes no mode over
        ((0, 0), 0o600, ROOT, True),
    ],
)
def test_a_mode_says_who_may(tmp_path: Path, owner: tuple[int, int], mode: int, user: User, allowed: bool) -> None:
    file = tmp_path / "dog.jpg"
    file.touch()
    file.chmod(mode)
    os.chown(file, *owner)
    assert may(user, file, os.R_OK) is allowed


@as_root
def test_what_cannot_be_reached_is_told_in_one_line(tmp_path: Path) -> None:
    runs, photos = tmp_path / "runs", tmp_path / "photos"
    for folder in (runs, photos):
        folder.mkdir(mode=0o755)
    (photos / "dog.jpg").touch(mode=0o600)
    with pytest.raises(Unwritable, match=rf"^output: '{runs}' .* 1234, .*OUTPUT=.*$"):
        refuse_unreachable(ANNA, runs, [photos], some(str(photos)))
    os.chown(runs, ANNA.uid, ANNA.gid)
    with pytest.raises(Unreadable, match=rf"^'{photos}/dog.jpg' .* 1234, .*process$"):
        refuse_unreachable(ANNA, runs, [photos], some(str(photos)))
    (photos / "cat.jpg").touch(mode=0o644)  # one of them is enough: the other is a failed row
    refuse_unreachable(ANNA, runs, [photos], some(str(photos)))
    photos.chmod(0o700)
    with pytest.raises(Unreadable, match=f"^'{photos}' .* 1234"):
        refuse_unreachable(ANNA, runs, [photos], some(str(photos)))


def test_some_files_stand_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("notes.odt", "deep/dog.JPG"):
        (tmp_path / name).touch()
    for place in (".", "deep/dog.JPG", "**/*.JPG"):
        assert [file.name for file in some(str(tmp_path / place))] == ["dog.JPG"]
    assert some(str(tmp_path / "*.png")) == []
    for number in range(50):
        (tmp_path / f"{number}.png").touch()
    assert len(some(str(tmp_path))) == 20
