"""COCO: one JSON file of images, annotations and categories (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.results.finished_run import Detection, FinishedRun, Tally

FILE = "annotations.json"


def annotation(found: Detection, number: int, image: int, category: int) -> dict[str, Any]:
    """A detection as an annotation: the box as x, y, width, height in pixels, the answer in `attributes`."""
    x1, y1, x2, y2 = found.box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "score": found.score,
        "attributes": {"outcome": found.outcome, **found.answer},
    }


def dataset(run: FinishedRun, tally: Tally) -> dict[str, Any]:
    """The content of the file. `file_name` is the image's path or address as in the run's tables."""
    categories = {label: number for number, label in enumerate(run.labels, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(run.pictures(tally), 1):
        image = {"id": number, "file_name": picture.path, "width": picture.width, "height": picture.height}
        image |= picture.of_video
        if picture.duplicate_of is not None:
            image["duplicate_of"] = picture.duplicate_of
        images.append(image)
        for found in picture.detections:
            annotations.append(annotation(found, len(annotations) + 1, number, categories[found.label]))
    return {
        "info": {"description": run.manifest["job"]["description"], "version": run.folder.name},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write annotations.json."""
    (folder / FILE).write_text(json.dumps(dataset(run, tally), ensure_ascii=False, allow_nan=False), encoding="utf-8")
