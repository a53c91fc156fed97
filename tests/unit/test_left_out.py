"""Listing passes nothing over in silence: images are known by content, and what is left out is counted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaging.kinds import IMAGE_SUFFIXES, OTHER_SUFFIXES, image_format, other_kind
from pipeline.errors import Unreadable
from pipeline.sources.listing import Listing, list_images
from pipeline.sources.objects import Objects
from tests.conftest import ROOT
from tests.pictures import animated, encoded, gradient
from tests.s3 import BUCKET, Store

JPEG = encoded(gradient())


def names(found: Listing, folder: Path) -> list[str]:
    return [source.shown.removeprefix(f"{folder}/") for source in found.sources]


AS_A_USER = """
import json, sys
from pipeline.errors import UsageError
from pipeline.sources.listing import list_images
try:
    found = list_images(sys.argv[1])
    print(json.dumps([[source.shown for source in found.sources], found.left_out, found.summary()]))
except UsageError as error:
    print(json.dumps([[], {}, str(error)]))
"""


def list_as_a_user(place: object) -> tuple[list[str], dict[str, int], str]:
    """Sources, what was left out, and the summary or the error, without root's right to read everything."""
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    command = [*prefix, sys.executable, "-c", AS_A_USER, str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    sources, left_out, said = json.loads(done.stdout)
    return sources, left_out, said


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A subfolder with a picture that this user may not search."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(JPEG)
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


def test_pictures_are_known_by_their_content(tmp_path: Path, closed: Path) -> None:
    files = {"a.jpg": JPEG, "b.jfif": JPEG, "c.hif": encoded(gradient(), "HEIF"), "IMG0001": JPEG, "d.orig": JPEG}
    other = {"README": b"text", "notes.md": JPEG, "a.xmp": b"<x/>", "b.xmp": b"<x/>", "empty": b"", ".DS_Store": b""}
    for name, content in {**files, **other}.items():
        (tmp_path / name).write_bytes(content)
    found, left_out, summary = list_as_a_user(tmp_path)
    assert found == [f"{tmp_path}/{name}" for name in sorted(files)]
    expected = {".xmp": 2, ".md": 1, "extensionless file": 2, "hidden file": 1, "unreadable folder": 1}
    assert left_out == expected
    assert summary.startswith("left out: 2 extensionless files (")
    assert f"1 unreadable folder ({closed})" in summary
    assert summary.endswith("2 .xmp, 1 .md")


def test_nothing_left_out_is_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert (list_images(str(tmp_path)).left_out, list_images(str(tmp_path)).summary()) == ({}, None)


def test_many_kinds_are_one_line(tmp_path: Path) -> None:
    for suffix in ("jpg", *sorted(OTHER_SUFFIXES)[:12]):
        (tmp_path / f"a.{suffix.strip('.')}").touch()
    summary = list_images(str(tmp_path)).summary()
    assert summary is not None
    assert summary.endswith(", 4 others")


def test_no_image_at_all_says_what_there_is_instead(tmp_path: Path, closed: Path) -> None:
    (tmp_path / "a.mp4").touch()
    _, _, said = list_as_a_user(tmp_path)
    assert "no image in the folder" in said
    assert f"1 unreadable folder ({closed}), 1 .mp4" in said


def test_folders_of_runs_are_not_searched(tmp_path: Path) -> None:
    """With the output inside the images' folder each run would have had those of the last one as images."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    run = tmp_path / "runs" / "dogs-1"
    for name in ("run.json", ".parts/committed.jsonl", "crops/1.jpg", "annotated/2.jpg"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(JPEG)
    (tmp_path / "runs" / "latest").symlink_to("dogs-1")
    for place in (tmp_path, f"{tmp_path}/**/*.jpg", f"{tmp_path}/**"):
        found = list_images(str(place))
        assert names(found, tmp_path) == ["a.jpg"], place
        assert found.left_out["run folder"] >= 1
        assert str(run) in (found.summary() or "") or "latest" in (found.summary() or "")
    assert list_images(str(tmp_path)).left_out == {"run folder": 1}
    assert names(list_images(str(run / "crops")), tmp_path) == ["runs/dogs-1/crops/1.jpg"]  # named: meant
    assert names(list_images(f"{tmp_path}/runs/d*/crops/*"), tmp_path) == ["runs/dogs-1/crops/1.jpg"]


def test_published_runs_are_not_searched(store: Store) -> None:
    for key in ("p/a.jpg", "p/r/run.json", "p/r/.parts/c", "p/r/crops/1.jpg", "p/r/annotated/1.jpg", "p/b.md", "p/.c"):
        store.put(key, JPEG)
    for place in ("p", "p/**/*.jpg"):
        found = list_images(f"s3://{BUCKET}/{place}", None, Objects(store.endpoint))
        assert [source.shown for source in found.sources] == [f"s3://{BUCKET}/p/a.jpg"]
        assert found.left_out["run folder"] == 1
    assert list_images(f"s3://{BUCKET}/p", None, Objects(store.endpoint)).left_out == {
        "run folder": 1,
        "hidden object": 1,
        ".md": 1,
    }


def test_links(tmp_path: Path) -> None:
    """A linked folder is not followed, wherever it leads, and a link that leads nowhere ends as a failed image."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "other").symlink_to("/usr")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.jpg").symlink_to("gone")
    (tmp_path / "link").symlink_to("a.jpg")
    found = list_images(str(tmp_path))
    assert names(found, tmp_path) == ["a.jpg", "gone.jpg", "link"]
    assert found.left_out == {"linked folder": 2, "broken link": 2}


