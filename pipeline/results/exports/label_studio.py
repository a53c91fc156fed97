"""Label Studio: tasks.json with the detections as predictions, and the labelling set-up that they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pyarrow as pa

from pipeline import tables
from pipeline.answer_schema import kinds
from pipeline.locations import is_object
from pipeline.results.finished_run import Detection, FinishedRun, Picture, Tally, local_file

# Where Label Studio serves files of its host: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/ and
# LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true.
LOCAL_FILES = "/data/local-files/?d="
# Tags of a set-up have names of their own. A field of an answer cannot have these: they are columns of the tables.
IMAGE, BOX = "path", "box"


def choices(schema: dict[str, Any]) -> list[str] | None:
    """The values that an answer may have; None if they are not listed."""
    if tables.answer_type(schema) == pa.bool_():
        return ["true", "false"]
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    if values is None or not kinds(schema) <= {"string", "null"}:
        return None
    return [value for value in values if value is not None]


def setup(run: FinishedRun) -> str:
    """The labelling set-up, as XML: boxes with the run's labels, and for each box a field for each of the answer's."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value="$image")
    boxes = ElementTree.SubElement(view, "RectangleLabels", name=BOX, toName=IMAGE)
    for label in run.labels:
        ElementTree.SubElement(boxes, "Label", value=label)
    for name, schema in run.properties.items():
        field = {"name": name, "toName": IMAGE, "perRegion": "true"}
        ElementTree.SubElement(view, "Header", value=name, size="4")
        if values := choices(schema):
            element = ElementTree.SubElement(view, "Choices", field | {"choice": "single"})
            for value in values:
                ElementTree.SubElement(element, "Choice", value=value)
        elif tables.answer_type(schema) in (pa.int64(), pa.float64()):
            ElementTree.SubElement(view, "Number", field)
        else:
            ElementTree.SubElement(view, "TextArea", field)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def value_of(answer: Any, schema: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a field's result, and its value."""
    if choices(schema):
        return "choices", {"choices": [str(answer).lower() if isinstance(answer, bool) else answer]}
    if isinstance(answer, int | float):
        return "number", {"number": answer}
    return "textarea", {"text": [answer]}


def results(found: Detection, number: int, picture: Picture, properties: dict[str, Any]) -> list[dict[str, Any]]:
    """A detection as results of a prediction: its box in percent of the image, and each field of its answer."""
    x1, y1, x2, y2 = found.box
    width, height = picture.width, picture.height
    place = {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
        "rotation": 0,
    }
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": IMAGE}
    region = {"id": str(number), **common}
    box = {"from_name": BOX, "type": "rectanglelabels", "value": place | {"rectanglelabels": [found.label]}}
    done = [region | box | {"score": found.score}]
    for name, answer in found.known.items():
        kind, value = value_of(answer, properties[name])
        done.append(region | {"from_name": name, "type": kind, "value": place | value})
    return done


def address(path: str) -> str | None:
    """Where Label Studio gets an image; None for a row of a table."""
    if is_object(path):
        return path
    file = local_file(path)
    return None if file is None else LOCAL_FILES + quote(bytes(file).lstrip(b"/"))


def task(picture: Picture, image: str, run: FinishedRun) -> dict[str, Any]:
    """A task, with its prediction; one without results where nothing was found.

    The prediction's score, by which Label Studio sorts, is the lowest confidence of the image.
    """
    done = [
        result
        for number, found in enumerate(picture.detections)
        for result in results(found, number, picture, run.properties)
    ]
    known = [found.confidence for found in picture.detections if found.confidence is not None]
    prediction = {"model_version": run.folder.name, "result": done, **({"score": min(known)} if known else {})}
    return {
        "data": {"image": image, "path": picture.path, "key": picture.key, "duplicate_of": picture.duplicate_of},
        "predictions": [prediction],
    }


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write tasks.json and labelling_setup.xml."""
    tasks = []
    for picture in run.pictures(tally):
        image = address(picture.path)
        if image is None:
            tally.leave_out(picture, "images without a file on this host or an address")
        else:
            tasks.append(task(picture, image, run))
    text = json.dumps(tasks, ensure_ascii=False, allow_nan=False)
    (folder / "tasks.json").write_text(text, encoding="utf-8")
    (folder / "labelling_setup.xml").write_text(setup(run), encoding="utf-8")
