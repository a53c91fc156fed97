"""Exports of a run, against files written by hand: awkward paths, failures, duplicates, images that are not here."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools.coco import COCO

from pipeline import tables
from pipeline.errors import InvalidSetting, NotFound, OtherRun, Unreadable, Unwritable
from pipeline.output.run_folder import find_run
from pipeline.results.export import export
from pipeline.results.exports import EXPORTS, Format
from pipeline.results.finished_run import FinishedRun, Tally, local_file, read_run
from tests.finished_runs import detection, failed_detection, failed_image, finished_run, image
from tests.pictures import encoded, gradient

BUCKET, ROW = "s3://bucket/a dog.jpg", "/data/photos.parquet#00000001"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Images by a short name, with their paths as the tables have them."""
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    names = {"one": b"a/one two.jpg", "equal": b"b/one two.jpg", "latin": b"a/caf\xe9.jpg", "empty": b"a/empty.jpg"}
    found = {}
    for name, path in names.items():
        file = bytes(folder) + b"/" + path
        with open(os.fsdecode(file), "wb") as handle:  # noqa: PTH123 bytes that are not UTF-8
            handle.write(encoded(gradient(200, 100)))
        found[name] = tables.shown_path(file)
    return found


@pytest.fixture
def finished(files: dict[str, str], tmp_path: Path) -> FinishedRun:
    """A run over these images, a damaged one, one in a bucket and one in a table."""
    crop = tmp_path / "run" / "crops" / "one-0.jpg"
    images = [
        image(files["one"]),
        image(files["equal"], duplicate_of=files["one"]),
        image(files["latin"]),
        image(files["empty"], outcome=tables.NO_OBJECT),
        failed_image("/photos/broken.jpg"),
        image(BUCKET),
        image(ROW),
    ]
    detections = [
        detection(files["one"], crop="crops/one-0.jpg"),
        detection(files["one"], 1, label="cat", box=[-5, 10, 50, 120], breed=None, note="=1+1"),
        detection(files["equal"], crop="crops/one-0.jpg"),
        failed_detection(files["latin"]),
        failed_detection(files["latin"], 1, box=[300, 0, 400, 50]),
        failed_detection(files["latin"], 2, box=[float("nan")] * 4),
        detection(BUCKET, collar=False),
        detection(ROW),
    ]
    run = finished_run(tmp_path / "run", images, detections)
    crop.parent.mkdir()
    crop.write_bytes(encoded(gradient(100, 100)))
    return run


def written(run: FinishedRun, name: str) -> Path:
    return export(run, name, run.folder.parent / name).folder


def content(file: Path) -> Any:
    return json.loads(file.read_text())


def note(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = content(folder / "export.json")
    return found


OUTSIDE = {"detections whose box lies outside the image": 2}
FAILED = {"images that failed": 1}
NOT_HERE = {"images without a file on this host": 2}


@pytest.mark.parametrize(
    ("name", "images", "detections", "left_out"),
    [
        ("coco", 6, 6, OUTSIDE | FAILED),
        ("yolo", 4, 4, OUTSIDE | FAILED | NOT_HERE),
        ("labelstudio", 5, 5, OUTSIDE | FAILED | {"images without a file on this host or an address": 1}),
        ("fiftyone", 4, 4, OUTSIDE | FAILED | NOT_HERE),
        ("hf", 6, 6, OUTSIDE | FAILED | {"pictures of images without a file on this host": 2}),
        ("csv", 7, 8, {}),
    ],
)
def test_every_export_says_what_it_holds_and_leaves_out(
    finished: FinishedRun, name: str, images: int, detections: int, left_out: dict[str, int]
) -> None:
    counts = {"images": images, "detections": detections, "left_out": left_out}
    assert note(written(finished, name)) == {"run": "run", "format": name, **counts}


def test_every_format_is_tested_here() -> None:
    assert set(EXPORTS) == {"coco", "yolo", "labelstudio", "fiftyone", "hf", "csv"}


def test_coco(finished: FinishedRun, files: dict[str, str]) -> None:
    found = content(written(finished, "coco") / "annotations.json")
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [each["file_name"] for each in found["images"]] == [*files.values(), BUCKET, ROW]
    assert found["images"][1]["duplicate_of"] == files["one"]
    assert found["images"][0] == {"id": 1, "file_name": files["one"], "width": 200, "height": 100}
    first, second = found["annotations"][:2]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [0, 0, 100, 100],
        "area": 10000,
        "iscrowd": 0,
        "score": 0.75,
        "attributes": {"outcome": "answered", "breed": "pug", "collar": True, "legs": 4, "note": "asleep"},
    }
    assert (second["category_id"], second["bbox"], second["attributes"]["breed"]) == (1, [0, 10, 50, 90], None)
    assert [each["image_id"] for each in found["annotations"]] == [1, 1, 2, 3, 5, 6]
    assert found["annotations"][3]["attributes"]["outcome"] == "failed"