def test_globs_say_what_they_pass_over(tmp_path: Path, closed: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    for pattern in ("**/*.jpg", "*/*.jpg"):
        found, left_out, _ = list_as_a_user(tmp_path / pattern)
        assert (bool(found), left_out) == (True, {"unreadable folder": 1})
    listing = list_images(f"{tmp_path}/*")
    assert names(listing, tmp_path) == ["a.jpg"]
    assert listing.left_out == {"folder": 2}


def archive(kind: str) -> bytes:
    target = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=target, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
    else:
        with zipfile.ZipFile(target, "w") as packed:
            packed.writestr("a.jpg", JPEG)
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tar", archive("tar"), "TAR archive"),
        ("a.zip", archive("zip"), "ZIP archive"),
        ("dataset", archive("zip"), "ZIP archive"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "archive"),
        ("a.tar.gz", b"\x1f\x8b\x08", "archive"),
        ("a.mp4", b"\0\0\0\x20ftypisom", "video"),
        ("a.mkv", b"\x1aE\xdf\xa3", "video"),
        ("a.pdf", b"%PDF-1.4", "PDF"),
        ("a.npy", b"\x93NUMPY\x01", "array"),
        ("a.nef", b"II*\0", "raw"),
        ("page", b"<!DOCTYPE html><html>", "HTML"),
        ("file.xyz", b"what is this", r"\.txt"),
    ],
)
def test_a_file_that_is_no_image_is_refused_with_a_remedy(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=said):
        list_images(str(tmp_path / name))


def test_a_video_of_the_web_is_refused_by_its_name() -> None:
    with pytest.raises(Unreadable, match="video"):
        list_images("https://example.com/a.mp4?x=1")


def test_one_picture_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "IMG0001").write_bytes(JPEG)
    assert names(list_images(str(tmp_path / "IMG0001")), tmp_path) == ["IMG0001"]


def test_a_list_of_find_print0_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a.jpg\0b.jpg\0")
    with pytest.raises(Unreadable, match=r"l\.txt .*NUL.*tr "):
        list_images(str(tmp_path / "l.txt"))


def test_names_that_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "~a.jpg").write_bytes(JPEG)
    (tmp_path / "l.txt").write_text("~a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert names(list_images("~a.jpg"), tmp_path) == ["~a.jpg"]
    assert names(list_images(str(tmp_path / "l.txt")), tmp_path) == ["~a.jpg"]


KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM")


@pytest.mark.parametrize("kind", KINDS)
def test_formats_are_known_by_their_first_bytes(kind: str) -> None:
    assert image_format(encoded(gradient(), kind)[:64]) == kind


def test_what_is_no_image_by_its_first_bytes() -> None:
    assert image_format(animated()[:64]) == "GIF"
    for content in (b"", b"text", b"BM is no bitmap, but text that begins so", b"P1 is a bug", archive("tar")):
        assert image_format(content) is None
    assert other_kind(bytes(128) + b"DICM") is not None
    assert not IMAGE_SUFFIXES & OTHER_SUFFIXES
