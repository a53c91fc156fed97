"""Crops: padded, clipped, never empty."""

import io
import math

import pytest
from PIL import Image, ImageChops, ImageStat

from pipeline.sources.images import decode
from pipeline.stages.boxes import BadBox, cut, encoded_size, enough, padded_box
from scripts.bench.memory import photo
from tests.pictures import encoded, gradient


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        pytest.param((100, 100, 200, 150), 0.0, (100, 100, 200, 150), id="as it is"),
        pytest.param((100, 100, 200, 150), 0.1, (90, 95, 210, 155), id="margin is a share of each side"),
        pytest.param((-20, -5, 400, 300), 0.0, (0, 0, 320, 240), id="clipped to the image"),
        pytest.param((10.6, 10.6, 20.2, 20.2), 0.0, (10, 10, 21, 21), id="whole pixels, outwards"),
        pytest.param((50, 50, 50, 50), 0.1, (50, 50, 51, 51), id="no area: one pixel"),
        pytest.param((500, 500, 600, 600), 0.0, (319, 239, 320, 240), id="outside: the nearest pixel"),
    ],
)
def test_padded_box(box: tuple[float, ...], margin: float, expected: tuple[int, ...]) -> None:
    assert padded_box(box, margin, (320, 240)) == expected


def test_cut_holds_the_pixels_of_its_box() -> None:
    image = Image.new("RGB", (100, 100), "white")
    image.paste("red", (20, 30, 60, 50))
    crop = Image.open(io.BytesIO(cut(image, (20, 30, 60, 50), margin=0.0, max_side=512, min_side=1)))
    assert crop.size == (40, 20)
    red, green, blue = crop.getpixel((20, 10))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 20


def test_large_crop_is_scaled_down_and_keeps_its_shape() -> None:
    crop = Image.open(io.BytesIO(cut(gradient(1600, 800), (0, 0, 1600, 800), margin=0.05, max_side=512)))
    assert crop.size == (512, 256)


@pytest.mark.parametrize(
    ("size", "min_side", "max_side", "expected"),
    [
        pytest.param((32, 200), 32, 512, (32, 200), id="large enough: as it is"),
        pytest.param((10, 20), 32, 512, (32, 64), id="scaled up in its shape"),
        pytest.param((1, 1), 32, 512, (32, 32), id="one pixel"),
        pytest.param((10, 400), 32, 512, (32, 512), id="as far as max_side, the rest is filled"),
        pytest.param((2000, 4), 32, 512, (512, 32), id="scaled down, then filled"),
        pytest.param((10, 20), 32, 16, (16, 16), id="max_side counts"),
        pytest.param((10, 20), 1, 512, (10, 20), id="switched off"),
    ],
)
def test_no_crop_is_too_small_for_a_processor(
    size: tuple[int, int], min_side: int, max_side: int, expected: tuple[int, int]
) -> None:
    image = gradient(*size)
    jpeg = cut(image, (0, 0, *size), 0.0, max_side, min_side)
    assert encoded_size(jpeg) == expected


def test_a_crop_that_is_large_enough_has_the_same_bytes_as_before() -> None:
    box = (10, 20, 200, 52)
    assert cut(gradient(), box, 0.0, 512) == cut(gradient(), box, 0.0, 512, 1)


def test_a_long_crop_lies_in_the_middle_of_grey() -> None:
    image = Image.new("RGB", (512, 8), "red")
    crop = Image.open(io.BytesIO(cut(image, (0, 0, 512, 8), 0.0, 512)))
    assert crop.size == (512, 32)
    for y, expected in ((2, (128, 128, 128)), (16, (255, 0, 0)), (29, (128, 128, 128))):
        pixel = crop.getpixel((256, y))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 12


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((50, 50, 50, 50), r"box \[50, 50, 50, 50\] has no area"),
        ((60, 50, 50, 70), "has no area"),
        ((float("nan"), 0, 10, 10), "is not of numbers"),
        ((0, 0, float("inf"), 10), "is not of numbers"),
        ((320, 0, 400, 10), "lies outside the image of 320 x 240 pixels"),
        ((-20, -20, 0, 0), "lies outside"),
    ],
)
def test_a_box_that_holds_nothing_is_not_cut(box: tuple[float, ...], reason: str) -> None:
    with pytest.raises(BadBox, match=reason):
        cut(gradient(), box, margin=0.5, max_side=512)


def test_the_size_of_a_crop_is_read_from_its_bytes() -> None:
    assert encoded_size(cut(gradient(), (10, 10, 110, 60), 0.0, 512)) == (100, 50)
    assert encoded_size(cut(gradient(), (0, 0, 320, 240), 0.0, 64)) == (64, 48)
    assert encoded_size(b"\xff\xd8\xff\xe0\x00\x10JFIF") is None
    assert encoded_size(b"") is None


# --- crops out of an image that is decoded smaller -------------------------------------------------------------------


def decibels(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two JPEGs of one size."""
    first, second = (Image.open(io.BytesIO(jpeg)) for jpeg in (one, other))
    assert first.size == second.size
    squares = sum(ImageStat.Stat(ImageChops.difference(first, second)).sum2)
    return 10 * math.log10(255**2 * 3 * first.width * first.height / squares) if squares else math.inf


@pytest.mark.slow
@pytest.mark.parametrize("side", [600, 1000, 1200, 1600, 2000, 2900])
def test_a_crop_out_of_a_smaller_decode_is_as_good(side: int) -> None:
    size = (4000, 3000)
    data = encoded(photo(3, size), quality=88)
    box = (333.3, 77.7, 333.3 + side, 77.7 + 0.75 * side)
    pixels = enough([box], 0.05, 512, size)
    assert pixels is not None
    small, full = decode(data, pixels), decode(data)
    expected = {600: 4000, 1000: 2000, 1200: 2000, 1600: 2000, 2000: 1000, 2900: 1000}[side]
    assert small.pixels.width == expected
    best = cut(full.pixels, box, 0.05, 512)
    assert decibels(cut(small.pixels, box, 0.05, 512, size=size), best) >= 38
    if expected < 2000:  # pixels that were kept since the image was read are more than enough
        assert decibels(cut(decode(data, 2000).pixels, box, 0.05, 512, size=size), best) >= 38


def test_the_smallest_crop_decides_how_large_the_decode_is() -> None:
    large, small = (0, 0, 2000, 1500), (0, 0, 600, 300)
    assert enough([large], 0.0, 500, (4000, 3000)) == 1000
    assert enough([large, small], 0.0, 500, (4000, 3000)) == 3334
    assert enough([large, (0, 0, 400, 300)], 0.0, 500, (4000, 3000)) is None
    assert enough([large, (math.nan, 0, 1, 1), (9000, 0, 9001, 1)], 0.0, 500, (4000, 3000)) == 1000
    assert enough([(math.nan, 0, 1, 1)], 0.0, 500, (4000, 3000)) is None
