"""From a row of the flow to a row of a table."""

from __future__ import annotations

from typing import Any

from pipeline.tables import (
    ANSWERED,
    DETECTED,
    DETECTION_COLUMNS,
    DUPLICATE,
    FAILED,
    IMAGES,
    NO_OBJECT,
    shown_path,
)


def image_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of IMAGES from any row of the flow that belongs to the image."""
    failed = row["image_failure"]
    outcome = DETECTED if row["detections"] else NO_OBJECT
    if failed:
        outcome = FAILED
    elif row["duplicate"]:
        outcome = DUPLICATE
    return {
        **{name: row[name] for name in IMAGES.names if name in row},
        "path": shown_path(row["path"]),
        "outcome": outcome,
        "detections": row["detections"] or 0,
        "stage": failed["stage"] if failed else None,
        "reason": failed["reason"] if failed else None,
        "attempts": row["detect_attempts"] or (failed or {}).get("attempts"),
    }


def detection_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of detections.parquet from a row of the flow that has a detection."""
    answer, stored = row["answer"] or {}, row["stored"] or {}
    failed = row["uncut"] or answer.get("failure") or stored.get("failure")
    columns = row | answer | stored
    return {
        **(answer.get("fields") or {}),
        **{name: columns[name] for name in DETECTION_COLUMNS if name in columns},
        "path": shown_path(row["path"]),
        "outcome": FAILED if failed else ANSWERED,
        "stage": failed["stage"] if failed else None,
        "reason": failed["reason"] if failed else None,
    }
