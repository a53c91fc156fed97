"""Jobs that ask no detector: the whole image, or boxes that come with the images."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import job, settings
from pipeline.errors import InvalidJob, InvalidSetting, NotFound, Unreadable
from pipeline.output.manifest import Result
from pipeline.run import run
from pipeline.stages import read as read_stage
from scripts.profile import command as profile_command
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

REST = """
description: Look at pictures.
question: What colour is it?
schema: {type: object, properties: {color: {enum: [black, white]}}, required: [color]}
max_tokens: 8
summary: color
"""
Do = Callable[..., tuple[Result, str]]


@pytest.fixture
def photos(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encoded(gradient(320 + number, 240)))
    simulated.answer = lambda crop, body: json.dumps({"color": "black"})
    return tmp_path / "photos"


@pytest.fixture
def do(photos: Path, tmp_path: Path) -> Do:
    def do_job(head: str, *options: str, images: Path = photos) -> tuple[Result, str]:
        path = tmp_path / "look.yaml"
        path.write_text(f"{head}\n{REST}")
        arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), "--job", str(path), *options]
        console = Console(file=io.StringIO(), width=200)
        done = run(settings.load(arguments), console)
        assert isinstance(console.file, io.StringIO)
        return done, console.file.getvalue()

    return do_job


def rows(done: Result, table: str = "detections") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(done.folder / f"{table}.parquet").to_pylist()
    return found


def found(done: Result) -> list[tuple[str, str, list[float], float | None]]:
    return [(Path(row["path"]).name, row["label"], row["box"], row["score"]) for row in rows(done)]


def test_the_whole_image_is_the_one_detection(do: Do, simulated: Simulated) -> None:
    done, said = do("boxes: whole")
    assert found(done) == [(f"{n}.jpg", "image", [0, 0, 320 + n, 240], None) for n in range(3)]
    assert {row["outcome"] for row in rows(done)} == {"answered"}
    assert simulated.detector.requests == 0
    assert "look: 3 images, whole images, model simulated" in said
    assert (done.folder / "report.html").exists()
    assert (done.folder / "profile" / "profile.json").exists()
    assert done.manifest["identity"]["detector"] == "whole images"
    tiles = re.findall(r'<div class="tile"><b>(\d+)</b>(.*?)</div>', (done.folder / "report.html").read_text())
    assert tiles == [("3", "images"), ("3", "asked about"), ("3", "answered"), ("0", "failed")]


def test_a_large_image_is_not_copied_for_a_detector_that_nobody_asks(
    do: Do, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_stage, "copy_for_detector", lambda *_: pytest.fail("copied"))
    (photos / "0.jpg").write_bytes(encoded(gradient(4000, 3000)))
    (photos / "1.jpg").write_bytes(encoded(gradient(4000, 3000))[:-2000])
    (photos / "2.bmp").write_bytes(encoded(gradient(1500, 1000), "BMP"))
    done, said = do("boxes: whole")
    first, cut, *_ = rows(done, "images")
    assert (first["width"], first["height"]) == (4000, 3000)
    assert "truncated" in cut["reason"]  # a small decode finds it too
    assert [row["outcome"] for row in rows(done)] == ["answered"] * 3
    assert "detector" not in said


def profile_of(done: Result) -> dict[str, Any]:
    """The run's profile."""
    content: dict[str, Any] = json.loads((done.folder / "profile" / "profile.json").read_text())
    return content


@pytest.mark.parametrize("images", [3, 120])
def test_the_pages_of_a_profile_are_made_for_a_job_without_a_detector(do: Do, photos: Path, images: int) -> None:
    for number in range(3, images):
        (photos / f"{number}.png").write_bytes(encoded(gradient(64 + number, 48), "PNG"))
    done, _ = do("boxes: whole", "--profile")
    said = io.StringIO()
    console = Console(file=said, width=160)
    profile_command.show(console, done.folder, None)
    profile = profile_of(done)
    assert "detector" not in profile["services"]
    assert "SPOTTER_DETECTOR_CONCURRENCY" not in profile["settings"]
    assert "DETECTOR" not in json.dumps(profile["diagnosis"])
    assert "etector" not in said.getvalue()
    assert {"profile.html", "profile.md", "trace.json"} <= {path.name for path in (done.folder / "profile").iterdir()}


def test_whole_images_may_have_a_label_of_their_own(do: Do) -> None:
    assert {label for _, label, _, _ in found(do("boxes: whole\nlabel: chart")[0])} == {"chart"}


@pytest.mark.parametrize(
    ("head", "fact"),
    [
        ("boxes: whole\nlabels: [a, b]", "labels: with `boxes: whole`"),
        ("boxes: whole\nlabels: any", "labels: with `boxes: whole`"),
        ("boxes: whole\nthreshold: 0.5", "threshold: has no meaning"),
        ("boxes: all\nlabel: x", "boxes: .*'detector', 'whole' or 'input'"),
    ],
)
def test_keys_that_have_no_meaning_are_refused(do: Do, head: str, fact: str) -> None:
    with pytest.raises(InvalidJob, match=fact):
        do(head)


