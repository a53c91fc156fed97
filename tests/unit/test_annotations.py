"""Files of annotated objects: COCO JSON and tables, and which images their names mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Unreadable
from pipeline.sources.annotations import Annotation, Annotations, match_names, read_annotations
from pipeline.sources.objects import Objects

COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a/1.jpg", "width": 640, "height": 480},
        {"id": 8, "file_name": "2.jpg"},
    ],
    "categories": [{"id": 18, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 18,
            "bbox": [10, 20, 30.5, 40],
            "iscrowd": 1,
            "score": 0.5,
            "attributes": {"breed": "pug"},
            "age": 3,
        },
    ],
}


def read(path: Path) -> Annotations:
    return read_annotations(str(path), Objects())


def coco(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_boxes_become_corners(tmp_path: Path) -> None:
    found = read(coco(tmp_path, COCO))
    fields = {"breed": "pug", "age": 3}
    assert found.of == {"a/1.jpg": [Annotation("dog", (10, 20, 40.5, 60), 0.5, fields, crowd=True)], "2.jpg": []}
    assert found.sizes == {"a/1.jpg": (640, 480)}


BOX = {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": None}, "no lists `images`"),
        ({"images": [{"id": 1}]}, r"images\[0\]"),
        ({"annotations": [{"image_id": 99, "category_id": 18, "bbox": [1, 2, 3, 4]}]}, r"annotations\[0\]"),
        ({"annotations": [{"image_id": 7, "category_id": 99, "bbox": [1, 2, 3, 4]}]}, r"annotations\[0\]"),
        ({"annotations": [{"image_id": 7, "category_id": 18, "bbox": [1, 2, 3]}]}, r"annotations\[0\]"),
        ({"annotations": [{"image_id": 7, "category_id": 18, "bbox": [1, 2, float("nan"), 4]}]}, r"annotations\[0\]"),
        ({"annotations": ["dog"]}, r"annotations\[0\]"),
        ({"annotations": [BOX | {"score": "high"}]}, r"annotations\[0\].*`score` is a number"),
        ({"annotations": [BOX | {"attributes": ["wet"]}]}, r"annotations\[0\].*`attributes`"),
        ({"categories": ["dog"]}, r"categories\[0\]"),
        ({"categories": {"18": "dog"}}, r"categories\[0\]"),
    ],
)
def test_a_malformed_coco_file_names_its_entry(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(Unreadable, match=named):
        read(coco(tmp_path, COCO | change))


ROWS: list[dict[str, Any]] = [
    {"path": "1.jpg", "label": "dog", "x1": 1, "y1": 2, "x2": 3, "y2": 4, "breed": "pug"},
    {"path": "1.jpg", "label": "dog", "x1": 5, "y1": 6, "x2": 7, "y2": 8, "breed": "boxer"},
    {"path": "2.jpg", "label": None, "x1": None, "y1": None, "x2": None, "y2": None, "breed": "pug"},
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_have_a_row_for_each_object(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"truth.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "csv":
        lines = [",".join(ROWS[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in ROWS)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)))
    found = read(path)
    assert [(one.label, one.box, one.fields["breed"]) for one in found.of["1.jpg"]] == [
        ("dog", (1, 2, 3, 4), "pug"),
        ("dog", (5, 6, 7, 8), "boxer"),
    ]
    (whole,) = found.of["2.jpg"]
    assert (whole.label or None, whole.box, whole.fields) == (None, None, {"breed": "pug"})


def test_a_box_may_be_a_list_or_its_text(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text('file_name,box,label\na.jpg,"[1, 2, 3, 4]",dog\n')
    assert read(path).of["a.jpg"] == [Annotation("dog", (1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "a,b\n1,2\n", "none of its columns"),
        ("x.csv", 'path,box\na.jpg,"[1, 2]"\n', "row 0"),
        ("x.csv", "path,label,score\na.jpg,dog,high\n", "row 0: the score 'high'"),
        ("x.json", "{", "cannot be read"),
        ("x.txt", "", "by its name"),
        ("missing.json", None, "No such file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(Unreadable, match=said):
        read(tmp_path / name)


def test_names_match_paths_by_whole_folders() -> None:
    paths = ["/photos/a/1.jpg", "/photos/b/1.jpg", "/photos/b/21.jpg", "c/3.jpg"]
    matches = match_names(["a/1.jpg", "b\\21.jpg", "c/3.jpg", "9.jpg", "./x/3.jpg"], paths)
    assert matches.of == {
        "/photos/a/1.jpg": "a/1.jpg",
        "/photos/b/21.jpg": "b\\21.jpg",
        "c/3.jpg": "c/3.jpg",
    }
    assert sorted(matches.unmatched) == ["./x/3.jpg", "9.jpg"]


def test_a_name_of_several_images_is_told() -> None:
    matches = match_names(["1.jpg"], ["a/1.jpg", "b/1.jpg"])
    assert (matches.of, matches.ambiguous) == ({}, ["1.jpg"])
    assert matches.summary() == "1 names are those of several images of this run, such as 1.jpg"
