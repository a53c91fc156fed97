"""Parts: committed whole or not at all, merged to each image once."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.output import parts as parts_module
from pipeline.output.parts import Parts
from pipeline.output.resume import still_to_do
from pipeline.sources.listing import Source

PROPERTIES: dict[str, dict[str, Any]] = {
    "breed": {"type": "string", "enum": ["pug"]},
    "tags": {"type": "array"},
    "legs": {"type": "integer"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".parts").mkdir()
    return tmp_path


def image(path: str, key: str | None = None, outcome: str = "detected", **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "key": key or f"key of {path}",
        "outcome": outcome,
        "file_bytes": 10,
        "version": "5-10",
        **more,
    }


def found(path: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"path": path, "index": index, "outcome": "answered", "box": [0.0, 0.0, 1.0, 1.0], **more}


def test_committed_rows_are_there_after_a_restart(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a", 0, breed="pug", tags='["x"]', legs=4), found("a", 1)])
    parts.commit()
    parts.add(image("b"), [])  # never committed
    merged = Parts(folder, PROPERTIES).merge({"a", "b"})
    assert merged["images"]["path"].to_pylist() == ["a"]
    assert merged["detections"].select(["path", "index", "breed", "tags", "legs"]).to_pylist() == [
        {"path": "a", "index": 0, "breed": "pug", "tags": '["x"]', "legs": 4},
        {"path": "a", "index": 1, "breed": None, "tags": None, "legs": None},
    ]


def test_a_part_without_its_line_does_not_count(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    for name in ("a", "b"):
        parts.add(image(name), [found(name)])
        parts.commit()
    lines = parts.committed.read_text().splitlines()
    parts.committed.write_text(lines[0] + "\n" + lines[1][:6])  # the power went while the second was written
    again = Parts(folder, PROPERTIES)
    assert again.merge({"a", "b"})["images"]["path"].to_pylist() == ["a"]
    again.add(image("c"), [])
    again.commit()
    assert [json.loads(line)["part"] for line in again.committed.read_text().splitlines()] == ["000000", "000001"]
    assert Parts(folder, PROPERTIES).merge({"a", "b", "c"})["images"]["path"].to_pylist() == ["a", "c"]


def test_later_rows_of_an_image_replace_earlier_ones(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a", 0, breed="pug"), found("a", 1, breed="pug")])
    parts.commit()
    parts.add(image("a", "other", "no_object"), [])
    parts.commit()
    merged = parts.merge({"a"})
    assert merged["images"]["outcome"].to_pylist() == ["no_object"]
    assert merged["detections"].num_rows == 0


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        pytest.param({"outcome": "failed"}, True, id="the same content"),
        pytest.param({"outcome": "failed", "version": "6-10"}, True, id="the same content, touched"),
        pytest.param({"outcome": "failed", "key": None}, True, id="not read, the same file"),
        pytest.param({"outcome": "failed", "key": None, "version": "6-10"}, False, id="not read, another file"),
        pytest.param({"outcome": "failed", "key": "other"}, False, id="other content"),
        pytest.param({"outcome": "no_object"}, False, id="not failed"),
    ],
)
def test_a_retry_that_failed_replaces_no_answers(folder: Path, later: dict[str, Any], kept: bool) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a", breed="pug")])
    parts.commit()
    parts.add(image("a") | later, [])
    parts.commit()
    merged = parts.merge({"a"})
    assert merged["images"]["outcome"].to_pylist() == ["detected" if kept else later["outcome"]]
    assert merged["detections"].num_rows == int(kept)


def test_what_is_not_listed_any_more_is_left_out(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a")])
    parts.add(image("b"), [found("b")])
    parts.commit()
    merged = parts.merge({"b"})
    assert merged["images"]["path"].to_pylist() == merged["detections"]["path"].to_pylist() == ["b"]


def test_parts_are_committed_when_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART_IMAGES", 3)
    parts = Parts(folder, PROPERTIES)
    for number in range(7):
        parts.add(image(str(number)), [])
    assert len(parts.names) == 2
    assert len(parts.rows["images"]) == 1


def test_parts_are_committed_when_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART_S", -1.0)
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [])
    assert len(parts.names) == 1


def test_a_duplicate_has_the_rows_of_its_original(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("m", "same"), [found("m", breed="pug")])
    parts.add(image("a", "same", "duplicate"), [])
    parts.commit()
    merged = parts.merge({"a", "m"})
    assert merged["images"].select(["path", "outcome", "duplicate_of"]).to_pylist() == [
        {"path": "a", "outcome": "detected", "duplicate_of": None},
        {"path": "m", "outcome": "detected", "duplicate_of": "a"},
    ]
    assert merged["detections"].select(["path", "breed"]).to_pylist() == [
        {"path": "a", "breed": "pug"},
        {"path": "m", "breed": "pug"},
    ]


def test_a_duplicate_whose_original_is_missing_is_to_be_done(folder: Path) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a", "same", "duplicate"), [])
    parts.commit()
    assert parts.merge({"a"})["images"].num_rows == 0
    assert still_to_do([Source(b"a", "5-10")], parts.latest(), set()) == [Source(b"a", "5-10")]


def test_a_duplicate_whose_original_has_changed_is_to_be_done(folder: Path) -> None:
    """Nobody would have its answers any more; one of an original that is merely not listed any more has them."""
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a", "same"), [found("a")])
    parts.add(image("b", "same", "duplicate"), [])
    parts.commit()
    a, changed, b = Source(b"a", "5-10"), Source(b"a", "6-11"), Source(b"b", "5-10")
    assert still_to_do([a, b], parts.latest(), set()) == []
    assert still_to_do([changed, b], parts.latest(), set()) == [changed, b]
    assert still_to_do([a, b], parts.latest(), {"a"}) == [a]  # the content is the same: it will have them again
    assert still_to_do([b], parts.latest(), set()) == []
    assert parts.merge({"b"})["images"]["outcome"].to_pylist() == ["detected"]


@pytest.mark.parametrize(
    ("source", "retry", "todo"),
    [
        (Source(b"a", "5-10"), set(), False),
        (Source(b"a", "5-11"), set(), True),
        (Source(b"a", None), set(), True),
        (Source(b"b", "5-10"), set(), True),
        (Source(b"a", "5-10"), {"a"}, True),
    ],
)
def test_what_is_still_to_do(folder: Path, source: Source, retry: set[str], todo: bool) -> None:
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [])
    parts.commit()
    assert bool(still_to_do([source], parts.latest(), retry)) is todo


def test_a_start_writes_nothing(folder: Path) -> None:
    """On a full disk a file that is written anew is a file that is lost."""
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a")])
    parts.commit()
    before = parts.committed.stat()
    assert Parts(folder, PROPERTIES).names == ["000000"]
    after = parts.committed.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_list_of_parts_that_cannot_be_written_stays_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that fills up, and finds room again before the run has ended."""
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [])
    parts.commit()
    parts.add(image("b"), [])
    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "sync_disk", lambda folder: patched.setattr(os, "fsync", full))
        with pytest.raises(OSError, match="No space left"):
            parts.commit()
    assert Parts(folder, PROPERTIES).names == ["000000"]
    parts.commit()
    assert Parts(folder, PROPERTIES).merge({"a", "b"})["images"]["path"].to_pylist() == ["a", "b"]


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_many_detections_are_committed_before_many_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART_DETECTIONS", 4)
    parts = Parts(folder, PROPERTIES)
    parts.add(image("a"), [found("a", index) for index in range(3)])
    assert parts.names == []
    parts.add(image("b"), [found("b", index) for index in range(3)])
    assert parts.names == ["000000"]
