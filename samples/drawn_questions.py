"""Multiple-choice questions about drawn dogs, worded as the AI2D questions of Hugging Face's data sets are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from samples.scenes import BREEDS

LETTERS = "ABCD"

# The values that drawn dogs have, by the property of the answer that the question is about.
VALUES: Mapping[str, Sequence[str]] = {
    "breed": tuple(BREEDS),
    "coat_color": tuple(sorted({color for breed in BREEDS.values() for color in breed.coats})),
}
QUESTIONS: Mapping[str, str] = {
    "breed": "What breed is this dog?",
    "coat_color": "What is the main colour of its coat?",
}


def options(about: str, right: str, place: int, generator: random.Random) -> list[str]:
    """Four different values of a property, with the right one at a place (0 to 3)."""
    found = generator.sample([value for value in VALUES[about] if value != right], len(LETTERS) - 1)
    found.insert(place, right)
    return found


def question_text(about: str, choices: Sequence[str]) -> str:
    """The text of a question with its four choices."""
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return "\n".join([f"Question: {QUESTIONS[about]}", "Choices:", *lines, "Answer with the letter."])
