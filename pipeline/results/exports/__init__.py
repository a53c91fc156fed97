"""The formats in which a run is handed on.

To add one: a module with a function `write(run, folder, tally)`, which fills an empty folder, and a line in EXPORTS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.results.exports import coco, csv_tables, fiftyone, hugging_face, label_studio, yolo
from pipeline.results.finished_run import FinishedRun, Tally


@dataclass(frozen=True, slots=True)
class Format:
    """A format."""

    write: Callable[[FinishedRun, Path, Tally], None]
    """Fills an empty folder."""
    next: str
    """What to do with it; `FOLDER` stands for the folder."""


EXPORTS = {
    "coco": Format(coco.write, 'pycocotools: COCO("FOLDER/annotations.json")'),
    "yolo": Format(yolo.write, "look at the labels, split the images, then train on FOLDER/data.yaml"),
    "labelstudio": Format(label_studio.write, "FOLDER/labelling_setup.xml for the project, then import tasks.json"),
    "fiftyone": Format(fiftyone.write, 'Dataset.from_dir("FOLDER", fiftyone.types.FiftyOneImageDetectionDataset)'),
    "hf": Format(hugging_face.write, 'datasets: load_dataset("FOLDER", "detections"), or "images"'),
    "csv": Format(csv_tables.write, "open FOLDER/detections.csv"),
}
"""By the name that people give."""
