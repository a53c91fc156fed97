"""Draws one thing at a time: a dog of a given breed and coat, a cat, a ball, each tight on a transparent ground."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Facing = Literal["left", "right"]

# Things are drawn at twice their size and scaled down: Pillow draws without smoothing edges.
SUPERSAMPLING = 2
# A pixel belongs to a thing when at least half of it is covered; a thing's box is the bounds of these pixels.
SOLID_ALPHA = 128


@dataclass(frozen=True)
class Breed:
    """How to draw a breed. Lengths are relative to a labrador's body, or to the dog's nominal height for the legs."""

    coats: Mapping[str, Color]
    accent: Color
    ears: Literal["floppy", "pointy", "long", "puff"]
    tail: Literal["long", "curl", "stub", "pompon"]
    pattern: Literal["plain", "mask", "spots", "saddle", "puffs"] = "plain"
    body_length: float = 1.0
    leg_length: float = 0.40


RETRIEVER_COATS: Mapping[str, Color] = {"gold": (226, 184, 106), "black": (44, 42, 46)}
POODLE_COATS: Mapping[str, Color] = {"cream": (238, 226, 206), "brown": (112, 70, 46)}
BREEDS: Mapping[str, Breed] = {
    "labrador retriever": Breed(RETRIEVER_COATS, (200, 160, 95), "floppy", "long"),
    "siberian husky": Breed({"gray": (110, 118, 132)}, (240, 241, 244), "pointy", "curl", "mask"),
    "dalmatian": Breed({"white": (246, 246, 242)}, (30, 30, 32), "floppy", "long", "spots", leg_length=0.44),
    "dachshund": Breed({"brown": (118, 64, 34)}, (88, 46, 22), "long", "long", "plain", 1.45, 0.18),
    "corgi": Breed({"red": (222, 112, 44)}, (250, 245, 235), "pointy", "stub", "mask", 1.15, 0.19),
    "poodle": Breed(POODLE_COATS, (215, 200, 185), "puff", "pompon", "puffs", 0.85, 0.44),
    "german shepherd": Breed({"tan": (190, 138, 80)}, (40, 34, 30), "pointy", "long", "saddle", 1.05),
}

COLLARS: tuple[Color, ...] = ((205, 30, 40), (30, 75, 205), (24, 24, 26), (240, 200, 40))
CAT_COATS: tuple[Color, ...] = ((62, 62, 68), (230, 150, 70), (205, 205, 210), (140, 120, 100))
BALL_COLORS: tuple[Color, ...] = ((225, 40, 40), (240, 220, 40), (40, 90, 220), (245, 120, 30))


def jitter(rng: random.Random, color: Color, amount: int) -> Color:
    """Return `color` with each channel moved by at most `amount`, within 0..255."""
    red, green, blue = (max(0, min(255, channel + rng.randint(-amount, amount))) for channel in color)
    return red, green, blue


def shade(color: Color, factor: float) -> Color:
    """Return `color` scaled by `factor` (below 1: darker), within 0..255."""
    red, green, blue = (min(255, int(channel * factor)) for channel in color)
    return red, green, blue


def ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, radius_x: float, radius_y: float, fill: Color) -> None:
    """Fill an axis-aligned ellipse around its centre."""
    draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=fill)


@dataclass
class _Dog:
    """Measures of one dog on its canvas, in canvas pixels; its head is to the right."""

    breed: Breed
    coat: Color
    accent: Color
    unit: float  # the dog's nominal height
    body_x: float
    body_y: float
    head_lift: float  # how far the head's centre is above the body's

    def __post_init__(self) -> None:
        self.dark = shade(self.coat, 0.72)
        self.body_rx, self.body_ry = 0.48 * self.breed.body_length * self.unit, 0.24 * self.unit
        self.limb_width, self.head_r = 0.09 * self.unit, 0.20 * self.unit
        self.head_x, self.head_y = self.body_x + 0.98 * self.body_rx, self.body_y - self.head_lift


def dog_sprite(rng: random.Random, breed: Breed, coat: Color, height: float) -> tuple[Image.Image, Facing]:
    """Draw a dog seen from the side and return it with the side its head is on.

    `height` is nominal, in pixels: a long-legged dog with its ears up is about 1.2 times as high. The picture is
    RGBA and tight: its solid pixels (`SOLID_ALPHA`) touch all four edges.
    """
    unit = height * SUPERSAMPLING
    canvas = Image.new("RGBA", (math.ceil(unit * 2.6), math.ceil(unit * 1.7)))
    draw = ImageDraw.Draw(canvas)
    dog = _Dog(
        breed=breed,
        coat=jitter(rng, coat, 10),
        accent=jitter(rng, breed.accent, 8),
        unit=unit,
        body_x=canvas.width * 0.45,
        body_y=canvas.height * 0.48,
        head_lift=rng.uniform(0.25, 0.35) * unit,
    )
    _draw_legs(draw, dog, swing=rng.uniform(-0.25, 0.25))
    _draw_tail(draw, dog, lift=rng.uniform(-0.2, 0.35))
    _draw_body(draw, dog, rng)
    _draw_head(draw, dog)
    _draw_ears(draw, dog)
    _draw_collar(draw, dog, rng.choice(COLLARS), width=rng.uniform(0.05, 0.09) * unit)
    sprite = _finish(canvas, angle=rng.uniform(-7, 7))
    if rng.random() < 0.5:
        return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "left"
    return sprite, "right"


def _draw_legs(draw: ImageDraw.ImageDraw, dog: _Dog, swing: float) -> None:
    length = dog.breed.leg_length * dog.unit
    top = dog.body_y + 0.7 * dog.body_ry
    for index, along in enumerate((-0.78, -0.52, 0.5, 0.78)):
        far_side = index % 2 == 0
        hip = dog.body_x + along * dog.body_rx
        foot = hip + math.sin(-swing if far_side else swing) * length * 0.6
        color = dog.dark if far_side else dog.coat
        draw.line((hip, dog.body_y, foot, top + length), fill=color, width=round(dog.limb_width))
        if dog.breed.pattern == "puffs":
            ellipse(draw, foot, top + 0.85 * length, 1.2 * dog.limb_width, 1.2 * dog.limb_width, dog.coat)


def _draw_tail(draw: ImageDraw.ImageDraw, dog: _Dog, lift: float) -> None:
    unit, width = dog.unit, dog.limb_width
    root_x, root_y = dog.body_x - 0.95 * dog.body_rx, dog.body_y
    if dog.breed.tail == "curl":
        bounds = (root_x - 0.28 * unit, root_y - 0.42 * unit, root_x + 0.10 * unit, root_y - 0.02 * unit)
        draw.arc(bounds, 20, 300, fill=dog.accent, width=round(1.2 * width))
    elif dog.breed.tail == "pompon":
        tip = (root_x - 0.13 * unit, root_y - 0.28 * unit)
        draw.line((root_x, root_y, *tip), fill=dog.coat, width=round(0.6 * width))
        ellipse(draw, *tip, 0.1 * unit, 0.1 * unit, dog.coat)
    elif dog.breed.tail == "long":
        root_y -= 0.3 * dog.body_ry
        draw.line((root_x, root_y, root_x - 0.32 * unit, root_y - lift * unit), fill=dog.coat, width=round(0.8 * width))


def _draw_body(draw: ImageDraw.ImageDraw, dog: _Dog, rng: random.Random) -> None:
    x, y, rx, ry = dog.body_x, dog.body_y, dog.body_rx, dog.body_ry
    ellipse(draw, x, y, rx, ry, dog.coat)
    if dog.breed.pattern == "mask":
        ellipse(draw, x, y + 0.45 * ry, 0.8 * rx, 0.5 * ry, dog.accent)
    elif dog.breed.pattern == "saddle":
        draw.chord((x - 0.85 * rx, y - ry, x + 0.6 * rx, y + 0.8 * ry), 180, 360, fill=dog.accent)
    elif dog.breed.pattern == "spots":
        for _ in range(14):
            angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.85)
            spot_x, spot_y = x + math.cos(angle) * distance * rx, y + math.sin(angle) * distance * ry
            size_x, size_y = rng.uniform(0.025, 0.055) * dog.unit, rng.uniform(0.025, 0.055) * dog.unit
            ellipse(draw, spot_x, spot_y, size_x, size_y, dog.accent)


def _draw_head(draw: ImageDraw.ImageDraw, dog: _Dog) -> None:
    x, y, r = dog.head_x, dog.head_y, dog.head_r
    neck = [
        (dog.body_x + 0.5 * dog.body_rx, dog.body_y - 0.8 * dog.body_ry),
        (dog.body_x + 0.9 * dog.body_rx, dog.body_y + 0.3 * dog.body_ry),
        (x + 0.3 * r, y + 0.6 * r),
        (x - 0.7 * r, y),
    ]
    draw.polygon(neck, fill=dog.coat)
    ellipse(draw, x, y, r, 0.92 * r, dog.coat)
    muzzle = dog.accent if dog.breed.pattern in ("mask", "saddle") else dog.coat
    ellipse(draw, x + 0.95 * r, y + 0.3 * r, 0.62 * r, 0.36 * r, muzzle)
    ellipse(draw, x + 1.5 * r, y + 0.16 * r, 0.17 * r, 0.15 * r, (20, 18, 18))
    # An amber ring keeps the eye visible on a black coat.
    ellipse(draw, x + 0.35 * r, y - 0.22 * r, 0.18 * r, 0.2 * r, (176, 124, 60))
    ellipse(draw, x + 0.35 * r, y - 0.22 * r, 0.12 * r, 0.14 * r, (15, 15, 18))


def _draw_ears(draw: ImageDraw.ImageDraw, dog: _Dog) -> None:
    x, y, r = dog.head_x, dog.head_y, dog.head_r
    color = dog.accent if dog.breed.pattern in ("spots", "saddle") else dog.dark
    if dog.breed.ears == "pointy":
        for offset in (-0.65, 0.05):
            left = x + offset * r
            draw.polygon(
                [(left - 0.1 * r, y - 0.55 * r), (left + 0.2 * r, y - 1.65 * r), (left + 0.6 * r, y - 0.6 * r)],
                fill=color,
            )
    elif dog.breed.ears == "floppy":
        ellipse(draw, x - 0.55 * r, y + 0.05 * r, 0.3 * r, 0.62 * r, color)
    elif dog.breed.ears == "long":
        ellipse(draw, x - 0.5 * r, y + 0.4 * r, 0.36 * r, 1.0 * r, color)
    else:
        ellipse(draw, x - 0.6 * r, y + 0.2 * r, 0.42 * r, 0.55 * r, color)
        ellipse(draw, x - 0.1 * r, y - 0.9 * r, 0.6 * r, 0.5 * r, dog.coat)


def _draw_collar(draw: ImageDraw.ImageDraw, dog: _Dog, color: Color, width: float) -> None:
    x, y, r = dog.head_x, dog.head_y, dog.head_r
    draw.line((x - 0.75 * r, y + 0.85 * r, x + 0.2 * r, y + 1.05 * r), fill=color, width=max(2, round(width)))


def cat_sprite(rng: random.Random, height: float) -> Image.Image:
    """Draw a sitting cat seen from the front, about `height` pixels high; RGBA and tight, like `dog_sprite`."""
    unit = height * SUPERSAMPLING
    canvas = Image.new("RGBA", (math.ceil(unit * 1.6), math.ceil(unit * 1.6)))
    draw = ImageDraw.Draw(canvas)
    coat = jitter(rng, rng.choice(CAT_COATS), 12)
    x, y = canvas.width * 0.5, canvas.height * 0.62
    tail = (x + 0.05 * unit, y - 0.25 * unit, x + 0.6 * unit, y + 0.4 * unit)
    draw.arc(tail, -80, 110, fill=coat, width=round(0.08 * unit))
    ellipse(draw, x, y + 0.06 * unit, 0.25 * unit, 0.34 * unit, coat)

    head_y, r = y - 0.36 * unit, 0.21 * unit
    for side in (-1, 1):
        ear = [
            (x + side * 0.95 * r, head_y - 0.2 * r),
            (x + side * 0.85 * r, head_y - 1.35 * r),
            (x + side * 0.15 * r, head_y - 0.8 * r),
        ]
        draw.polygon(ear, fill=shade(coat, 0.7))
    ellipse(draw, x, head_y, r, 0.88 * r, coat)
    for side in (-1, 1):
        ellipse(draw, x + side * 0.4 * r, head_y - 0.1 * r, 0.16 * r, 0.2 * r, (150, 210, 60))
        ellipse(draw, x + side * 0.4 * r, head_y - 0.1 * r, 0.05 * r, 0.18 * r, (0, 0, 0))
        for slope in (0.0, 0.18):
            root = (x + side * 0.3 * r, head_y + (0.35 + slope / 2) * r)
            tip = (x + side * 1.25 * r, head_y + (0.2 + slope) * r)
            draw.line((*root, *tip), fill=(250, 250, 250), width=max(1, round(0.012 * unit)))
    return _finish(canvas, angle=rng.uniform(-7, 7))


def ball_sprite(rng: random.Random, height: float) -> Image.Image:
    """Draw a ball with a white seam, `height` pixels high; RGBA and tight, like `dog_sprite`."""
    unit = round(height * SUPERSAMPLING)
    canvas = Image.new("RGBA", (unit + 8, unit + 8))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((3, 3, unit + 3, unit + 3), fill=rng.choice(BALL_COLORS))
    draw.arc((3 + unit * 0.2, 3, unit * 1.2, unit + 3), 90, 270, fill=(255, 255, 255), width=max(2, unit // 12))
    return _finish(canvas, angle=rng.uniform(-180, 180))


def _finish(canvas: Image.Image, angle: float) -> Image.Image:
    """Turn a supersampled drawing by `angle` degrees, scale it to its final size and crop it to its solid pixels."""
    turned = canvas.crop(canvas.getbbox()).rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    size = (max(1, turned.width // SUPERSAMPLING), max(1, turned.height // SUPERSAMPLING))
    sprite = turned.resize(size, Image.Resampling.BOX)
    solid = sprite.getchannel("A").point([0] * SOLID_ALPHA + [255] * (256 - SOLID_ALPHA))
    return sprite.crop(solid.getbbox())
