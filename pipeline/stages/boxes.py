"""Cut detections out of an image and encode them for the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image

from pipeline.errors import RowError
from pipeline.sources.images import encode_jpeg

# Quality 90 keeps a crop about 30 kB; the model's processor rescales it anyway.
JPEG_QUALITY = 90

# Processors refuse crops smaller than one merged patch, with HTTP 400 or 500: 28 pixels for Qwen2-VL and Qwen2.5-VL, 32
# for Qwen3-VL. They also refuse sides of more than 200:1, which 32 pixels of at most 4096 exclude.
MIN_SIDE = 32
FILL = (128, 128, 128)

# Scale down by whole factors first, to at least this multiple of the target. Pillow's own 2.0 takes twice as long where
# the crop is a quarter of the pixels, and is no better: 49 dB against a crop out of all pixels, and 50 with 1.5.
REDUCING_GAP = 1.5


class BadBox(RowError):
    """A box that holds nothing of its image; the message says why."""


def check_box(box: Sequence[float], size: tuple[int, int]) -> None:
    """See that a box (`xyxy`, pixels) holds something of an image of `size` (width, height).

    Raises:
        BadBox: it is no box of numbers, has no area, or lies outside.
    """
    x1, y1, x2, y2 = box
    shown = ", ".join(f"{value:g}" for value in box)
    if not all(math.isfinite(value) for value in box):
        raise BadBox(f"box [{shown}] is not of numbers")
    if x1 >= x2 or y1 >= y2:
        raise BadBox(f"box [{shown}] has no area")
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        raise BadBox(f"box [{shown}] lies outside the image of {size[0]} x {size[1]} pixels")


def padded_box(box: Sequence[float], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Grow a box by `margin` of its own width and height on each side, then clip it to the image.

    `box` is `xyxy` in pixels, `size` is `(width, height)` in pixels. The result holds whole pixels and is at least
    one pixel wide and high, also for a box without area.
    """
    x1, y1, x2, y2 = box
    width, height = size
    pad_x, pad_y = (x2 - x1) * margin, (y2 - y1) * margin
    left = min(max(math.floor(x1 - pad_x), 0), width - 1)
    top = min(max(math.floor(y1 - pad_y), 0), height - 1)
    right = min(max(math.ceil(x2 + pad_x), left + 1), width)
    bottom = min(max(math.ceil(y2 + pad_y), top + 1), height)
    return left, top, right, bottom


def enough(boxes: Sequence[Sequence[float]], margin: float, max_side: int, size: tuple[int, int]) -> int | None:
    """Pixels of the longest side of an image of `size` that are enough for crops of `max_side`; None: all pixels.

    A crop out of a JPEG that is decoded at a half or a quarter differs by 41 dB or more from one out of all pixels,
    measured on noise, and costs a third.
    """
    sides = []
    for box in boxes:
        with suppress(BadBox):
            check_box(box, size)
            left, top, right, bottom = padded_box(box, margin, size)
            sides.append(max(right - left, bottom - top))
    if not sides or min(sides) <= max_side:
        return None
    return math.ceil(max(size) * max_side / min(sides))


def cut(
    image: Image.Image,
    box: Sequence[float],
    margin: float,
    max_side: int,
    min_side: int = MIN_SIDE,
    size: tuple[int, int] | None = None,
) -> bytes:
    """Return the JPEG of one box of an upright RGB image.

    The box (`xyxy`, pixels) is padded and clipped by `padded_box`. A crop with a side above `max_side` pixels is scaled
    down to it. One with a side below `min_side` is scaled up, until its longer side has `max_side`; what is missing
    then at the shorter side is filled with grey. `size`, (width, height), is that of the image which the box refers
    to; `image` may be a smaller copy of it.

    Raises:
        BadBox: the box holds nothing of the image.
    """
    size = size or image.size
    check_box(box, size)
    padded = padded_box(box, margin, size)
    if image.size == size:
        crop = image.crop(padded)
        crop.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    else:
        crop = from_copy(image, padded, max_side, size)
    if min(crop.size) < min_side:
        crop = enlarged(crop, max_side, min(min_side, max_side))
    return encode_jpeg(crop, JPEG_QUALITY)


def from_copy(
    copy: Image.Image, padded: tuple[int, int, int, int], max_side: int, size: tuple[int, int]
) -> Image.Image:
    """The crop that `cut` makes of a box (whole pixels of an image of `size`) out of a smaller copy of the image.

    The box stays where it is to a fraction of the copy's pixels: whole ones would move it by up to half a pixel, which
    is a larger difference than that between the copy and the image.
    """
    left, top, right, bottom = padded
    across, down = copy.width / size[0], copy.height / size[1]
    scale = min(max_side / max(right - left, bottom - top), 1.0)
    target = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
    within = (left * across, top * down, right * across, bottom * down)
    return copy.resize(target, Image.Resampling.BICUBIC, box=within, reducing_gap=REDUCING_GAP)


def enlarged(crop: Image.Image, max_side: int, min_side: int) -> Image.Image:
    """A small crop with at least `min_side` and at most `max_side` pixels on each side; its shape is kept."""
    scale = max(min(min_side / min(crop.size), max_side / max(crop.size)), 1)
    width, height = (round(side * scale) for side in crop.size)
    larger = crop.resize((width, height), Image.Resampling.BICUBIC)
    if min(larger.size) >= min_side:
        return larger
    padded = Image.new("RGB", (max(width, min_side), max(height, min_side)), FILL)
    padded.paste(larger, ((padded.width - width) // 2, (padded.height - height) // 2))
    return padded


def encoded_size(jpeg: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of what `cut` returned, from its frame header; None for bytes that have none.

    Pillow takes ten times as long to open a JPEG for that: too long for what is looked at while rows go by.
    """
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] in (0xC0, 0xC1, 0xC2):  # start of frame: length, precision, height, width
            return int.from_bytes(jpeg[at + 7 : at + 9]), int.from_bytes(jpeg[at + 5 : at + 7])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return None
