"""The evaluation of a served model tells one that sees from one that guesses or repeats itself."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from samples.crops import LabelledCrop, labelled_crops
from samples.evaluate_vlm import BOX_SPREAD, Figures, evaluate, of_other_breeds

BREEDS = ("corgi", "poodle", "dalmatian", "dachshund", "siberian husky", "german shepherd", "labrador retriever")


def crop_of(breed: str, index: int = 0) -> LabelledCrop:
    answer = {"breed": breed, "coat_color": "white", "facing": "left"}
    return LabelledCrop(jpeg=f"{breed} {index}".encode(), answer=answer)


CROPS = [crop_of(breed, index) for index, breed in enumerate(BREEDS * 4)]
TRUTH: dict[bytes | None, dict[str, str]] = {crop.jpeg: crop.answer for crop in CROPS}
CONSTANT = {"breed": "corgi", "coat_color": "white", "facing": "left"}


def figures_of(answers: dict[bytes | None, dict[str, str]]) -> Figures:
    async def ask(jpeg: bytes | None) -> dict[str, Any]:
        return answers[jpeg]

    return asyncio.run(evaluate(CROPS, ask))


def test_a_model_that_sees_has_no_fault() -> None:
    figures = figures_of({**TRUTH, None: CONSTANT})
    assert figures.right == {"breed": 1.0, "coat_color": 1.0, "facing": 1.0}
    assert figures.followed == 1.0
    assert figures.right_without_picture == pytest.approx(1 / 7)
    assert figures.faults == []


def test_a_model_that_repeats_itself_is_found_out() -> None:
    figures = figures_of(dict.fromkeys([None, *TRUTH], CONSTANT))
    assert figures.right["breed"] == pytest.approx(1 / 7)
    assert figures.followed == 0.0
    assert len(figures.faults) == 2


def test_breeds_that_are_known_without_pictures_are_a_fault() -> None:
    truths = iter(CROPS)

    async def ask(jpeg: bytes | None) -> dict[str, Any]:
        return next(truths).answer if jpeg is None else TRUTH[jpeg]

    figures = asyncio.run(evaluate(CROPS, ask))
    assert figures.right_without_picture == 1.0
    assert ["without a picture" in fault for fault in figures.faults] == [True]


def test_a_crop_is_replaced_by_one_of_another_breed() -> None:
    crops = [crop_of("corgi", 1), crop_of("corgi", 2), crop_of("poodle", 3)]
    assert [other.answer["breed"] for other in of_other_breeds(crops)] == ["poodle", "poodle", "corgi"]


def test_crops_of_one_breed_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="one breed"):
        of_other_breeds([crop_of("corgi", 1), crop_of("corgi", 2)])


def test_the_same_seed_gives_the_same_crops() -> None:
    first, again = (list(itertools.islice(labelled_crops(31, BOX_SPREAD), 4)) for _ in range(2))
    assert first == again
    assert all(crop.jpeg.startswith(b"\xff\xd8") for crop in first)
    assert all(set(crop.answer) == {"breed", "coat_color", "facing"} for crop in first)
