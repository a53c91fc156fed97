"""A run's rows against the truth: how well objects were found, and how often each field of an answer is right.

Boxes are compared by pycocotools, the code that COCO's own figures are made with.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline import tables
from pipeline.errors import Unreadable
from pipeline.files import write_atomically
from pipeline.job import Job
from pipeline.labels import WHOLE
from pipeline.output.accuracy import ROWS_AT_ONCE, is_right
from pipeline.output.run_folder import EVALUATION
from pipeline.sources.annotations import Annotations, Matches, match_names, read_annotations
from pipeline.sources.objects import Objects

# A found box is a true one at this intersection over union: the loosest of COCO's ten.
MATCH_IOU = 0.5
# COCO counts at most 100 boxes an image; here all of them count.
ANY_AREA, ALL_BOXES = [0.0, 1e12], 1_000_000
# In a confusion matrix.
NO_ANSWER = "(no answer)"


@dataclass(frozen=True, slots=True)
class TrueObject:
    """An object as somebody has labelled it."""

    image: str
    label: str
    box: tuple[float, float, float, float]
    """`xyxy`, in pixels of the upright image."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The right answers about it, by property; those that are not known are missing."""
    crowd: bool = False
    """COCO's `iscrowd`: a group, in which found boxes are neither right nor wrong."""


@dataclass(frozen=True, slots=True)
class FoundObject:
    """A detection of a run."""

    image: str
    label: str
    box: tuple[float, float, float, float]
    score: float
    fields: Mapping[str, Any] | None = None
    """Its answer; None: it has no answer."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which found object is which true one, by MATCH_IOU and the order of the scores, and COCO's figures by label."""

    matched: list[tuple[FoundObject, TrueObject]]
    missed: list[TrueObject]
    invented: list[FoundObject]
    precision: dict[str, dict[str, float | None]]
    """By label: `ap50` and `ap50_95`; None where there is no true object of the label."""


def coco(images: Sequence[str], labels: Sequence[str], annotations: Iterable[Mapping[str, Any]]) -> COCO:
    """Objects in pycocotools' form; numbers of images and labels begin at 1, those of annotations too."""
    made = COCO()
    made.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number} for number in range(1, len(labels) + 1)],
        "annotations": list(annotations),
    }
    made.createIndex()
    return made


def annotation(number: int, image: int, label: int, box: Sequence[float]) -> dict[str, Any]:
    """One object in COCO's form: x, y, width, height."""
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1, 0.0), max(y2 - y1, 0.0)
    where = {"bbox": [x1, y1, width, height], "area": width * height}
    return {"id": number, "image_id": image, "category_id": label, **where, "iscrowd": 0}


