"""Drawn scenes are what they say, and the bundled pictures are what the scenes say."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from samples.make_images import IMAGES, PICTURES, TRUTH, check, describe, truth_text, write
from samples.scenes import BREEDS, LABELS, MAX_OVERLAP, Box, Scene, make_scene, overlap
from samples.sprites import SOLID_ALPHA, ball_sprite, cat_sprite, dog_sprite

JOB = Path(__file__).parents[2] / "pipeline" / "jobs" / "dog_breeds.yaml"
SIZES = ((640, 480), (800, 600), (480, 640))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(5_000_000 + index, *SIZES[index % len(SIZES)]) for index in range(24)]


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(TRUTH.read_text(encoding="utf-8"))["images"]
    return entries


def test_a_seed_gives_the_same_scene_whatever_was_drawn_before() -> None:
    random.seed(1)
    first = make_scene(42)
    make_scene(7)
    random.seed(2)
    np.random.default_rng(3).normal(size=5)
    second = make_scene(42)
    assert first.objects == second.objects
    assert first.image.tobytes() == second.image.tobytes()


def test_seeds_give_different_scenes(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_a_scene_has_the_size_and_the_counts_that_were_asked_for() -> None:
    scene = make_scene(5, 500, 400, dogs=4, cats=1, balls=2)
    assert scene.image.size == (500, 400)
    assert scene.image.mode == "RGB"
    assert Counter(item.label for item in scene.objects) == {"dog": 4, "cat": 1, "sports ball": 2}


def test_fixing_one_count_leaves_the_others_to_the_seed() -> None:
    free = Counter(item.label for item in make_scene(11).objects)
    fixed = Counter(item.label for item in make_scene(11, dogs=1).objects)
    assert (fixed["cat"], fixed["sports ball"]) == (free["cat"], free["sports ball"])


def test_too_many_things_are_refused() -> None:
    with pytest.raises(ValueError, match="60 things do not fit into a scene of 200 x 150"):
        make_scene(0, 200, 150, dogs=60, cats=0, balls=0)


def test_every_box_lies_inside_its_picture(scenes: list[Scene]) -> None:
    for scene in scenes:
        for x1, y1, x2, y2 in (item.box for item in scene.objects):
            assert 0 <= x1 < x2 <= scene.image.width
            assert 0 <= y1 < y2 <= scene.image.height


def test_boxes_overlap_little_enough_to_count(scenes: list[Scene]) -> None:
    pairs = [pair for scene in scenes for pair in itertools.combinations((item.box for item in scene.objects), 2)]
    assert max(overlap(*pair) for pair in pairs) <= MAX_OVERLAP


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (20, 0, 30, 10), 0.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # they touch
        ((0, 0, 10, 10), (8, 5, 28, 25), 0.1),  # 2 x 5 of the smaller one's 100
        ((0, 0, 10, 10), (2, 2, 4, 4), 1.0),  # wholly inside
    ],
)
def test_overlap_is_a_part_of_the_smaller_box(a: Box, b: Box, expected: float) -> None:
    assert overlap(a, b) == pytest.approx(expected)
    assert overlap(b, a) == pytest.approx(expected)


def test_only_dogs_have_a_breed_a_coat_of_that_breed_and_a_side(scenes: list[Scene]) -> None:
    for item in itertools.chain.from_iterable(scene.objects for scene in scenes):
        assert item.label in LABELS
        if item.label == "dog":
            assert item.breed is not None
            assert item.coat_color in BREEDS[item.breed].coats
            assert item.facing in ("left", "right")
        else:
            assert (item.breed, item.coat_color, item.facing) == (None, None, None)


def test_every_breed_coat_and_side_occurs(scenes: list[Scene]) -> None:
    dogs = [item for scene in scenes for item in scene.objects if item.label == "dog"]
    assert {(dog.breed, dog.coat_color) for dog in dogs} == {
        (name, color) for name, breed in BREEDS.items() for color in breed.coats
    }
    assert {dog.facing for dog in dogs} == {"left", "right"}


def test_the_job_can_answer_every_breed_coat_and_side() -> None:
    answers = yaml.safe_load(JOB.read_text(encoding="utf-8"))["schema"]["properties"]
    assert set(BREEDS) <= set(answers["breed"]["enum"])
    assert {color for breed in BREEDS.values() for color in breed.coats} <= set(answers["coat_color"]["enum"])
    assert {"left", "right"} <= set(answers["facing"]["enum"])


def solid(sprite: Image.Image) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a sprite is drawn: height x width."""
    return np.asarray(np.asarray(sprite.getchannel("A")) >= SOLID_ALPHA)


@pytest.mark.parametrize("seed", range(5))
def test_sprites_are_tight_to_their_solid_pixels(seed: int) -> None:
    rng = random.Random(seed)
    dogs = [dog_sprite(rng, breed, next(iter(breed.coats.values())), 70.0)[0] for breed in BREEDS.values()]
    for sprite in [*dogs, cat_sprite(rng, 60.0), ball_sprite(rng, 30.0)]:
        drawn = solid(sprite)
        for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
            assert edge.any()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("seed", range(4))
