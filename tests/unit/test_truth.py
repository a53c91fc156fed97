"""Runs with a labels file: what is read before anything is asked, and what is said of the run afterwards."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from rich.console import Console

from pipeline import settings
from pipeline.errors import InvalidSetting, Unreadable
from pipeline.output.manifest import Result
from pipeline.results.comparison import measures
from pipeline.results.finished_run import read_run
from pipeline.run import run
from pipeline.runtime.display import show_summary
from scripts.commands.report import remake
from tests.conftest import ROOT
from tests.doubles.simulated import ANSWER, Simulated
from tests.drawn_truth import DRAWN, as_coco
from tests.pictures import encoded, gradient

JOB = """
description: Look at pictures.
{labels}
question: What colour is it?
schema: {{type: object, properties: {{color: {{enum: [black, white]}}}}, required: [color]}}
max_tokens: 8
"""
Do = Callable[..., tuple[Result, str]]


@pytest.fixture
def do(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Run a job; the result, and what is printed."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)

    def do_job(images: Path, *options: str) -> tuple[Result, str]:
        console = Console(file=io.StringIO(), width=200)
        arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), *options]
        done = run(settings.load(arguments), console)
        show_summary(console, done.manifest)
        assert isinstance(console.file, io.StringIO)
        return done, console.file.getvalue()

    return do_job


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures that tell themselves apart by their widths: 320 to 323; the last is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(gradient(320 + number, 240), "PNG"))
    (folder / "3.png").write_bytes(b"no picture")
    return folder


def job_of(tmp_path: Path, labels: str) -> str:
    path = tmp_path / "look.yaml"
    path.write_text(JOB.format(labels=labels))
    return str(path)


def lines(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluation(done: Result) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((done.folder / "evaluation.json").read_text())
    return figures


def pixels_of(image: Image.Image) -> int:
    return zlib.crc32(ImageOps.exif_transpose(image).convert("RGB").tobytes())


def test_the_bundled_pictures_against_what_was_drawn(do: Do, simulated: Simulated, tmp_path: Path) -> None:
    """The detector finds each of the 78 drawn dogs; the model says the same of each."""
    truth = tmp_path / "truth.json"
    truth.write_text(as_coco())
    by_pixels = {pixels_of(Image.open(ROOT / "samples/images" / name)): name for name in DRAWN}

    def dogs(image: Image.Image) -> list[list[float]]:
        name = by_pixels.get(pixels_of(image))  # none: the picture before the run
        return [each["box"] for each in DRAWN[name]["objects"] if each["label"] == "dog"] if name else []

    simulated.boxes = dogs
    done, said = do(ROOT / "samples/images", "--truth", str(truth), "--annotated", "none")
    figures = evaluation(done)
    assert figures["detections"] == {
        "dog": {"found": 78, "missed": 0, "invented": 0, "precision": 1.0, "recall": 1.0, "ap50": 1.0, "ap50_95": 1.0}
    }
    assert figures["images"]["compared"] == 26
    drawn = [each for picture in DRAWN.values() for each in picture["objects"]]
    assert figures["objects_of_other_labels"] == len(drawn) - 78
    for name, value in ANSWER.items():
        right = sum(each[name] == value for each in drawn if each["label"] == "dog")
        assert (figures["answers"][name]["rows"], figures["answers"][name]["right"]) == (78, right)
        assert sum(sum(given.values()) for given in figures["answers"][name]["confusion"].values()) == 78
    assert "dog: 78 found, 0 missed, 0 invented; precision 100.0%, recall 100.0%, AP50 100.0%, AP50:95 100.0%" in said
    assert f"against {truth}: 26 images compared\n" in said
    assert "confusion" not in done.manifest["evaluation"]["answers"]["breed"]
    assert done.manifest["evaluation"]["detections"] == figures["detections"]
    assert measures(read_run(done.folder))["right breed, %"] == round(100 * figures["answers"]["breed"]["share"], 1)


def test_a_finished_run_is_evaluated_without_asking(do: Do, simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    simulated.boxes = lambda image: [[0, 0, 100, 100]]
    first, _ = do(photos)
    assert not (first.folder / "evaluation.json").exists()
    assert "evaluation" not in first.manifest
    asked = simulated.detector.requests, simulated.model.requests
    row = {"path": "0.png", "box": [0, 0, 100, 100], "breed": "pug"}
    truth = lines(tmp_path, row, {"path": "1.png", "box": [200, 100, 300, 200]})
    second, _ = do(photos, "--truth", truth)
    assert second.folder == first.folder, "the truth is no part of the identity"
    probe = 1
    assert (simulated.detector.requests, simulated.model.requests) == (asked[0] + probe, asked[1] + probe)
    dog = second.manifest["evaluation"]["detections"]["dog"]
    assert (dog["found"], dog["missed"], dog["invented"]) == (1, 1, 1)
    assert evaluation(second)["answers"]["breed"]["confusion"] == {"pug": {"poodle": 1}}

    third, said = do(photos)
    assert third.manifest["evaluation"] == second.manifest["evaluation"], "the rows are the same"
    assert "dog: 1 found, 1 missed, 1 invented" in said
    (photos / "4.png").write_bytes(encoded(gradient(324, 240), "PNG"))
    fourth, said = do(photos)
    assert fourth.folder == first.folder
    assert not (fourth.folder / "evaluation.json").exists(), "the rows are others"
    assert "found, " not in said


def test_failed_images_and_names_that_do_not_fit_are_told(
    do: Do, simulated: Simulated, photos: Path, tmp_path: Path
) -> None:
    (photos / "b").mkdir()
    (photos / "b" / "0.png").write_bytes(encoded(gradient(400, 240), "PNG"))
    simulated.boxes = lambda image: [[0, 0, 100, 100]]
    box = [0, 0, 100, 100]
    names = ("0.png", str(photos / "1.png"), "3.png", "nobody.png", "photos\\2.png")
    done, said = do(photos, "--truth", lines(tmp_path, *({"path": name, "box": box} for name in names)))
    figures = evaluation(done)
    assert figures["images"] == {
        "compared": 3,
        "failed": 1,
        "without_truth": 2,
        "without_rows": 0,
        "names_of_no_image": 1,
        "names_of_several_images": 1,
    }
    dog = figures["detections"]["dog"]
    assert (dog["found"], dog["missed"], dog["invented"]) == (2, 1, 0), "the object of the damaged image is missed"
    assert "3 images compared, 1 of them failed, 2 not in the file" in said
    assert "such as nobody.png" in said
    assert "several images of this run, such as 0.png" in said


def test_a_trial_is_compared_by_its_own_images(do: Do, simulated: Simulated, photos: Path, tmp_path: Path) -> None:
    simulated.boxes = lambda image: [[0, 0, 100, 100]]
    truth = lines(tmp_path, *({"path": f"{number}.png", "box": [0, 0, 100, 100]} for number in range(3)))
    done, said = do(photos, "--limit", "2", "--truth", truth)
    figures = evaluation(done)
    assert (figures["images"]["compared"], figures["images"]["without_rows"]) == (2, 1)
    assert figures["images"]["names_of_no_image"] == 0
    assert (figures["detections"]["dog"]["found"], figures["detections"]["dog"]["missed"]) == (2, 0)
    assert "2 images compared, 1 of the file not in the run yet or not in this trial" in said


@pytest.mark.parametrize("labels", ["boxes: whole", "label: dog"])
def test_a_truth_of_whole_images(do: Do, simulated: Simulated, photos: Path, tmp_path: Path, labels: str) -> None:
    """Without boxes nothing is said of detections. An image without an answer counts as wrong."""
    simulated.answer = lambda crop, body: '{"color": "black"}'
    simulated.boxes = lambda image: [[0, 0, 300, 200]]
    colors = ["black", "white", None, "black"]
    truth = lines(tmp_path, *({"path": f"{number}.png", "color": color} for number, color in enumerate(colors)))
    done, said = do(photos, "--job", job_of(tmp_path, labels), "--truth", truth)
    figures = evaluation(done)
    assert figures["detections"] == {}
    assert figures["answers"] == {
        "color": {
            "rows": 3,
            "right": 1,
            "no_answer": 1,
            "share": 0.3333,
            "confusion": {"black": {"black": 1, "(no answer)": 1}, "white": {"black": 1}},
        }
    }
    assert "right color: 33.3%, 1 of 3; 1 without an answer count as wrong" in said


@pytest.mark.parametrize("labels", ["labels: any", "labels: [dog, cat]"])
def test_several_labels_are_judged_each(
    do: Do, simulated: Simulated, photos: Path, tmp_path: Path, labels: str
) -> None:
    """The simulated detector gives its boxes the labels dog, cat in turn."""
    simulated.boxes = lambda image: [[0, 0, 100, 100], [100, 0, 200, 100]]
    simulated.answer = lambda crop, body: '{"color": "black"}'
    rows = [
        {"path": "0.png", "label": "dog", "box": [0, 0, 100, 100]},
        {"path": "0.png", "label": "dog", "box": [100, 0, 200, 100]},
        {"path": "0.png", "label": "bird", "box": [0, 150, 50, 200]},
    ]
    done, _ = do(photos, "--job", job_of(tmp_path, labels), "--truth", lines(tmp_path, *rows))
    figures = evaluation(done)
    counted = {
        label: (judged["found"], judged["missed"], judged["invented"])
        for label, judged in figures["detections"].items()
    }
    birds = {"bird": (0, 1, 0)} if labels == "labels: any" else {}
    assert counted == {"dog": (1, 1, 0), "cat": (0, 0, 1), **birds}
    assert figures["objects_of_other_labels"] == (0 if birds else 1)
    bare = lines(tmp_path, {"path": "0.png", "box": [0, 0, 1, 1]})
    with pytest.raises(Unreadable, match=r"box without a label for 0\.png"):
        do(photos, "--job", job_of(tmp_path, labels), "--truth", bare)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"path": "elsewhere.png", "box": [0, 0, 1, 1]}\n', "none of the 1 names .* such as elsewhere.png"),
        ('{"label": "dog"}\n', "cannot be read as annotations"),
        ('{"path": "0.png", "box": [0, 0, 1]}\n', "row 0"),
    ],
)
def test_a_bad_labels_file_ends_the_command_before_anything_is_asked(
    do: Do, simulated: Simulated, photos: Path, tmp_path: Path, content: str, reason: str
) -> None:
    truth = tmp_path / "labels.jsonl"
    truth.write_text(content)
    with pytest.raises(Unreadable, match=reason):
        do(photos, "--truth", str(truth))
    assert (simulated.detector.requests, simulated.model.requests) == (0, 0)
    assert not (tmp_path / "runs").exists()


def test_a_labels_file_that_is_not_there(do: Do, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"missing\.json cannot be read"):
        do(photos, "--truth", str(tmp_path / "missing.json"))
    with pytest.raises(InvalidSetting):
        do(photos, "--truth", "https://user:secret@host/labels.json")


def test_the_report_shows_the_figures_and_runs_nothing(
    do: Do, simulated: Simulated, photos: Path, tmp_path: Path
) -> None:
    simulated.boxes = lambda image: [[0, 0, 100, 100]]
    script = "<script>alert(1)</script>"
    truth = lines(tmp_path, {"path": "0.png", "box": [0, 0, 100, 100], "breed": script})
    done, _ = do(photos, "--truth", truth)
    for page in (done.folder / "report.html", remake(done.folder, set())):
        text = page.read_text()
        assert "Against the labels file" in text
        assert "<summary>breed: 0 of 1 right, 0.0 %</summary>" in text
        assert script not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