def pair(found: Sequence[FoundObject], truth: Sequence[TrueObject]) -> Pairs:
    """Match what was found with what is true, image by image and label by label."""
    images = sorted({each.image for each in found} | {each.image for each in truth})
    labels = sorted({each.label for each in found} | {each.label for each in truth})
    image_of = {name: number for number, name in enumerate(images, 1)}
    label_of = {name: number for number, name in enumerate(labels, 1)}
    true_ones = [
        annotation(number, image_of[each.image], label_of[each.label], each.box) | {"iscrowd": int(each.crowd)}
        for number, each in enumerate(truth, 1)
    ]
    found_ones = [
        annotation(number, image_of[each.image], label_of[each.label], each.box) | {"score": each.score}
        for number, each in enumerate(found, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        judged = COCOeval(coco(images, labels, true_ones), coco(images, labels, found_ones), "bbox")
        judged.params.areaRng, judged.params.areaRngLbl = [ANY_AREA], ["all"]
        judged.params.maxDets = [ALL_BOXES]
        judged.evaluate()
        judged.accumulate()
    at_50 = int(np.argmin(np.abs(judged.params.iouThrs - MATCH_IOU)))
    pairs: list[tuple[FoundObject, TrueObject]] = []
    in_crowds: set[int] = set()
    for each in filter(None, judged.evalImgs):
        for number, partner, ignored in zip(
            each["dtIds"], each["dtMatches"][at_50], each["dtIgnore"][at_50], strict=True
        ):
            if ignored:
                in_crowds.add(number)
            elif partner:
                pairs.append((found[number - 1], truth[int(partner) - 1]))
    paired = {id(one) for couple in pairs for one in couple}
    precision = {}
    for number, label in enumerate(labels):
        values = judged.eval["precision"][:, :, number, 0, 0]
        known = bool((values > -1).any())
        precision[label] = {
            "ap50": round(float(values[at_50].mean()), 4) if known else None,
            "ap50_95": round(float(values.mean()), 4) if known else None,
        }
    return Pairs(
        pairs,
        [each for each in truth if id(each) not in paired and not each.crowd],
        [each for number, each in enumerate(found, 1) if id(each) not in paired and number not in in_crowds],
        precision,
    )


def share(part: int, whole: int) -> float | None:
    """A share to four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def detection_figures(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """By label: the objects found, missed and invented, precision and recall, average precision."""
    found = Counter(true.label for _, true in pairs.matched)
    missed = Counter(each.label for each in pairs.missed)
    invented = Counter(each.label for each in pairs.invented)
    return {
        label: {
            "found": found[label],
            "missed": missed[label],
            "invented": invented[label],
            "precision": share(found[label], found[label] + invented[label]),
            "recall": share(found[label], found[label] + missed[label]),
            **values,
        }
        for label, values in pairs.precision.items()
    }


def answer_figures(
    pairs: Iterable[tuple[Mapping[str, Any] | None, Mapping[str, Any]]], properties: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """By property: how many answers are right, of those whose truth is known, and what was answered for what is true.

    `pairs`: an answer or None, and the right answers. No answer is a wrong one.
    """
    known = list(pairs)
    figures: dict[str, dict[str, Any]] = {}
    for name in properties:
        told = [(answer and answer.get(name), true[name]) for answer, true in known if true.get(name) not in (None, "")]
        if not told:
            continue
        confusion: dict[str, Counter[str]] = {}
        for answer, true in told:
            confusion.setdefault(shown(true), Counter())[NO_ANSWER if answer is None else shown(answer)] += 1
        right = sum(answer is not None and is_right(answer, true) for answer, true in told)
        figures[name] = {
            "rows": len(told),
            "right": right,
            "no_answer": sum(answer is None for answer, _ in told),
            "share": share(right, len(told)),
            "confusion": {true: dict(given.most_common()) for true, given in sorted(confusion.items())},
        }
    return figures


def shown(value: Any) -> str:
    """A value as a confusion matrix names it: a labels file may hold a number or a truth value as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


@dataclass(frozen=True, slots=True)
class Truth:
    """A labels file, and which image of the listing each of its names means."""

    place: str
    annotations: Annotations
    matches: Matches


def read_truth(place: str, job: Job, paths: Iterable[str], objects: Objects) -> Truth:
    """Read the labels file of a run over the images with these `paths`.

    Raises:
        Unreadable: it cannot be read, names none of the images, or has boxes without a label where the job has several.
    """
    annotations = read_annotations(place, objects)
    matches = match_names(annotations.of, paths)
    if not matches.of:
        such_as = f", such as {next(iter(annotations.of))}" if annotations.of else ""
        raise Unreadable(
            f"truth: none of the {len(annotations.of)} names in {place} is that of an image of this run{such_as}: "
            "expected paths, or their last parts, as in the column `path` of images.parquet"
        )
    if job.has_several_labels and job.boxes != WHOLE:
        for name in matches.of.values():
            if any(each.box is not None and not each.label for each in annotations.of[name]):
                raise Unreadable(
                    f"truth: {place} has a box without a label for {name}, but the job finds several labels: "
                    "add a column `label`"
                )
    return Truth(place, annotations, matches)


def evaluate(written: Mapping[str, pa.Table], truth: Truth, job: Job) -> dict[str, Any]:
    """The content of evaluation.json: a run's two tables against a labels file.

    Only the job's labels count. The objects of an image that failed are missed. Images of the listing that have no row
    yet are not compared; `images` has the number of each kind.
    """
    outcomes = dict(zip(*(written["images"][name].to_pylist() for name in ("path", "outcome")), strict=True))
    names = {path: name for path, name in truth.matches.of.items() if path in outcomes}
    found = found_objects(written["detections"], names, list(job.properties))
    true: list[TrueObject] = []
    whole: list[tuple[Mapping[str, Any] | None, Mapping[str, Any]]] = []
    other = 0
    for path, name in names.items():
        for each in truth.annotations.of[name]:
            label = each.label or (None if job.has_several_labels else job.label)
            if each.box is None or job.boxes == WHOLE:
                about = [one for one in found.get(path, ()) if job.boxes == WHOLE or not label or label == one.label]
                whole += [(one.fields, each.fields) for one in about] or [(None, each.fields)]
            elif job.labels is None or label in job.labels:
                true.append(TrueObject(path, label or "", each.box, each.fields, each.crowd))
            else:
                other += 1
    boxed = job.boxes != WHOLE and any(
        each.box is not None for name in names.values() for each in truth.annotations.of[name]
    )
    pairs = pair(list(itertools.chain.from_iterable(found.values())), true) if boxed else None
    matched = [(one.fields, each.fields) for one, each in pairs.matched] if pairs else []
    return {
        "truth": truth.place,
        "images": {
            "compared": len(names),
            "failed": sum(outcomes[path] == tables.FAILED for path in names),
            "without_truth": len(outcomes) - len(names),
            "without_rows": len(truth.matches.of) - len(names),
            "names_of_no_image": len(truth.matches.unmatched),
            "names_of_several_images": len(truth.matches.ambiguous),
        },
        "names": truth.matches.summary(),
        "objects_of_other_labels": other,
        "match_iou": MATCH_IOU,
        "detections": detection_figures(pairs) if pairs else {},
        "answers": answer_figures([*matched, *whole], job.properties),
    }


def found_objects(
    detections: pa.Table, paths: Container[str], properties: Sequence[str]
) -> dict[str, list[FoundObject]]:
    """The detections in the images with these paths, by path."""
    found: dict[str, list[FoundObject]] = {}
    columns = ["path", "label", "box", "score", "outcome", *properties]
    for batch in detections.select(columns).to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            if row["path"] in paths:
                answer = {name: row[name] for name in properties} if row["outcome"] == tables.ANSWERED else None
                score = 1.0 if row["score"] is None else row["score"]
                one = FoundObject(row["path"], row["label"], tuple(row["box"]), score, answer)
                found.setdefault(row["path"], []).append(one)
    return found


def brief(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures for run.json: without confusion matrices."""
    answers = {
        name: {key: value for key, value in judged.items() if key != "confusion"}
        for name, judged in figures["answers"].items()
    }
    return {**figures, "answers": answers}


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """The content of a run's evaluation.json; None: the file is missing or cannot be read."""
    try:
        figures = json.loads((folder / EVALUATION).read_text())
    except (OSError, ValueError):
        return None
    return figures if isinstance(figures, dict) else None


def write_evaluation(
    folder: Path, written: Mapping[str, pa.Table], truth: Truth | None, job: Job, changed: bool
) -> dict[str, Any]:
    """Write evaluation.json; what run.json has of it.

    Without a truth an earlier evaluation stays as long as the rows are the same; `changed`: they may not be.

    Raises:
        OSError: it cannot be written.
    """
    if truth is None and changed:
        (folder / EVALUATION).unlink(missing_ok=True)
    figures = evaluate(written, truth, job) if truth else read_evaluation(folder)
    if figures is None:
        return {}
    if truth:
        text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / EVALUATION, text.encode(errors="backslashreplace"))
    return {"evaluation": brief(figures)}
