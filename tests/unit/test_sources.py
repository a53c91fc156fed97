"""Finding images."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.sources import Source, list_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.jpg", "notes.txt", "sub/c.png", ".hidden/d.jpg", ".e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(found: list[Source], folder: Path) -> list[str]:
    return [str(source.path.relative_to(folder)) for source in found]


def test_a_folder_is_searched_through(photos: Path) -> None:
    assert names(list_images(str(photos)), photos) == ["a.jpg", "b.JPG", "sub/c.png"]


def test_a_glob(photos: Path) -> None:
    assert names(list_images(f"{photos}/**/*.png"), photos) == ["sub/c.png"]


def test_one_file_of_any_name(photos: Path) -> None:
    assert names(list_images(str(photos / "notes.txt")), photos) == ["notes.txt"]


def test_a_name_that_is_no_utf_8(photos: Path) -> None:
    odd = os.fsencode(photos) + b"/\xff.jpg"
    Path(os.fsdecode(odd)).touch()
    assert odd in [os.fsencode(source.path) for source in list_images(str(photos))]


def test_a_name_that_looks_like_a_glob_is_a_file(photos: Path) -> None:
    (photos / "[1].jpg").touch()
    assert names(list_images(str(photos / "[1].jpg")), photos) == ["[1].jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("empty", "no image in the folder"), ("missing", "matches nothing"), ("*.tiff", "matches nothing")],
)
def test_nothing_there(photos: Path, source: str, message: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match=message) as raised:
        list_images(str(photos / source))
    assert "IMAGES=" in str(raised.value)
