"""Crops of the drawn dogs with their true answers, cut as the pipeline cuts a detector's boxes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.stages.boxes import cut
from samples.scenes import SceneObject, make_scene

# The pipeline's defaults: see `pipeline/stages/boxes.py`.
MARGIN = 0.05
MAX_SIDE = 512


@dataclass(frozen=True)
class LabelledCrop:
    """One dog's crop as JPEG, and its right answer: breed, coat_color, facing."""

    jpeg: bytes
    answer: dict[str, str]


def jittered(
    box: tuple[int, int, int, int], spread: float, generator: random.Random
) -> tuple[float, float, float, float]:
    """Move each side of a box (`xyxy`, pixels) by up to `spread` of the box's width or height, as a detector would."""
    x1, y1, x2, y2 = box
    across, down = (x2 - x1) * spread, (y2 - y1) * spread
    return (
        x1 + generator.uniform(-across, across),
        y1 + generator.uniform(-down, down),
        x2 + generator.uniform(-across, across),
        y2 + generator.uniform(-down, down),
    )


def true_answer(dog: SceneObject) -> dict[str, str]:
    """Return the right answer to the job's question about a drawn dog."""
    if dog.breed is None or dog.coat_color is None or dog.facing is None:
        raise ValueError(f"a drawn {dog.label} has no breed, coat colour and facing: only dogs have an answer")
    return {"breed": dog.breed, "coat_color": dog.coat_color, "facing": dog.facing}


def labelled_crops(
    first_seed: int, spread: float, boxes_per_dog: int = 1, sizes: Sequence[tuple[int, int]] = ((640, 480),)
) -> Iterator[LabelledCrop]:
    """Yield crops of every dog of the scenes `first_seed`, `first_seed + 1`, and so on without end.

    Each scene has one of the `sizes`, (width, height) in pixels. Each dog gives `boxes_per_dog` crops, whose boxes are
    the true box with its sides moved by up to `spread` of its size. The same arguments give the same crops.
    """
    seed = first_seed
    while True:
        generator = random.Random(seed)
        scene = make_scene(seed, *generator.choice(sizes))
        for dog in scene.objects:
            if dog.label != "dog":
                continue
            for _ in range(boxes_per_dog):
                jpeg = cut(scene.image, jittered(dog.box, spread, generator), MARGIN, MAX_SIDE)
                yield LabelledCrop(jpeg=jpeg, answer=true_answer(dog))
        seed += 1
