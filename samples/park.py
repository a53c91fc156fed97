"""Draws an empty park: sky, meadow, path, pond, trees, bushes, bench."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from samples.sprites import Color, ellipse, jitter


@dataclass(frozen=True)
class Park:
    """An empty park: an RGB picture and the row of pixels where the ground begins."""

    image: Image.Image
    horizon: int


def make_park(rng: random.Random, noise: np.random.Generator, width: int, height: int, scale: float) -> Park:
    """Draw a park of `width` x `height` pixels; `scale` is the size of the things in it (1: fits 640 x 480)."""
    horizon = int(height * rng.uniform(0.28, 0.5))
    image = _sky_and_ground(rng, noise, width, height, horizon)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 3)):
        _draw_cloud(draw, rng, rng.uniform(0, width), rng.uniform(0, max(1.0, horizon - 40 * scale)), scale)
    if rng.random() < 0.6:
        _draw_path(draw, rng, width, height, horizon, scale)
    if rng.random() < 0.3:
        x, y = rng.uniform(0, width), rng.uniform(horizon + 40 * scale, height)
        ellipse(draw, x, y, rng.uniform(50, 130) * scale, rng.uniform(15, 35) * scale, jitter(rng, (90, 150, 190), 14))
    for _ in range(rng.randint(1, 5)):
        x, y = rng.uniform(0, width), horizon + rng.uniform(-4, 30) * scale
        _draw_tree(draw, rng, x, y, rng.uniform(0.6, 1.5) * scale)
    for _ in range(rng.randint(0, 5)):
        _draw_bush(draw, rng, rng.uniform(0, width), rng.uniform(horizon, height), scale)
    if rng.random() < 0.35:
        x = rng.uniform(0, width - 110 * scale)
        _draw_bench(draw, rng, x, rng.uniform(horizon, height - 60 * scale), scale)
    return Park(image, horizon)


def _sky_and_ground(
    rng: random.Random, noise: np.random.Generator, width: int, height: int, horizon: int
) -> Image.Image:
    sky_top, sky_bottom = jitter(rng, (135, 190, 235), 25), jitter(rng, (215, 232, 245), 15)
    if rng.random() < 0.2:
        far, near = jitter(rng, (205, 185, 140), 15), jitter(rng, (180, 155, 105), 15)  # sand
    else:
        far, near = jitter(rng, (120, 170, 80), 28), jitter(rng, (70, 125, 50), 25)  # grass
    rows = np.concatenate([_gradient(sky_top, sky_bottom, horizon), _gradient(far, near, height - horizon)])
    pixels = np.repeat(rows[:, None, :], width, axis=1)
    # Blades and clods: blocks of 4 x 4 pixels that differ a little in brightness.
    blocks = noise.normal(0, 9, (height // 4 + 1, width // 4 + 1, 1)).repeat(4, axis=0).repeat(4, axis=1)
    pixels[horizon:] += blocks[horizon:height, :width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _gradient(top: Color, bottom: Color, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return `rows` x 3 values that go evenly from one colour to the other."""
    return np.linspace(np.asarray(top, np.float64), np.asarray(bottom, np.float64), rows)


def _draw_cloud(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, y: float, scale: float) -> None:
    for puff in range(3):
        ellipse(draw, x + 22 * puff * scale, y + rng.uniform(-6, 6) * scale, 26 * scale, 13 * scale, (250, 250, 252))


def _draw_path(
    draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, horizon: int, scale: float
) -> None:
    far, near = rng.uniform(0, width), rng.uniform(-0.5 * width, 1.5 * width)
    half = rng.uniform(60, 200) * scale
    edge = 8 * scale
    outline = [(far - edge, horizon), (far + edge, horizon), (near + half, height), (near - half, height)]
    draw.polygon(outline, fill=jitter(rng, (196, 176, 140), 14))


def _draw_tree(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, y: float, scale: float) -> None:
    draw.rectangle((x - 6 * scale, y - 60 * scale, x + 6 * scale, y), fill=jitter(rng, (96, 68, 44), 14))
    leaves = jitter(rng, (50, 110, 50), 25)
    for _ in range(5):
        tuft = (x + rng.uniform(-26, 26) * scale, y - rng.uniform(44, 92) * scale)
        ellipse(draw, *tuft, 28 * scale, 22.4 * scale, jitter(rng, leaves, 8))


def _draw_bush(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, y: float, scale: float) -> None:
    leaves = jitter(rng, (60, 120, 55), 25)
    for _ in range(4):
        tuft = (x + rng.uniform(-20, 20) * scale, y + rng.uniform(-8, 8) * scale)
        ellipse(draw, *tuft, 20 * scale, 16 * scale, jitter(rng, leaves, 8))


def _draw_bench(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, y: float, scale: float) -> None:
    wood = jitter(rng, (120, 78, 40), 14)
    for top, bottom in ((0, 8), (22, 32)):
        draw.rectangle((x, y + top * scale, x + 110 * scale, y + bottom * scale), fill=wood)
    for leg in (8, 96):
        draw.rectangle((x + leg * scale, y, x + (leg + 6) * scale, y + 54 * scale), fill=(50, 50, 50))
