"""Read files of annotated objects: COCO JSON, Label Studio's export, and tables with a row for each object."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import Unreadable
from pipeline.locations import is_object
from pipeline.sources.objects import Objects, StoreError
from pipeline.sources.table_files import SUFFIXES, is_table, open_table

# Names of columns in the order in which they are preferred.
NAMES = ("path", "file_name", "filename", "image_path", "image", "file")
BOXES = ("box", "bbox_xyxy", "xyxy")
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
LABELS = ("label", "category", "class", "name")

EXPECTED = (
    "expected COCO JSON (images, annotations, categories), Label Studio's JSON export, or a table (.parquet, .csv, "
    ".jsonl ...) with a column `path`, and `label`, `box` (x1, y1, x2, y2 in pixels) and "
    "fields of answers as far as they are known"
)


class Malformed(ValueError):
    """An entry that has not the form of its file's kind; the message names it."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or, without a box, a whole image."""

    label: str | None
    box: tuple[float, float, float, float] | None
    """`xyxy`, in pixels of the upright image."""
    score: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that is known of it, by name."""
    crowd: bool = False
    """COCO's `iscrowd`: a group of objects."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """The objects of a file."""

    of: dict[str, list[Annotation]]
    """By the image's name as the file has it; an image without an object has an empty list."""
    sizes: dict[str, tuple[int, int]]
    """Width and height of the images, where the file gives them."""