def test_coco_is_read_by_its_own_library(finished: FinishedRun) -> None:
    read = COCO(str(written(finished, "coco") / "annotations.json"))
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == ["cat", "dog"]
    assert [len(read.getAnnIds(imgIds=[image])) for image in read.getImgIds()] == [2, 1, 1, 0, 1, 1]
    cats = read.loadAnns(read.getAnnIds(catIds=read.getCatIds(["cat"])))
    assert [each["bbox"] for each in cats] == [[0, 10, 50, 90]]


def test_yolo(finished: FinishedRun, files: dict[str, str]) -> None:
    folder = written(finished, "yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data == {"train": "images", "val": "images", "names": {0: "cat", 1: "dog"}}
    links = {link.stem: link for link in (folder / "images").iterdir()}
    assert {label.stem for label in (folder / "labels").iterdir()} == links.keys()
    of = {str(link.readlink()): link.stem for link in links.values()}
    assert of.keys() == {str(local_file(path)) for path in files.values()}
    assert all(link.suffix == ".jpg" and link.is_file() for link in links.values())
    one, equal, latin, empty = (
        (folder / "labels" / f"{of[str(local_file(path))]}.txt").read_text() for path in files.values()
    )
    assert one.splitlines() == ["1 0.250000 0.500000 0.500000 1.000000", "0 0.125000 0.550000 0.250000 0.900000"]
    assert equal == latin == "1 0.250000 0.500000 0.500000 1.000000\n"
    assert empty == ""


def test_label_studio(finished: FinishedRun, files: dict[str, str]) -> None:
    folder = written(finished, "labelstudio")
    tasks = content(folder / "tasks.json")
    assert [task["data"]["path"] for task in tasks] == [*files.values(), BUCKET]
    addresses = [task["data"]["image"] for task in tasks]
    assert addresses[0].startswith("/data/local-files/?d=")
    assert addresses[0].endswith("/photos/a/one%20two.jpg")
    assert addresses[2].endswith("/photos/a/caf%E9.jpg")
    assert addresses[4] == BUCKET
    results = tasks[0]["predictions"][0]["result"]
    box = {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0}
    assert [(each["id"], each["from_name"], each["type"]) for each in results[:5]] == [
        ("0", "box", "rectanglelabels"),
        ("0", "breed", "choices"),
        ("0", "collar", "choices"),
        ("0", "legs", "number"),
        ("0", "note", "textarea"),
    ]
    assert [each["value"] for each in results[:5]] == [
        box | {"rectanglelabels": ["dog"]},
        box | {"choices": ["pug"]},
        box | {"choices": ["true"]},
        box | {"number": 4},
        box | {"text": ["asleep"]},
    ]
    assert {each["from_name"] for each in results[5:]} == {"box", "collar", "legs", "note"}
    assert tasks[3]["predictions"][0]["result"] == []


def test_the_labelling_set_up_has_a_field_for_each_answer(finished: FinishedRun) -> None:
    view = ElementTree.parse(written(finished, "labelstudio") / "labelling_setup.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == ["cat", "dog"]
    fields = {each.get("name"): each.tag for each in view if each.get("perRegion") == "true"}
    assert fields == {"breed": "Choices", "collar": "Choices", "legs": "Number", "note": "TextArea"}
    assert [each.get("value") for each in view.iter("Choice")] == ["pug", "corgi", "true", "false"]
    assert {each.get("toName") for each in view if each.get("toName")} == {"path"}


def test_fiftyone(finished: FinishedRun) -> None:
    folder = written(finished, "fiftyone")
    found = content(folder / "labels.json")
    assert found["classes"] == ["cat", "dog"]
    assert {link.stem for link in (folder / "data").iterdir()} == found["labels"].keys()
    assert sorted(map(len, found["labels"].values())) == [0, 1, 1, 2]
    first = next(labels for labels in found["labels"].values() if len(labels) == 2)
    assert first[0] == {
        "label": "dog",
        "bounding_box": [0, 0, 0.5, 1],
        "confidence": 0.75,
        "attributes": {"outcome": "answered", "breed": "pug", "collar": True, "legs": 4, "note": "asleep"},
    }
    assert "breed" not in first[1]["attributes"]


def test_hugging_face(finished: FinishedRun, files: dict[str, str]) -> None:
    folder = written(finished, "hf")
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert [each["data_files"] for each in card["configs"]] == ["detections/*.parquet", "images/*.parquet"]
    found = pq.read_table(folder / "detections" / "00000.parquet")
    features = json.loads(found.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"crop": {"_type": "Image"}}
    rows = found.to_pylist()
    assert [row["outcome"] for row in rows] == ["answered"] * 3 + ["failed"] * 3 + ["answered"] * 2
    crop = (finished.folder / "crops" / "one-0.jpg").read_bytes()
    assert rows[0]["crop"] == rows[2]["crop"] == {"bytes": crop, "path": "crops/one-0.jpg"}
    assert rows[1]["crop"] is None
    images = pq.read_table(folder / "images" / "00000.parquet").to_pylist()
    assert [row["path"] for row in images] == [*files.values(), BUCKET, ROW]
    assert [row["image"] is None for row in images] == [False] * 4 + [True] * 2
    assert images[0]["image"]["bytes"] == encoded(gradient(200, 100))
    assert images[0]["objects"][1]["bbox"] == [0, 10, 50, 90]
    assert json.loads(images[0]["objects"][0]["answer"])["legs"] == 4
    assert images[3]["objects"] == []


def test_csv_keeps_all_rows_and_no_text_is_a_formula(finished: FinishedRun) -> None:
    folder = written(finished, "csv")
    with (folder / "detections.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 8
    assert [rows[0][f"box_{corner}"] for corner in ("x1", "y1", "x2", "y2")] == ["0", "0", "100", "100"]
    assert (rows[0]["breed"], rows[0]["collar"], rows[0]["legs"]) == ("pug", "true", "4")
    assert (rows[1]["breed"], rows[1]["note"]) == ("", "'=1+1")
    assert rows[1]["box_x1"] == "-5"
    with (folder / "images.csv").open(newline="") as handle:
        assert [row["outcome"] for row in csv.DictReader(handle)].count("failed") == 1


def test_a_run_without_a_detection_can_be_exported(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", [image("s3://b/x.jpg", outcome=tables.NO_OBJECT)])
    for name in EXPORTS:
        assert (written(run, name) / "export.json").is_file()
    assert pq.read_table(tmp_path / "hf" / "detections" / "00000.parquet").num_rows == 0


def test_names_that_would_be_equal_get_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.results.finished_run.place", lambda path: Path(Path(path).name))
    run = finished_run(tmp_path / "run", [image(f"s3://b/{n}/{name}.jpg") for n, name in enumerate("xXy")])
    assert [picture.name for picture in run.pictures(Tally())] == ["x", "X-2", "y"]


# --- what is there already, and what is not -------------------------------------------------------------------------


def test_other_files_are_never_replaced(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    for force in (False, True):
        with pytest.raises(OtherRun, match="holds other files"):
            export(finished, "csv", tmp_path / "mine", force=force)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["diary.txt"]


def test_an_export_is_replaced_on_demand_only(finished: FinishedRun, tmp_path: Path) -> None:
    folder = export(finished, "csv", tmp_path / "out").folder
    with pytest.raises(OtherRun, match="--force"):
        export(finished, "coco", folder)
    assert (folder / "detections.csv").is_file()
    export(finished, "coco", folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"annotations.json", "export.json"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_leads_to_the_export(finished: FinishedRun, tmp_path: Path, exists: bool) -> None:
    link, disk = tmp_path / "link", tmp_path / "disk"
    if exists:
        disk.mkdir()
    link.symlink_to(disk)
    for force in (False, True):
        export(finished, "coco", link, force=force)
        assert link.is_symlink()
        assert {path.name for path in disk.iterdir()} == {"annotations.json", "export.json"}


def test_an_export_that_fails_leaves_nothing(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setitem(EXPORTS, "coco", Format(full, ""))
    before = set(tmp_path.iterdir())
    with pytest.raises(Unwritable, match="No space left"):
        export(finished, "coco", tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_an_unknown_format_is_named(finished: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="coco, yolo"):
        export(finished, "voc", tmp_path / "out")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run x"):
        find_run("x", tmp_path)
    with pytest.raises(NotFound, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(NotFound, match="is running"):
        read_run(tmp_path)
    (tmp_path / "images.parquet").write_text("no table")
    with pytest.raises(Unreadable, match=r"images\.parquet"):
        read_run(tmp_path)
