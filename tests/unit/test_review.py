"""`review`: the doubtful images as tasks of Label Studio, corrected there, read back as annotations."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import NotFound, Unreadable
from pipeline.results.doubt import doubtful
from pipeline.results.export import export
from pipeline.results.finished_run import FinishedRun
from pipeline.sources.annotations import Annotation, Annotations, of_label_studio, read_annotations
from pipeline.sources.objects import Objects
from scripts import __main__ as spotter
from tests.finished_runs import detection, finished_run, image

SURE: dict[str, Any] = {"breed_confidence": 0.99, "collar_confidence": 0.9}


@pytest.fixture
def finished(tmp_path: Path) -> FinishedRun:
    """A sure image, two doubtful ones with a sure detection beside, and a copy."""
    paths = [str(tmp_path / f"{name} é.jpg") for name in ("sure", "doubt", "most", "copy")]
    for path in paths:
        Image.new("RGB", (200, 100)).save(path)
    sure, doubt, most, copied = paths
    rows = [
        detection(sure, **SURE),
        detection(doubt, **SURE),
        detection(doubt, 1, box=[10, 20, 60, 70], breed_confidence=0.99, collar_confidence=0.5),
        detection(most, breed_confidence=0.25, collar_confidence=None),
        detection(copied, breed_confidence=0.25),
    ]
    images = [image(path) for path in paths[:3]] + [image(copied, duplicate_of=most)]
    return finished_run(tmp_path / "runs" / "r", images, rows)


def test_the_most_doubtful_come_first(finished: FinishedRun) -> None:
    chosen, rows = doubtful(finished, 0.8)
    assert rows == 2
    assert [Path(path).name for path in chosen.images["path"].to_pylist()] == ["most é.jpg", "doubt é.jpg"]
    assert chosen.detections.num_rows == 3
    assert doubtful(finished, 0.1)[1] == 0


def test_a_run_without_confidences_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has no confidences"):
        doubtful(finished_run(tmp_path / "r", [image("a")], [detection("a")]), 0.8)


Edit = Callable[[list[dict[str, Any]]], None]


def exported(finished: FinishedRun, folder: Path, edit: Edit = lambda results: None) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them, after a person has accepted and edited the predictions."""
    export(doubtful(finished, 0.8)[0], "labelstudio", folder)
    tasks: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        results = copy.deepcopy(task["predictions"][0]["result"])
        for result in results:
            result.pop("score", None)
            result["origin"] = "prediction"
        edit(results)
        cancelled = {"id": 7, "was_cancelled": True, "result": []}
        task |= {"id": number, "annotations": [{"id": 5, "was_cancelled": False, "result": results}, cancelled]}
        task |= {"file_upload": "tasks.json", "project": 1, "inner_id": number + 1, "total_annotations": 1}
    return tasks


def read(path: Path, tasks: Any) -> Annotations:
    path.write_text(json.dumps(tasks))
    return read_annotations(str(path), Objects())


def test_what_people_correct_is_read_back(finished: FinishedRun, tmp_path: Path) -> None:
    def correct(results: list[dict[str, Any]]) -> None:
        for result in results:
            if result["from_name"] == "breed":
                result["value"]["choices"] = ["corgi"]
            if result["from_name"] == "collar" and result["id"] == "0":
                result["value"]["choices"] = ["false"]
        results[0]["value"] |= {"x": 25, "width": 50, "rectanglelabels": ["cat"]}

    tasks = exported(finished, tmp_path / "tasks", correct)
    assert [task["predictions"][0]["score"] for task in tasks] == [0.25, 0.5]
    tasks.append({"data": {"image": "s3://b/not done.jpg"}, "annotations": [], "predictions": []})
    found = read(tmp_path / "done.json", tasks)
    most, doubt = (str(tmp_path / name) for name in ("most é.jpg", "doubt é.jpg"))
    fields = {"breed": "corgi", "collar": False, "legs": 4, "note": "asleep"}
    moved = Annotation("cat", (50, 0, 150, 100), None, fields)
    other = Annotation("dog", pytest.approx((10, 20, 60, 70)), None, fields | {"collar": True})  # type: ignore[arg-type]
    assert found.of == {most: [moved], doubt: [moved, other]}
    assert found.sizes == {most: (200, 100), doubt: (200, 100)}


def test_an_image_is_known_by_its_address_too(finished: FinishedRun, tmp_path: Path) -> None:
    tasks = exported(finished, tmp_path / "tasks")
    for task in tasks:
        del task["data"]["path"]
    assert list(read(tmp_path / "done.json", tasks).of) == [str(tmp_path / "most é.jpg"), str(tmp_path / "doubt é.jpg")]


def test_answers_about_a_whole_image() -> None:
    result = {"id": "a", "from_name": "wet", "type": "choices", "value": {"choices": ["true"]}}
    size = {"original_width": 8, "original_height": 6}
    found = of_label_studio([{"data": {"image": "s3://b/a.jpg"}, "annotations": [{"result": [result | size]}]}])
    assert found == Annotations(
        {"s3://b/a.jpg": [Annotation(None, None, None, {"wet": True})]}, {"s3://b/a.jpg": (8, 6)}
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda task: task.pop("annotations"), r"tasks\[1\] needs .*not as JSON-MIN"),
        (lambda task: task["annotations"][0]["result"][0].pop("original_width"), r"tasks\[1\] needs"),
        (lambda task: task["annotations"][0]["result"][0].update(type="brushlabels"), r"tasks\[1\] needs"),
        (lambda task: task["annotations"][0]["result"][0]["value"].update(rotation=12), r"tasks\[1\].*rotated by 12"),
        (lambda task: task.update(data={}), r"tasks\[1\] needs"),
    ],
)
def test_another_form_is_one_line(
    finished: FinishedRun, tmp_path: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    tasks = exported(finished, tmp_path / "tasks")
    change(tasks[1])
    with pytest.raises(Unreadable, match=named):
        read(tmp_path / "done.json", tasks)


def test_the_command(finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*more: str) -> tuple[int, list[str]]:
        given = ("--run", str(finished.folder), "--output", "tasks", *more)
        code = spotter.main(["--folder", str(tmp_path), "review", *given])
        return code, capsys.readouterr().out.splitlines()

    assert call("--below", "0.1") == (0, ["0 of 5 rows have a confidence below 0.1"])
    assert not (tmp_path / "tasks").exists()
    code, told = call()
    assert code == 0
    assert told[0] == "2 of 5 rows have a confidence below 0.8"
    assert told[1].endswith("tasks: 2 images, 3 detections, the most doubtful first")
    assert len(json.loads((tmp_path / "tasks" / "tasks.json").read_text())) == 2
    assert call()[0] == 2
    with pytest.raises(SystemExit):
        call("--below", "80")
