"""Drawn scenes of dog parks with known answers: each thing's box, each dog's breed, coat and side.

A scene depends only on its seed and arguments, so that tests, training and the bundled pictures can use the same one.
Needs Pillow and numpy only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from samples.park import Park, make_park
from samples.sprites import BREEDS, Breed, Facing, ball_sprite, cat_sprite, dog_sprite

__all__ = ["BREEDS", "LABELS", "MAX_OVERLAP", "Box", "Breed", "Facing", "Scene", "SceneObject", "make_scene", "overlap"]

Box = tuple[int, int, int, int]

# Names from COCO, so that a detector pretrained on it can stand in for the tiny one.
LABELS = ("dog", "cat", "sports ball")

# Two boxes share at most this part of the smaller one: beyond it, the number of dogs becomes ambiguous.
MAX_OVERLAP = 0.15

# Weights of 0 to 6 dogs in a scene: 3.3 on average, none in 1 scene of 16.
DOG_WEIGHTS = (1.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5)
# Weights of 0 to 2 cats, and of 0 to 2 balls: none in half of the scenes.
DISTRACTOR_WEIGHTS = (2.0, 1.0, 1.0)

# Tries to place one thing, each at a new spot, every eighth also with a new drawing; then the layout starts again
# with everything a little smaller.
PLACEMENT_TRIES = 40
LAYOUT_TRIES = 12
SHRINK_PER_LAYOUT = 0.93


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene. `box` is `(x1, y1, x2, y2)` in pixels, tight, x2 and y2 exclusive.

    `breed`, `coat_color` and `facing` (the side of the picture that the head points to) are None unless it is a dog.
    """

    label: str
    box: Box
    breed: str | None = None
    coat_color: str | None = None
    facing: Facing | None = None


@dataclass(frozen=True)
class Scene:
    """An RGB picture and everything that was drawn into it, from back to front."""

    image: Image.Image
    objects: list[SceneObject]


@dataclass(frozen=True)
class _Placed:
    answer: SceneObject
    sprite: Image.Image


def make_scene(
    seed: int,
    width: int = 640,
    height: int = 480,
    dogs: int | None = None,
    cats: int | None = None,
    balls: int | None = None,
) -> Scene:
    """Draw the scene of `seed`: the same arguments always give the same picture and answers.

    `dogs`, `cats` and `balls` fix how many there are; None lets the seed choose. Everything lies wholly inside the
    picture, and no two boxes overlap by more than `MAX_OVERLAP` of the smaller one. Raises ValueError when so many
    things do not fit.
    """
    rng = random.Random(seed)
    noise = np.random.default_rng(seed)
    # Things grow with the picture, so that a larger one shows the same park in more detail.
    scale = math.sqrt(width * height / (640 * 480))
    park = make_park(rng, noise, width, height, scale)
    labels = (
        ["dog"] * _count(rng, dogs, DOG_WEIGHTS)
        + ["cat"] * _count(rng, cats, DISTRACTOR_WEIGHTS)
        + ["sports ball"] * _count(rng, balls, DISTRACTOR_WEIGHTS)
    )
    placed = _lay_out(rng, labels, park, scale)
    for item in placed:
        _paste(park.image, item)
    return Scene(_photograph(park.image, rng, noise), [item.answer for item in placed])


def overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share, as a part of the smaller one's area."""
    shared_width = min(a[2], b[2]) - max(a[0], b[0])
    shared_height = min(a[3], b[3]) - max(a[1], b[1])
    if shared_width <= 0 or shared_height <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared_width * shared_height / smaller


def _count(rng: random.Random, wanted: int | None, weights: tuple[float, ...]) -> int:
    # Drawn in any case: fixing one count must not change what the seed says about the rest.
    drawn = rng.choices(range(len(weights)), weights)[0]
    return drawn if wanted is None else wanted


def _lay_out(rng: random.Random, labels: list[str], park: Park, scale: float) -> list[_Placed]:
    """Find a place for everything and return it from back to front."""
    for attempt in range(LAYOUT_TRIES):
        placed: list[_Placed] = []
        for label in labels:
            item = _place(rng, label, park, scale * SHRINK_PER_LAYOUT**attempt, [other.answer.box for other in placed])
            if item is None:
                break
            placed.append(item)
        else:
            return sorted(placed, key=lambda item: item.answer.box[3])
    raise ValueError(
        f"{len(labels)} things do not fit into a scene of {park.image.width} x {park.image.height} pixels: "
        "ask for fewer, or for a larger picture"
    )


def _place(rng: random.Random, label: str, park: Park, scale: float, taken: Iterable[Box]) -> _Placed | None:
    """Draw a thing and put it on the ground where it overlaps little; None when no such place was found."""
    width, height = park.image.size
    for attempt in range(PLACEMENT_TRIES):
        if attempt % 8 == 0:
            feet = rng.uniform(park.horizon + 0.1 * (height - park.horizon), height)
            depth = (feet - park.horizon) / (height - park.horizon)
            draft, sprite = _draw(rng, label, depth, scale)
        if sprite.width > width or sprite.height > height:
            continue
        x = rng.randint(0, width - sprite.width)
        y = max(0, int(feet) - sprite.height)
        box = (x, y, x + sprite.width, y + sprite.height)
        if all(overlap(box, other) <= MAX_OVERLAP for other in taken):
            return _Placed(SceneObject(label, box, draft.breed, draft.coat_color, draft.facing), sprite)
    return None


def _draw(rng: random.Random, label: str, depth: float, scale: float) -> tuple[SceneObject, Image.Image]:
    """Draw a thing at a depth of 0 (the horizon) to 1 (the front); its answer has no place yet."""
    nowhere = (0, 0, 0, 0)
    size = (58 + 100 * depth) * rng.uniform(0.85, 1.2) * scale
    if label == "cat":
        return SceneObject(label, nowhere), cat_sprite(rng, 0.8 * size)
    if label == "sports ball":
        return SceneObject(label, nowhere), ball_sprite(rng, (24 + 28 * depth) * scale)
    name = rng.choice(list(BREEDS))
    color = rng.choice(list(BREEDS[name].coats))
    sprite, facing = dog_sprite(rng, BREEDS[name], BREEDS[name].coats[color], size)
    return SceneObject(label, nowhere, name, color, facing), sprite


def _paste(image: Image.Image, item: _Placed) -> None:
    """Put a thing and the shadow under its feet into the picture."""
    x1, _, _, y2 = item.answer.box
    shadow = Image.new("L", (item.sprite.width, max(4, item.sprite.height // 10)))
    ImageDraw.Draw(shadow).ellipse((0, 0, shadow.width - 1, shadow.height - 1), fill=70)
    image.paste((20, 30, 20), (x1, y2 - shadow.height // 2 - 2), shadow)
    image.paste(item.sprite, item.answer.box[:2], item.sprite)


def _photograph(image: Image.Image, rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Add what a camera adds: sometimes a little blur, an exposure that varies, grain."""
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    exposure, grain = rng.uniform(0.8, 1.12), rng.uniform(1, 5)
    pixels = np.asarray(image, np.float64) * exposure + noise.normal(0, grain, (image.height, image.width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
