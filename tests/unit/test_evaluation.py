"""A run against the truth: hand-computed cases, and pycocotools on the same objects."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.job import Job
from pipeline.output.evaluation import (
    FoundObject,
    TrueObject,
    answer_figures,
    detection_figures,
    evaluate,
    pair,
    read_truth,
    shown,
)
from pipeline.results.export import export
from pipeline.sources.objects import Objects
from samples.detection_metrics import ScoredBoxes, average_precision
from tests.finished_runs import SCHEMA, detection, finished_run, image

BOX = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # intersection over union with BOX: 0.5
AWAY = (50.0, 50.0, 60.0, 60.0)


QUESTION = {"question": "What is it?", "schema": SCHEMA, "max_tokens": 9}


def found(
    image: str, box: tuple[float, float, float, float] = BOX, score: float = 0.9, label: str = "dog"
) -> FoundObject:
    return FoundObject(image, label, box, score)


def true(
    image: str, box: tuple[float, float, float, float] = BOX, label: str = "dog", crowd: bool = False
) -> TrueObject:
    return TrueObject(image, label, box, {}, crowd)


def test_found_missed_and_invented_objects_are_counted() -> None:
    pairs = pair([found("a"), found("a", AWAY, 0.5), found("b", HALF)], [true("a"), true("b"), true("c")])
    assert detection_figures(pairs)["dog"] | {"ap50": None, "ap50_95": None} == {
        "found": 2,
        "missed": 1,
        "invented": 1,
        "precision": 0.6667,
        "recall": 0.6667,
        "ap50": None,
        "ap50_95": None,
    }


def test_average_precision_by_hand() -> None:
    """One true object of two is found first: precision 1 up to a recall of a half, nothing beyond: 51 of 101 points."""
    figures = detection_figures(pair([found("a")], [true("a"), true("b")]))["dog"]
    assert figures["ap50"] == round(51 / 101, 4)
    assert figures["ap50_95"] == round(51 / 101, 4)


def test_a_loose_box_counts_at_the_loosest_threshold_only() -> None:
    figures = detection_figures(pair([found("a", HALF)], [true("a")]))["dog"]
    assert (figures["ap50"], figures["ap50_95"]) == (1.0, 0.1)


def test_an_invented_object_with_a_better_score_costs_precision() -> None:
    """Precision is 1/2 at every recall: the invented one comes first."""
    figures = detection_figures(pair([found("a", AWAY, 0.9), found("a", BOX, 0.8)], [true("a")]))["dog"]
    assert figures["ap50"] == 0.5


def test_an_object_is_found_once() -> None:
    pairs = pair([found("a", score=0.9), found("a", score=0.8)], [true("a")])
    assert [one.score for one, _ in pairs.matched] == [0.9]
    assert [one.score for one in pairs.invented] == [0.8]


def test_labels_and_images_are_apart() -> None:
    pairs = pair([found("a", label="cat"), found("b")], [true("a"), true("c")])
    assert not pairs.matched
    figures = detection_figures(pairs)
    assert (figures["dog"]["missed"], figures["dog"]["invented"], figures["cat"]["invented"]) == (2, 1, 1)
    assert figures["cat"]["ap50"] is None  # no true cat
    assert figures["dog"]["ap50"] == 0.0


def test_boxes_in_a_crowd_are_neither_right_nor_wrong() -> None:
    pairs = pair([found("a", (1, 1, 4, 4)), found("a", AWAY)], [true("a", crowd=True), true("a", AWAY)])
    assert (len(pairs.matched), pairs.missed, pairs.invented) == (1, [], [])


def test_more_boxes_than_coco_counts() -> None:
    boxes = [(float(n), 0.0, n + 0.9, 5.0) for n in range(300)]
    pairs = pair([found("a", box) for box in boxes], [true("a", box) for box in boxes])
    assert len(pairs.matched) == 300


@pytest.mark.parametrize(("objects", "truth"), [([], [true("a")]), ([found("a")], []), ([], [])])
def test_nothing_found_or_nothing_true(objects: list[FoundObject], truth: list[TrueObject]) -> None:
    pairs = pair(objects, truth)
    assert (len(pairs.missed), len(pairs.invented)) == (len(truth), len(objects))


def test_answers_are_counted_by_property() -> None:
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
        ({"breed": "pug", "adult": True}, {"breed": "pug", "adult": "true"}),
        ({"breed": "boxer", "adult": False}, {"breed": "pug", "adult": None}),
        (None, {"breed": "boxer"}),
        ({"breed": "boxer"}, {}),
    ]
    figures = answer_figures(pairs, ["breed", "adult", "age"])
    assert figures["breed"] == {
        "rows": 3,
        "right": 1,
        "no_answer": 1,
        "share": 0.3333,
        "confusion": {"boxer": {"(no answer)": 1}, "pug": {"pug": 1, "boxer": 1}},
    }
    assert (figures["adult"]["rows"], figures["adult"]["right"]) == (1, 1)
    assert "age" not in figures


@pytest.mark.parametrize(("value", "named"), [(True, "true"), (3.0, "3"), (3, "3"), (" a ", "a"), (2.5, "2.5")])
def test_values_have_a_name_in_a_confusion_matrix(value: object, named: str) -> None:
    assert shown(value) == named


def test_average_precision_is_that_of_cocos_own_loader_and_summary_over_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's rows, exported as COCO, against a labels file: pycocotools alone says the same as `evaluate`."""
    draw = random.Random(1)
    names = [f"{number}.jpg" for number in range(40)]
    images, rows, true = [], [], list[dict[str, Any]]()
    for number, name in enumerate(names, 1):
        images.append({"id": number, "file_name": name, "width": 200, "height": 100})
        for index in range(draw.randrange(4)):
            x, y, width, height = (draw.randrange(low, high) for low, high in ((0, 100), (0, 40), (10, 60), (10, 50)))
            category = draw.choice((1, 2))
            true.append({"id": len(true) + 1, "image_id": number, "category_id": category, "iscrowd": 0})
            true[-1] |= {"bbox": [x, y, width, height], "area": width * height}
            if draw.random() < 0.8:
                shift = draw.randrange(12)
                rows.append(
                    detection(
                        name,
                        index,
                        box=[x + shift, y, x + shift + width, y + height],
                        label=("dog", "cat")[category - 1],
                        score=draw.random(),
                    )
                )
        rows.append(detection(name, 9, box=[0, 90, 9, 99], score=draw.random() / 2))
    labels = tmp_path / "labels.json"
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    labels.write_text(json.dumps({"images": images, "annotations": true, "categories": categories}))
    finished = finished_run(tmp_path / "run", [image(name) for name in names], rows)

    asked = Job.model_validate({"description": "Find both.", "labels": ["dog", "cat"], **QUESTION})
    read = read_truth(str(labels), asked, names, Objects(None))
    figures = evaluate({"images": finished.images, "detections": finished.detections}, read, asked)["detections"]

    exported = COCO(str(export(finished, "coco", tmp_path / "coco").folder / "annotations.json"))
    truth = COCO(str(labels))
    image_ids = {each["file_name"]: each["id"] for each in truth.dataset["images"]}
    label_ids = {each["name"]: each["id"] for each in truth.dataset["categories"]}
    found_ones = [
        {
            "image_id": image_ids[exported.imgs[each["image_id"]]["file_name"]],
            "category_id": label_ids[exported.cats[each["category_id"]]["name"]],
            "bbox": each["bbox"],
            "score": each["score"],
        }
        for each in exported.dataset["annotations"]
    ]
    for name, number in label_ids.items():
        judged = COCOeval(truth, truth.loadRes(found_ones), "bbox")
        judged.params.catIds = [number]
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert figures[name]["ap50_95"] == pytest.approx(judged.stats[0], abs=1e-4)
        assert figures[name]["ap50"] == pytest.approx(judged.stats[1], abs=1e-4)
        assert 0.1 < judged.stats[0] < judged.stats[1] < 0.95
    capsys.readouterr()


def test_the_samples_own_average_precision_is_that_of_pycocotools() -> None:
    """samples/detection_metrics.py runs in the detector's environments, which have no pycocotools."""
    draw = random.Random(2)
    for _ in range(20):
        found_ones, true_ones = [], []
        for name in map(str, range(6)):
            for _ in range(draw.randrange(4)):
                x, y = draw.randrange(80), draw.randrange(80)
                true_ones.append(true(name, (x, y, x + 20, y + 20)))
                x += draw.randrange(12)
                found_ones.append(found(name, (x, y, x + 20, y + 20), draw.random()))
            found_ones.append(found(name, AWAY, draw.random()))
        own = average_precision(
            [
                ScoredBoxes(
                    np.array([each.box for each in found_ones if each.image == name], np.float64),
                    np.array([each.score for each in found_ones if each.image == name], np.float64),
                )
                for name in map(str, range(6))
            ],
            [
                np.array([each.box for each in true_ones if each.image == name], np.float64).reshape(-1, 4)
                for name in map(str, range(6))
            ],
        )
        theirs = detection_figures(pair(found_ones, true_ones))["dog"]["ap50"]
        assert theirs == pytest.approx(own, abs=1e-4)