@pytest.mark.parametrize(
    ("head", "options", "fact"),
    [
        ("boxes: input", (), "set SPOTTER_BOXES"),
        ("label: dog", ("--boxes", "x.json"), "has no effect on job look"),
        ("boxes: input", ("--boxes", "column:boxes"), "is no table"),
    ],
)
def test_boxes_and_their_setting_belong_together(do: Do, head: str, options: tuple[str, ...], fact: str) -> None:
    with pytest.raises(InvalidSetting, match=fact):
        do(head, *options)


def coco(folder: Path, **more: Any) -> Path:
    content = {
        "images": [
            {"id": 1, "file_name": "0.jpg", "width": 320, "height": 240},
            {"id": 2, "file_name": "1.jpg", "width": 1, "height": 240},
            {"id": 3, "file_name": "elsewhere.jpg"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40], "score": 0.2},
            {"image_id": 1, "category_id": 8, "bbox": [0, 0, 50, 50], "score": 0.9},
            {"image_id": 1, "category_id": 7, "bbox": [900, 0, 50, 50], "score": 0.8},
            {"image_id": 2, "category_id": 7, "bbox": [0, 0, 50, 50]},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(content | more))
    return path


def test_boxes_of_coco_json(do: Do, simulated: Simulated, tmp_path: Path) -> None:
    done, said = do("boxes: input", "--boxes", str(coco(tmp_path)))
    by_outcome = {(Path(row["path"]).name, row["outcome"]): row["reason"] for row in rows(done, "images")}
    assert set(by_outcome) == {("0.jpg", "detected"), ("1.jpg", "failed"), ("2.jpg", "no_object")}
    assert "321 x 240" in by_outcome["1.jpg", "failed"]
    assert "1 x 240" in by_outcome["1.jpg", "failed"]
    assert [each[:3] for each in found(done)] == [
        ("0.jpg", "cat", [0, 0, 50, 50]),
        ("0.jpg", "dog", [900, 0, 950, 50]),
        ("0.jpg", "dog", [10, 20, 40, 60]),
    ]
    assert [each[3] for each in found(done)] == pytest.approx([0.9, 0.8, 0.2])
    assert [row["outcome"] for row in rows(done)] == ["answered", "failed", "answered"]
    assert "outside" in rows(done)[1]["reason"]
    assert "boxes: 1 names are those of no image of this run, such as elsewhere.jpg" in said
    assert "boxes: 1 of 3 images are not in" in said
    assert simulated.detector.requests == 0
    assert set(done.manifest["labels"]) == {"cat", "dog"}


def test_labels_and_scores_choose_among_given_boxes(do: Do, tmp_path: Path) -> None:
    done, _ = do("boxes: input\nlabels: {dog: null, cat: 0.95}\nthreshold: 0.5", "--boxes", str(coco(tmp_path)))
    assert [(label, box) for _, label, box, _ in found(done)] == [("dog", [900, 0, 950, 50])]


def test_other_boxes_are_another_run(do: Do, tmp_path: Path) -> None:
    first, _ = do("boxes: input", "--boxes", str(coco(tmp_path)))
    again, _ = do("boxes: input", "--boxes", str(coco(tmp_path)))
    other, _ = do("boxes: input", "--boxes", str(coco(tmp_path, annotations=[])))
    assert first.folder == again.folder
    assert other.folder != first.folder


def test_names_of_other_images_are_refused(do: Do, tmp_path: Path) -> None:
    path = coco(tmp_path, images=[{"id": 1, "file_name": "x.jpg"}], annotations=[])
    with pytest.raises(NotFound, match=r"such as x\.jpg"):
        do("boxes: input", "--boxes", str(path))


