"""Answers that are kept: found again by image and box, and by nothing else."""

from __future__ import annotations

import pytest

from pipeline.stages.reusable import ReusableAnswers


def row(key: str, box: list[float], raw: str) -> dict[str, object]:
    cost = {"latency_s": 0.5, "attempts": 2, "prompt_tokens": 40, "completion_tokens": 12}
    return {"key": key, "box": box, "raw_answer": raw, "breed": raw, **cost}


KEPT = ReusableAnswers(
    [row("a", [0, 0, 50, 50], "first"), row("a", [0.8, 0, 50.8, 50], "second"), row("b", [5, 5, 9, 9], "third")],
    ["breed"],
)


@pytest.mark.parametrize(
    ("key", "box", "raw"),
    [
        ("a", [0, 0, 50, 50], "first"),
        ("a", [0.7, 0.1, 50.7, 50], "second"),  # both are near: the nearer one
        ("b", [5.4, 5, 9, 8.7], "third"),
        ("b", [0, 0, 50, 50], None),
        ("a", [0, 0, 50, 52], None),
        ("c", [0, 0, 50, 50], None),
        (None, [0, 0, 50, 50], None),
        ("a", None, None),
    ],
)
def test_an_answer_belongs_to_an_image_and_a_box(key: str | None, box: list[float] | None, raw: str | None) -> None:
    found = KEPT.find(key, box)
    assert (found and found["raw_answer"]) == raw


def test_what_it_cost_is_kept_too() -> None:
    found = KEPT.find("b", [5, 5, 9, 9])
    assert found == {
        "raw_answer": "third",
        "latency_s": 0.5,
        "attempts": 2,
        "prompt_tokens": 40,
        "completion_tokens": 12,
        "fields": {"breed": "third"},
    }
    assert KEPT
    assert not ReusableAnswers()
