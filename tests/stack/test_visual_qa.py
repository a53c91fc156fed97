"""Multiple-choice questions about whole pictures on the real services: right ones, and guesses without the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import ROOT
from tests.stack.conftest import RunningStack

QUESTIONS = ROOT / "samples" / "questions.parquet"

# Of 64 questions with four choices, guesses are right about 16 times, and 29 times or more in 1 of 5,000 sets.
LEAST_RIGHT, MOST_GUESSED = 0.90, 0.45


def test_answers_are_right_with_the_picture_and_guesses_without(stack: RunningStack, tmp_path: Path) -> None:
    options = ("--job", "visual_qa", "--images", str(QUESTIONS), "--output", str(tmp_path), "--run-name", "qa")
    done = stack.operate("run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "qa" / "run.json").read_text())
    asked = sum(len(texts) for texts in pq.read_table(QUESTIONS)["texts"].to_pylist())
    assert manifest["counts"]["detections"] == {"total": asked, "answered": asked, "failed": 0}
    seen, unseen = (manifest["accuracy"][name] for name in ("answer", "answer_unseen"))
    assert seen["rows"] == unseen["rows"] == asked
    assert seen["share"] >= LEAST_RIGHT, manifest["accuracy"]
    assert unseen["share"] <= MOST_GUESSED, manifest["accuracy"]
    assert f"right answer: {seen['share']:.1%}" in done.stdout
