"""YOLO: a folder of links to the images, a text file of boxes for each, and data.yaml.

See https://docs.ultralytics.com/datasets/detect. Answers have no place in it.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.results.finished_run import Detection, FinishedRun, Picture, Tally
from pipeline.results.links import link

# The trainer wants both keys.
NOTE = """# Of {run}. Labels are what a detector found: look at them before you train on them.
# Training and validation use the same images here: split them first.
"""


def line(found: Detection, picture: Picture, number: int) -> str:
    """A detection: number of the class, then centre, width and height of the box as shares of the image's."""
    x1, y1, x2, y2 = found.box
    width, height = picture.width, picture.height
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(number), *(f"{share:.6f}" for share in shares)])


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write images/, labels/ and data.yaml. An image without a detection has an empty file of labels."""
    classes = {label: number for number, label in enumerate(run.labels)}
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for picture in run.pictures(tally):
        if link(picture, folder / "images", tally):
            lines = [f"{line(found, picture, classes[found.label])}\n" for found in picture.detections]
            (folder / "labels" / f"{picture.name}.txt").write_text("".join(lines))
    data = {"train": "images", "val": "images", "names": {number: label for label, number in classes.items()}}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(NOTE.format(run=run.folder.name) + text, encoding="utf-8")
