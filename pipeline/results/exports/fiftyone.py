"""FiftyOne: the folder of a FiftyOneImageDetectionDataset, labels.json and data/ with links to the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.results.finished_run import Detection, FinishedRun, Picture, Tally
from pipeline.results.links import link

# Fields that a detection has there itself; a field of an answer with such a name gets an underscore behind it.
OWN = frozenset(("id", "tags", "mask", "mask_path", "attributes", "bounding_box", "confidence", "instance"))


def label(found: Detection, picture: Picture) -> dict[str, Any]:
    """A detection: the box as left, top, width, height in shares of the image's, the answer in `attributes`."""
    x1, y1, x2, y2 = found.box
    width, height = picture.width, picture.height
    answer = {f"{name}_" if name in OWN else name: value for name, value in found.known.items()}
    return {
        "label": found.label,
        "bounding_box": [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
        "confidence": found.score,
        "attributes": {"outcome": found.outcome, **answer},
    }


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write labels.json and data/; an image without a detection has an empty list."""
    (folder / "data").mkdir()
    labels = {
        picture.name: [label(found, picture) for found in picture.detections]
        for picture in run.pictures(tally)
        if link(picture, folder / "data", tally)
    }
    text = json.dumps({"classes": run.labels, "labels": labels}, ensure_ascii=False, allow_nan=False)
    (folder / "labels.json").write_text(text, encoding="utf-8")