def read_annotations(place: str, objects: Objects) -> Annotations:
    """The objects of a file on this host or in a bucket.

    Raises:
        Unreadable: it cannot be read, or has another form; names the entry.
    """
    try:
        if Path(place).suffix.lower() == ".json":
            content = objects.read(place) if is_object(place) else Path(place).expanduser().read_bytes()
            read = json.loads(content)
            return of_label_studio(read) if isinstance(read, list) else of_coco(read)
        if is_table(place, SUFFIXES):
            return of_table(place, objects)
    except (OSError, StoreError, pa.ArrowException, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise Unreadable(f"{place} cannot be read as annotations: {reason}: {EXPECTED}") from error
    raise Unreadable(f"{place} is no file of annotations by its name: {EXPECTED}")


def of_coco(content: Any) -> Annotations:
    """The objects of COCO JSON, a dictionary of lists. Attributes, as CVAT writes them, and other keys are `fields`.

    Raises:
        Malformed: an entry is missing, refers to none, or has another form.
    """
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    ):
        raise Malformed("it has no lists `images` and `annotations`")
    names, sizes = {}, {}
    for number, image in enumerate(content["images"]):
        try:
            names[image["id"]] = name = str(image["file_name"])
        except (LookupError, TypeError):
            raise Malformed(f"images[{number}] has no `id` and `file_name`") from None
        if isinstance(image.get("width"), int) and isinstance(image.get("height"), int):
            sizes[name] = (image["width"], image["height"])
    labels = {}
    for number, category in enumerate(content.get("categories") or ()):
        try:
            labels[category["id"]] = str(category["name"])
        except (LookupError, TypeError):
            raise Malformed(f"categories[{number}] has no `id` and `name`") from None
    found: dict[str, list[Annotation]] = {name: [] for name in names.values()}
    known = {"id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "score", "attributes"}
    for number, each in enumerate(content["annotations"]):
        try:
            name, label = names[each["image_id"]], labels[each["category_id"]]
            x, y, width, height = numbers(each["bbox"])
            score = score_of(each.get("score"))
            fields = {key: value for key, value in each.items() if key not in known} | (each.get("attributes") or {})
        except (LookupError, TypeError, ValueError):
            raise Malformed(
                f"annotations[{number}] needs the `image_id` of an image, the `category_id` of a category and a `bbox` "
                "of four numbers; a `score` is a number, and `attributes` are an object"
            ) from None
        box = (x, y, x + width, y + height)
        found[name].append(Annotation(label, box, score, fields, crowd=bool(each.get("iscrowd"))))
    return Annotations(found, sizes)


def of_label_studio(tasks: list[Any]) -> Annotations:
    """The objects of Label Studio's export as JSON, a list of tasks: the last annotation of each that is not cancelled.

    A task that nobody has annotated is left out, since its predictions are a model's. Rectangles are percents of
    `original_width` and `original_height`; what the other results of a region or of the whole image say are `fields`.

    Raises:
        Malformed: a task is not annotated images with rectangles.
    """
    found: dict[str, list[Annotation]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, task in enumerate(tasks):
        try:
            name = task_name(task["data"])
            done = [each["result"] for each in task["annotations"] if not each.get("was_cancelled")]
            for annotated in done[-1:]:
                found[name] = regions(annotated)
                if annotated:
                    sizes[name] = (annotated[0]["original_width"], annotated[0]["original_height"])
        except Rotated as rotated:
            raise Malformed(f"tasks[{number}]: {rotated}: draw it upright") from None
        except (LookupError, TypeError, ValueError, AttributeError):
            raise Malformed(
                f"tasks[{number}] needs `data` with `path` or `image`, and `annotations` with a `result` of rectangles "
                "and of choices, texts or numbers: export as JSON, not as JSON-MIN"
            ) from None
    return Annotations(found, sizes)


class Rotated(ValueError):
    """A rectangle that is turned: it is no box."""


def task_name(data: Mapping[str, Any]) -> str:
    """The image of a task: its path in the tables, where `review` or `export` wrote the task, or its address."""
    image = data["image"] if data.get("path") is None else data["path"]
    _, local, file = str(image).partition("/data/local-files/?d=")
    return "/" + unquote(file) if local else str(image)


def regions(results: list[dict[str, Any]]) -> list[Annotation]:
    """The objects of one annotation, in the order of their rectangles.

    Raises:
        Rotated: a rectangle is turned.
        LookupError, TypeError, ValueError: it has another form.
    """
    boxes: dict[str, tuple[str | None, tuple[float, float, float, float]]] = {}
    said: dict[str | None, dict[str, Any]] = {}
    for result in results:
        value, kind = result["value"], result["type"]
        if kind in ("rectanglelabels", "rectangle"):
            if value.get("rotation"):
                raise Rotated(f"the rectangle {result['id']} is rotated by {value['rotation']} degrees")
            width, height = result["original_width"] / 100, result["original_height"] / 100
            x, y, across, down = numbers(value[side] for side in ("x", "y", "width", "height"))
            label = next(iter(value.get("rectanglelabels") or ()), None)
            boxes[result["id"]] = label, (x * width, y * height, (x + across) * width, (y + down) * height)
        else:
            # Results of one region share its id and its place; those of the whole image have no place.
            region = result["id"] if "x" in value else None
            said.setdefault(region, {})[result["from_name"]] = answered(value, kind)
    whole = [Annotation(None, None, None, said[None])] if None in said else []
    return [Annotation(label, box, None, said.get(id_, {})) for id_, (label, box) in boxes.items()] + whole


def answered(value: Mapping[str, Any], kind: str) -> Any:
    """What one result says: a choice, a text or a number; `true` and `false` are the choices of a boolean.

    Raises:
        LookupError, ValueError: it is of another kind.
    """
    if kind == "choices":
        (choice,) = value["choices"]
        return {"true": True, "false": False}.get(choice, choice)
    if kind == "textarea":
        return "\n".join(value["text"]) if isinstance(value["text"], list) else value["text"]
    if kind not in ("number", "rating"):
        raise ValueError(f"a result of the kind {kind}")
    return value[kind]


def of_table(place: str, objects: Objects) -> Annotations:
    """The objects of a table, a row each; a row without a box speaks of the whole image.

    Raises:
        Malformed: it has no column of image names, or a row's box or score is not of numbers.
        StoreError, OSError, pa.ArrowException, ValueError: it cannot be read.
    """
    table = open_table(place, objects)
    try:
        columns = list(table.schema.names)
        values = {name: list(itertools.chain.from_iterable(table.values(name))) for name in columns}
    finally:
        table.close()
    name_column = next((name for name in NAMES if name in columns), None)
    if name_column is None:
        raise Malformed(f"none of its columns ({', '.join(columns)}) is called {' or '.join(NAMES[:3])}")
    box_column = next((name for name in BOXES if name in columns), None)
    corners = next((names for names in CORNERS if set(names) <= set(columns)), None)
    label_column = next((name for name in LABELS if name in columns), None)
    taken = {name_column, box_column, label_column, "score", *(corners or ())}
    found: dict[str, list[Annotation]] = {}
    for number, name in enumerate(values[name_column]):
        row = {column: values[column][number] for column in columns}
        written = row[box_column] if box_column else [row[corner] for corner in corners] if corners else None
        box = None
        if written not in (None, "", [None] * 4, [""] * 4):
            try:
                x1, y1, x2, y2 = numbers(json.loads(written) if isinstance(written, str) else written)
                box = (x1, y1, x2, y2)
            except (ValueError, TypeError):
                raise Malformed(f"row {number}: {written!r} is no box: expected x1, y1, x2, y2 in pixels") from None
        label = row[label_column] if label_column else None
        fields = {column: row[column] for column in columns if column not in taken}
        try:
            score = score_of(row.get("score"))
        except (ValueError, TypeError):
            raise Malformed(f"row {number}: the score {row['score']!r} is not a number") from None
        found.setdefault(str(name), []).append(Annotation(label and str(label), box, score, fields))
    return Annotations(found, {})


def numbers(values: Any) -> list[float]:
    """Four finite numbers.

    Raises:
        ValueError, TypeError: they are not.
    """
    found = [float(value) for value in values]
    if len(found) != 4 or not all(map(math.isfinite, found)):
        raise ValueError("expected four numbers")
    return found


def score_of(value: Any) -> float | None:
    """A score as a file has it; None where it has none.

    Raises:
        ValueError, TypeError: it is not a finite number.
    """
    if value in (None, ""):
        return None
    if not math.isfinite(score := float(value)):
        raise ValueError("expected a finite number")
    return score


@dataclass(frozen=True, slots=True)
class Matches:
    """Which image of a run each name of a file means."""

    of: dict[str, str]
    """From the run's path to the file's name."""
    unmatched: list[str]
    """Names that no image of the run has."""
    ambiguous: list[str]
    """Names that several images of the run have, in different folders, or second names of one image."""

    def summary(self) -> str | None:
        """What a person should know, in one line."""
        parts = []
        for names, what in ((self.unmatched, "no image"), (self.ambiguous, "several images")):
            if names:
                parts.append(f"{len(names)} names are those of {what} of this run, such as {names[0]}")
        return "; ".join(parts) or None


def match_names(names: Iterable[str], paths: Iterable[str]) -> Matches:
    """Find the image of each name: the path itself, or one that ends with the name as whole folders."""
    by_base: dict[str, list[str]] = {}
    for path in paths:
        by_base.setdefault(base_of(path), []).append(path)
    matches = Matches({}, [], [])
    for name in names:
        ending = "/" + name.replace("\\", "/").removeprefix("./").lstrip("/")
        found = [path for path in by_base.get(base_of(name), ()) if ("/" + path).endswith(ending)]
        found = [path for path in found if path == name] or found
        if len(found) == 1 and found[0] not in matches.of:
            matches.of[found[0]] = name
        else:
            (matches.ambiguous if found else matches.unmatched).append(name)
    return matches


def base_of(path: str) -> str:
    """The last part of a path."""
    return path.replace("\\", "/").rpartition("/")[2]
