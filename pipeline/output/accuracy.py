"""How many answers are right, where the job's input table has the right ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa

from pipeline.job import Job
from pipeline.question import Truth

# Rows are looked at a few at a time: there may be a million.
ROWS_AT_ONCE = 1000


def right_answer(truth: Truth, inputs: str | None) -> Any:
    """The right answer of a row with these inputs (JSON); None where it has none.

    With a pattern it is what the first group finds.
    """
    value = json.loads(inputs).get(truth.input) if inputs else None
    if value is None or truth.pattern is None:
        return value
    found = re.search(truth.pattern, value if isinstance(value, str) else json.dumps(value))
    return found[1] if found else None


def is_right(answer: Any, truth: Any) -> bool:
    """Whether an answer, as its column holds it, is the right one, as JSON has it.

    Texts are the same letter for letter, but for spaces around them; numbers by value; `true` as text is true.
    """
    if isinstance(answer, bool):
        return (truth if isinstance(truth, bool) else str(truth).strip().lower()) in (answer, str(answer).lower())
    if isinstance(answer, int | float):
        try:
            return not isinstance(truth, bool) and float(truth) == answer
        except (TypeError, ValueError):
            return False
    if isinstance(truth, str):
        return bool(str(answer).strip() == truth.strip())
    return bool(str(answer).strip() == json.dumps(truth))


def accuracy(written: dict[str, pa.Table], job: Job) -> dict[str, dict[str, float]]:
    """For each property with a truth: `rows` that have a right answer, how many answers are `right`, how many rows
    have `no_answer` (they count as wrong), and the `share` that is right.

    A row is a detection, or an image without any. Rows without a right answer are `without_truth` and not judged.
    """
    counts = {name: dict.fromkeys(("rows", "right", "no_answer", "without_truth"), 0) for name in job.truth}
    if not counts:
        return {}
    inputs: dict[str, str | None] = {}
    for batch in written["images"].select(["path", "inputs", "detections"]).to_batches(max_chunksize=ROWS_AT_ONCE):
        for image in batch.to_pylist():
            inputs[image["path"]] = image["inputs"]
            if not image["detections"]:
                judge(counts, job, image["inputs"], {})
    for batch in written["detections"].select(["path", "label", *job.truth]).to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            asked = {name for number in job.about(row["label"]) for name in job.questions[number].properties}
            judge({name: counts[name] for name in asked & counts.keys()}, job, inputs.get(row["path"]), row)
    return {
        name: {**count, "share": round(count["right"] / max(count["rows"], 1), 4)} for name, count in counts.items()
    }


def judge(counts: dict[str, dict[str, int]], job: Job, inputs: str | None, row: dict[str, Any]) -> None:
    """Count one row for each of the properties of `counts`."""
    for name, count in counts.items():
        right, answer = right_answer(job.truth[name], inputs), row.get(name)
        if right is None:
            count["without_truth"] += 1
            continue
        count["rows"] += 1
        count["no_answer"] += answer is None
        count["right"] += answer is not None and is_right(answer, right)
