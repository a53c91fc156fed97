"""Answers of an earlier run, for an image that is done again because another of its detections failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# The same detection in two runs: a batch of another size moves a box in its last digits, another object is many pixels
# away.
SAME_BOX_PX = 1.0

# The columns of an answer, in the flow and in detections.parquet.
COLUMNS = ("raw_answer", "latency_s", "attempts", "prompt_tokens", "completion_tokens")


class ReusableAnswers:
    """What the model has answered already, by the image's key and the detection's box."""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), properties: Iterable[str] = ()) -> None:
        """From answered rows of detections.parquet: `key`, `box`, COLUMNS and the job's `properties`."""
        names = list(properties)
        self._of_key: dict[str, list[tuple[list[float], dict[str, Any]]]] = {}
        for row in rows:
            answer = {name: row[name] for name in COLUMNS} | {"fields": {name: row[name] for name in names}}
            self._of_key.setdefault(row["key"], []).append((row["box"], answer))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._of_key)

    def find(self, key: str | None, box: Sequence[float] | None) -> dict[str, Any] | None:
        """The answer about a box (xyxy, pixels of the upright image), as schema.answer_type has it, or None.

        Of several boxes at one place the nearest counts.
        """
        if key is None or box is None:
            return None
        near = [
            (apart, answer)
            for known, answer in self._of_key.get(key, ())
            if (apart := max(abs(a - b) for a, b in zip(known, box, strict=True))) <= SAME_BOX_PX
        ]
        return min(near, key=lambda found: found[0])[1] if near else None
