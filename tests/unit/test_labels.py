"""Jobs with several labels: what a file may say, what the detector is asked, and what goes by label."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from pipeline import job, settings
from pipeline.errors import InvalidJob, ServiceRefuses
from pipeline.output.manifest import Result
from pipeline.output.report import caption
from pipeline.run import run
from pipeline.runtime.display import show_summary
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

REST = """
description: Find animals.
question: What colour is it?
schema: {type: object, properties: {color: {enum: [black, white]}}, required: [color]}
max_tokens: 8
summary: color
"""


def write(folder: Path, head: str, rest: str = REST) -> str:
    path = folder / "animals.yaml"
    path.write_text(f"{head}\n{rest}")
    return str(path)


@pytest.mark.parametrize(
    ("head", "labels", "content"),
    [
        ("label: dog", {"dog": None}, {"label": "dog"}),
        ("label: no", {"no": None}, {"label": "no"}),
        ("labels: [dog]", {"dog": None}, {"label": "dog"}),
        ("labels: [dog, no, 12]", {"dog": None, "no": None, "12": None}, {"labels": ["dog", "no", "12"]}),
        ("labels: {dog: 0.5, no: null}", {"dog": 0.5, "no": None}, {"labels": {"dog": 0.5, "no": None}}),
        ("labels: {dog: 1}", {"dog": 1.0}, {"labels": {"dog": 1.0}}),
        ("labels: any", None, {"labels": "any"}),
        ("label: any", {"any": None}, {"label": "any"}),
    ],
)
def test_the_forms_of_labels(tmp_path: Path, head: str, labels: Any, content: dict[str, Any]) -> None:
    loaded = job.load(write(tmp_path, head))
    assert loaded.labels == labels
    written = {name: value for name, value in loaded.content().items() if name in ("label", "labels")}
    assert written == content
    assert job.Job.model_validate(loaded.content()).labels == labels


@pytest.mark.parametrize(
    ("head", "facts"),
    [
        ("", ("label: is missing", "labels")),
        ("label: dog\nlabels: [cat]", (", line 1: label: ", "labels")),
        ("label: ''", (", line 1: label: ", "text")),
        ("label: [dog]", (", line 1: label: ", "list")),
        ("labels: dog", (", line 1: labels: ", "label: dog", "any")),
        ("labels: []", (", line 1: labels: ", "empty", "any")),
        ("labels: [dog, cat, dog]", (", line 1: labels[2]: ", "'dog'", "twice")),
        ("labels: [dog, [cat]]", (", line 1: labels[1]: ", "list")),
        ("labels: {dog: high}", (", line 1: labels.dog: ", "'high'", "number")),
        ("labels: {dog: 1.5}", (", line 1: labels.dog: ", "1")),
        ("labels: {dog: 012}", (", line 1: labels.dog: ", "decimal")),
        (f"label: {'x' * 101}", (", line 1: label: ", "101", "100")),
    ],
)
def test_wrong_labels_are_refused_in_one_line(tmp_path: Path, head: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidJob) as raised:
        job.load(write(tmp_path, head))
    assert "\n" not in str(raised.value)
    for fact in facts:
        assert fact in str(raised.value)


def asked_about(*labels: str | None) -> str:
    schema = {"type": "object"}
    questions = [
        {"question": "?", "max_tokens": 8, "schema": schema | {"properties": {f"p{number}": {"type": "boolean"}}}}
        | ({"labels": [label]} if label else {})
        for number, label in enumerate(labels)
    ]
    return yaml.safe_dump({"description": "d", "questions": questions})


@pytest.mark.parametrize(
    ("head", "labels", "fact"),
    [
        ("labels: [dog, cat]", ("dog", "dog"), "none is about the label 'cat'"),
        ("labels: any", ("dog", "cat"), "`labels: any`"),
        ("labels: [dog, cat]", ("cow", None), "'cow' is not a label of this job: dog, cat"),
    ],
)
def test_each_label_needs_a_question(tmp_path: Path, head: str, labels: tuple[str | None, ...], fact: str) -> None:
    with pytest.raises(InvalidJob, match=fact):
        job.load(write(tmp_path, head, asked_about(*labels)))


def test_questions_about_labels_that_are_found_by_any(tmp_path: Path) -> None:
    loaded = job.load(write(tmp_path, "labels: any", asked_about("dog", None)))
    assert (loaded.about("dog"), loaded.about("cow")) == ([0, 1], [1])


@pytest.fixture
def photos(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encoded(gradient(320 + number, 240)))
    simulated.labels = ("dog", "cat", "cow")
    simulated.boxes = lambda image: [[0.0, 0, 90, 90], [100.0, 0, 190, 90], [200.0, 0, 290, 90]][: image.width - 319]
    simulated.answer = lambda crop, body: json.dumps({"color": "black"})
    return tmp_path / "photos"


def do(photos: Path, path: str) -> tuple[Result, str]:
    arguments = ["--images", str(photos), "--output", str(photos.parent / "runs"), "--job", path]
    console = Console(file=io.StringIO(), width=200)
    done = run(settings.load(arguments), console)
    show_summary(console, done.manifest)
    assert isinstance(console.file, io.StringIO)
    return done, console.file.getvalue()


def test_everything_goes_by_label_where_a_job_has_several(simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "labels: {dog: 0.25, cat: null, cow: null}\nthreshold: 0.5")
    done, said = do(photos, path)
    body = simulated.detector.bodies[-1]
    assert (body["labels"], body["threshold"]) == ({"dog": 0.25, "cat": None, "cow": None}, 0.5)
    rows = pq.read_table(done.folder / "detections.parquet").to_pylist()
    assert sorted(row["label"] for row in rows) == ["cat", "cat", "cow", "dog", "dog", "dog"]
    assert {len(row["key"]) for row in rows} == {32}
    assert done.manifest["labels"] == {
        "dog": {"images": 3, "detections": 3, "answered": 3, "failed": 0, "summary": {"black": 3}},
        "cat": {"images": 2, "detections": 2, "answered": 2, "failed": 0, "summary": {"black": 2}},
        "cow": {"images": 1, "detections": 1, "answered": 1, "failed": 0, "summary": {"black": 1}},
    }
    assert done.manifest["summary"] == {"black": 6}
    assert done.manifest["identity"]["table_format"] == "4"
    for line in ("3 images: 3 with detections, 0 without, 0 failed", "6 detections: 6 answered, 0 failed"):
        assert line in said.splitlines()
    assert "  2 cat in 2 images: 2 answered, 0 failed" in said.splitlines()
    assert "dog: color" in said
    assert {caption(row, job.load(path)) for row in rows} == {"dog: black", "cat: black", "cow: black"}


def test_any_label_is_asked_for_as_nil(simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    done, _ = do(photos, write(tmp_path, "labels: any"))
    assert simulated.detector.bodies[-1]["labels"] is None
    assert list(done.manifest["labels"]) == ["dog", "cat", "cow"]


def test_a_job_with_one_label_says_what_it_said_before(photos: Path, tmp_path: Path) -> None:
    done, said = do(photos, write(tmp_path, "label: dog"))
    assert "labels" not in done.manifest
    assert "3 images: 3 with a dog, 0 without, 0 failed" in said.splitlines()
    assert "6 dog detections: 6 answered, 0 failed" in said.splitlines()


def test_wrong_labels_stop_the_run_before_the_first_image(simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceRefuses) as raised:
        do(photos, write(tmp_path, "labels: [dog, catt, zebra]"))
    for fact in ("'catt' (did you mean 'cat'?)", "'zebra'", "known are cat, cow, dog"):
        assert fact in str(raised.value)
    assert simulated.detector.requests == 1
