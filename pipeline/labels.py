"""The labels that a job looks for: `label` or `labels` of its file, as one mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ctypes import c_float
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.answer_schema import SchemaError

ANY = "any"

# Where the boxes come from: the detector, the image itself as the one detection, or SPOTTER_BOXES.
DETECTOR, WHOLE, INPUT = "detector", "whole", "input"
Boxes = Literal["detector", "whole", "input"]

# The label of a whole image, where the job names none.
WHOLE_LABEL = "image"

# The detector service takes no longer ones.
MOST_CHARACTERS = 100

Score = Annotated[float, Field(ge=0, le=1)]
Labels = dict[str, Score | None] | None
"""Each label and its lowest score, None for the job's `threshold`; None in place of the mapping: any label."""

LABEL_SCHEMA = {"type": "string", "minLength": 1, "description": "the label of the objects to find"}
LABELS_SCHEMA = {
    "type": ["array", "object", "string"],
    "items": {"type": "string"},
    "additionalProperties": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "description": "several labels in place of one: a list, a mapping of each to its lowest score, or `any`",
}


def as_labels(content: Mapping[str, Any]) -> dict[str, Any]:
    """A job file's content with its `label`, or its `labels` in any form, as one mapping, or None for any label.

    Raises:
        SchemaError: neither key is there, both are there, or a label is not text.
    """
    rest = {name: value for name, value in content.items() if name != "label"}
    if "label" in content:
        if "labels" in content:
            raise SchemaError(("label",), "stands beside `labels`: move it there")
        return rest | {"labels": {checked(content["label"], ("label",)): None}}
    if "labels" not in content and content.get("boxes") in (WHOLE, INPUT):
        return rest | {"labels": {WHOLE_LABEL: None} if content["boxes"] == WHOLE else None}
    if "labels" not in content:
        raise SchemaError(("label",), "is missing: name the objects to find, or several kinds with `labels`")
    given = content["labels"]
    if given == ANY:
        return rest | {"labels": None}
    if not isinstance(given, list | dict):
        raise SchemaError(("labels",), f"must be a list, a mapping or `{ANY}`; one label is `label: {given}`")
    if not given:
        raise SchemaError(("labels",), f"is empty: name labels, or write `labels: {ANY}`")
    found: dict[str, Any] = {}
    for place, label in enumerate(given):
        where = ("labels", place if isinstance(given, list) else label)
        name = checked(label, where)
        if name in found:
            raise SchemaError(where, f"label {name!r} is given twice: remove one")
        found[name] = given[label] if isinstance(given, dict) else None
    return rest | {"labels": found}


def checked(label: Any, where: tuple[str | int, ...]) -> str:
    """A label without white space at its ends.

    Raises:
        SchemaError: it is not text, empty or too long.
    """
    if not isinstance(label, str) or not (name := label.strip()):
        raise SchemaError(where, "must be text of at least one character")
    if len(name) > MOST_CHARACTERS:
        raise SchemaError(where, f"has {len(name)} characters, but must have at most {MOST_CHARACTERS}")
    return name


def check_whole(labels: Labels, threshold: float | None) -> None:
    """Refuse what has no meaning where each image is the one detection.

    Raises:
        SchemaError: names the key.
    """
    if labels is None or len(labels) > 1 or any(score is not None for score in labels.values()):
        raise SchemaError(("labels",), "with `boxes: whole` each image is one detection: give it one `label`, or none")
    if threshold is not None:
        raise SchemaError(("threshold",), "has no meaning with `boxes: whole`: remove it")


def as_written(labels: Labels) -> dict[str, Any]:
    """The labels as the shortest form of a job file has them."""
    if labels is None:
        return {"labels": ANY}
    if any(score is not None for score in labels.values()):
        return {"labels": labels}
    return {"label": next(iter(labels))} if len(labels) == 1 else {"labels": list(labels)}


def said(labels: Iterable[str] | None) -> str:
    """The one label; of several, a word for all."""
    names = list(labels or ())
    return names[0] if len(names) == 1 else "object"


def lowest(labels: Mapping[str, float | None] | None, threshold: float | None, label: str) -> float | None:
    """The lowest score that a job takes for a label; None: it names none."""
    own = (labels or {}).get(label)
    return threshold if own is None else own


def reaches(score: float | None, least: float | None) -> bool:
    """Whether a score is no lower than `least`, or one of them is unknown; the tables keep scores as 32-bit floats."""
    return score is None or least is None or score >= min(least, c_float(least).value)