def test_a_box_is_where_the_object_changes_the_picture(label: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the camera's blur and grain, the same seed with and without one object differs by the object alone.
    monkeypatch.setattr("samples.scenes._photograph", lambda image, rng, noise: image)
    counts = {"dogs": int(label == "dog"), "cats": int(label == "cat"), "balls": int(label == "sports ball")}
    scene, empty = make_scene(seed, **counts), make_scene(seed, dogs=0, cats=0, balls=0)
    changed = np.any(np.asarray(scene.image) != np.asarray(empty.image), axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    x1, y1, x2, y2 = scene.objects[0].box
    assert (columns[0], columns[-1] + 1) == (x1, x2)
    assert rows[0] == y1
    # The shadow reaches a little below the feet.
    assert y2 <= rows[-1] + 1 <= min(scene.image.height, y2 + max(4, (y2 - y1) // 10))


@pytest.mark.parametrize("name", BREEDS)
def test_facing_is_the_side_of_the_head(name: str) -> None:
    # The head rises above the back on the side that the dog faces; on the other there is at most a thinner tail.
    breed = BREEDS[name]
    seen = set()
    for seed in range(12):
        sprite, facing = dog_sprite(random.Random(seed), breed, next(iter(breed.coats.values())), 90.0)
        drawn = solid(sprite)
        upper = drawn[: drawn.shape[0] // 3]
        middle = drawn.shape[1] // 2
        heavier = "left" if upper[:, :middle].sum() > upper[:, middle:].sum() else "right"
        assert heavier == facing, f"seed {seed}"
        seen.add(facing)
    assert seen == {"left", "right"}


def test_the_bundled_files_are_the_ones_that_are_described(truth: dict[str, Any]) -> None:
    names = [picture.name for picture in PICTURES]
    assert sorted(path.name for path in IMAGES.iterdir()) == sorted(names)
    assert list(truth) == sorted(names)
    assert len(names) >= 24
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) <= 5 * MEGABYTE


def test_the_bundled_files_are_of_three_formats_and_several_shapes(truth: dict[str, Any]) -> None:
    formats: Counter[str | None] = Counter()
    for path in IMAGES.iterdir():
        with Image.open(path) as image:
            formats[image.format] += 1
    assert set(formats) == {"JPEG", "PNG", "WEBP"}
    assert formats.most_common(1)[0][0] == "JPEG"
    shapes = {(entry["width"], entry["height"]) for entry in truth.values()}
    assert any(width > height for width, height in shapes)
    assert any(width < height for width, height in shapes)


def test_one_bundled_picture_is_stored_sideways_and_its_truth_is_upright(truth: dict[str, Any]) -> None:
    sideways = []
    for path in sorted(IMAGES.iterdir()):
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            assert upright.size == (truth[path.name]["width"], truth[path.name]["height"])
            if image.getexif().get(0x0112, 1) != 1:
                sideways.append((path.suffix, image.getexif()[0x0112], image.size == upright.size[::-1]))
    assert sideways == [(".jpg", 6, True)]


def test_the_bundled_pictures_hold_dogs_of_every_kind_and_two_hold_none(truth: dict[str, Any]) -> None:
    dogs = {name: [item for item in entry["objects"] if item["label"] == "dog"] for name, entry in truth.items()}
    kinds = Counter((dog["breed"], dog["coat_color"]) for found in dogs.values() for dog in found)
    assert set(kinds) == {(name, color) for name, breed in BREEDS.items() for color in breed.coats}
    assert 70 <= sum(kinds.values()) <= 80
    empty = [name for name, found in dogs.items() if not found]
    assert len(empty) == 2
    assert all(truth[name]["objects"] for name in empty)


@pytest.mark.slow
def test_the_bundled_set_is_what_the_generator_draws() -> None:
    assert check(PICTURES, IMAGES, TRUTH) == []


def test_the_check_finds_what_was_changed(tmp_path: Path) -> None:
    small = [picture for picture in PICTURES if picture.name in ("park-20.png", "park-26.webp")]
    images, told = tmp_path / "images", tmp_path / "truth.json"
    write(small, images, told)
    assert check(small, images, told) == []

    told.write_text(told.read_text(encoding="utf-8").replace('"facing": "left"', '"facing": "right"'), encoding="utf-8")
    with Image.open(images / "park-20.png") as image:
        ImageOps.mirror(image).save(images / "park-20.png")
    (images / "park-26.webp").unlink()
    (images / "stray.jpg").write_bytes(b"")
    problems = "\n".join(check(small, images, told))
    assert "stray.jpg: not a bundled picture" in problems
    assert "park-26.webp: missing" in problems
    assert "park-20.png: the pixels are not what the generator draws" in problems
    assert "truth.json: park-2" in problems


def test_a_picture_of_another_seed_is_not_taken_for_the_bundled_one(tmp_path: Path) -> None:
    lossy = next(picture for picture in PICTURES if picture.name == "park-26.webp")
    images, told = tmp_path / "images", tmp_path / "truth.json"
    write([lossy], images, told)
    other = make_scene(lossy.seed + 1, *lossy.size)
    (images / lossy.name).write_bytes(lossy.encode(other.image))
    assert any("the pixels are not" in problem for problem in check([lossy], images, told))


def test_the_truth_file_is_sorted_json() -> None:
    entries = {"b.jpg": describe(make_scene(3)), "a.jpg": describe(make_scene(4, dogs=0, cats=0, balls=0))}
    told = json.loads(truth_text(entries))["images"]
    assert told == entries
    assert list(told) == ["a.jpg", "b.jpg"]