def test_boxes_of_an_earlier_run_go_by_content(do: Do, simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    simulated.boxes = lambda image: [[0.0, 0, 90, 90], [100.0, 0, 190, 90]] if image.width < 322 else []
    earlier, _ = do("label: dog")
    asked = simulated.detector.requests
    moved = tmp_path / "moved"
    moved.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").rename(moved / f"moved-{number}.jpg")
    (moved / "new.jpg").write_bytes(encoded(gradient(99, 99)))
    done, said = do("boxes: input", "--boxes", str(earlier.folder), images=moved)
    assert simulated.detector.requests == asked
    assert f"boxes of run {earlier.folder.name}" in said
    expected = [(f"moved-{name}", *rest) for name, *rest in found(earlier)]
    assert found(done) == expected
    outcomes = {Path(row["path"]).name: (row["outcome"], row["reason"]) for row in rows(done, "images")}
    assert outcomes["moved-2.jpg"][0] == "no_object"
    assert outcomes["new.jpg"][0] == "failed"
    assert "content" in str(outcomes["new.jpg"][1])


def test_a_run_of_another_version_or_none_is_refused(do: Do, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no folder of a run that has ended"):
        do("boxes: input", "--boxes", str(tmp_path))
    earlier, _ = do("boxes: whole")
    manifest = json.loads((earlier.folder / "run.json").read_text())
    manifest["identity"]["table_format"] = "3"
    (earlier.folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(Unreadable, match="table format 3, expected 4"):
        do("boxes: input", "--boxes", str(earlier.folder))


def table(folder: Path, boxes: Any, *, in_rows: bool) -> Path:
    names = [str(folder / "photos" / f"{number}.jpg") for number in range(3)]
    pictures = [Path(name).read_bytes() for name in names] if in_rows else names
    path = folder / "table.parquet"
    pq.write_table(pa.table({"picture": pictures, "boxes": boxes}), path)
    return path


@pytest.mark.parametrize("in_rows", [True, False])
@pytest.mark.usefixtures("photos")
def test_boxes_of_a_column(do: Do, tmp_path: Path, in_rows: bool) -> None:
    path = table(tmp_path, [[[1, 2, 30, 40], [5, 6, 70, 80]], [], None], in_rows=in_rows)
    done, _ = do("boxes: input\nlabel: dog", "--boxes", "column:boxes", images=path)
    assert [(label, box) for _, label, box, _ in found(done)] == [("dog", [1, 2, 30, 40]), ("dog", [5, 6, 70, 80])]
    assert sorted(row["outcome"] for row in rows(done, "images")) == ["detected", "no_object", "no_object"]


@pytest.mark.usefixtures("photos")
def test_boxes_of_a_column_of_structs(do: Do, tmp_path: Path) -> None:
    boxes = [[{"box": [1.0, 2, 30, 40], "label": "cat", "score": 0.5}], [], []]
    path = table(tmp_path, boxes, in_rows=True)
    done, _ = do("boxes: input\nlabels: any", "--boxes", "column:boxes", images=path)
    assert [each[1:] for each in found(done)] == [("cat", [1, 2, 30, 40], 0.5)]


@pytest.mark.parametrize("wrong", [[1, 2, 3, 4], [[1, 2, 3]], "[[1, 2", 7])
@pytest.mark.usefixtures("photos")
def test_a_row_with_something_else_is_named(do: Do, tmp_path: Path, wrong: Any) -> None:
    path = table(tmp_path, [wrong] * 3, in_rows=True)
    with pytest.raises(Unreadable, match=r"row .*table\.parquet#00000000 holds .*expected a list of boxes"):
        do("boxes: input", "--boxes", "column:boxes", images=path)


@pytest.mark.usefixtures("photos")
def test_a_missing_column_is_named(do: Do, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no column 'bboxes': its columns are picture"):
        do("boxes: input", "--boxes", "column:bboxes", images=table(tmp_path, [[], [], []], in_rows=True))


def test_a_job_file_keeps_its_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"boxes: input\nlabels: [dog, cat]\n{REST}")
    loaded = job.load(str(tmp_path / "a.yaml"))
    assert (loaded.boxes, loaded.content()["boxes"], loaded.content()["labels"]) == ("input", "input", ["dog", "cat"])


@pytest.mark.parametrize("in_rows", [True, False])
@pytest.mark.usefixtures("photos")
def test_boxes_of_a_column_go_to_each_element_of_a_row(do: Do, tmp_path: Path, in_rows: bool) -> None:
    path = table(tmp_path, [[[1, 2, 30, 40]], [], [[5, 6, 70, 80]]], in_rows=in_rows)
    texts = pa.array([[{"user": "one"}, {"user": "two"}], [{"user": "three"}], [{"user": "four"}]])
    pq.write_table(pq.read_table(path).append_column("texts", texts), path)
    head = "boxes: input\nlabel: dog\ninputs: {asked: texts.user}\neach: texts"
    done, _ = do(head, "--boxes", "column:boxes", images=path)
    assert [(name.rpartition("#")[2], box) for name, _, box, _ in found(done)] == [
        ("00000000.0", [1, 2, 30, 40]),
        ("00000000.1", [1, 2, 30, 40]),
        ("00000002.0", [5, 6, 70, 80]),
    ]


@pytest.mark.usefixtures("photos")
def test_boxes_of_a_run_with_other_inputs_are_refused(do: Do, tmp_path: Path) -> None:
    earlier, _ = do("boxes: whole")
    path = table(tmp_path, [[], [], []], in_rows=True)
    pq.write_table(pq.read_table(path).append_column("asked", pa.array(["a", "b", "c"])), path)
    with pytest.raises(InvalidSetting, match="has the inputs none, job look has asked"):
        do("boxes: input\ninputs: {asked: asked}", "--boxes", str(earlier.folder), images=path)
