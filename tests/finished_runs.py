"""Runs that have ended, written by hand: rows that a test chooses, in the files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.files import write_table
from pipeline.results.finished_run import FinishedRun, read_run

SCHEMA = {
    "type": "object",
    "properties": {
        "breed": {"type": ["string", "null"], "enum": ["pug", "corgi", None]},
        "collar": {"type": "boolean"},
        "legs": {"type": "integer"},
        "note": {"type": "string", "maxLength": 80},
    },
    "required": ["breed", "collar", "legs", "note"],
    "additionalProperties": False,
}
ANSWER = {"breed": "pug", "collar": True, "legs": 4, "note": "asleep"}


def image(path: str, **row: Any) -> dict[str, Any]:
    """A row of an image of 200 x 100 pixels in which something was found."""
    usual = {"path": path, "key": path, "outcome": tables.DETECTED, "width": 200, "height": 100, "format": "JPEG"}
    return usual | row


def failed_image(path: str) -> dict[str, Any]:
    """A row of an image that could not be read."""
    return {"path": path, "outcome": tables.FAILED, "detections": 0, "stage": "read", "reason": "it is damaged"}


def detection(path: str, index: int = 0, **row: Any) -> dict[str, Any]:
    """A row of an answered detection: a dog in the left half of an image."""
    usual = {"path": path, "key": path, "index": index, "outcome": tables.ANSWERED, "label": "dog", "score": 0.75}
    cost = {"attempts": 1, "latency_s": 0.5, "prompt_tokens": 40, "completion_tokens": 12}
    return usual | {"box": [0, 0, 100, 100], "crop": None, "raw_answer": "{}"} | cost | ANSWER | row


def failed_detection(path: str, index: int = 0, **row: Any) -> dict[str, Any]:
    """A row of a detection without an answer."""
    unanswered = dict.fromkeys(ANSWER) | {"outcome": tables.FAILED, "stage": "ask", "reason": "HTTP 400: no"}
    return detection(path, index) | unanswered | row


def finished_run(
    folder: Path, images: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]] = (), **manifest: Any
) -> FinishedRun:
    """Write a run with these rows, and read it."""
    folder.mkdir(parents=True)
    write_table(pa.Table.from_pylist(list(images), tables.IMAGES), folder / "images.parquet")
    schema = tables.detections_schema(SCHEMA["properties"])  # type: ignore[arg-type]
    write_table(pa.Table.from_pylist(list(detections), schema), folder / "detections.parquet")
    usual = {
        "run": folder.name,
        "status": "complete",
        "seconds": 2.0,
        "identity": {"table_format": tables.FORMAT},
        "job": {"name": "dogs", "description": "Find every dog.", "label": "dog", "schema": SCHEMA, "summary": "breed"},
        "services": {"model": {"name": "m"}, "detector": {"name": "d"}},
    }
    (folder / "run.json").write_text(json.dumps(usual | manifest))
    return read_run(folder)
