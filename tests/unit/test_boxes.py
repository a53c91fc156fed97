"""Crops: padded, clipped, never empty."""

import io

import pytest
from PIL import Image

from pipeline.stages.boxes import BadBox, cut, encoded_size, padded_box
from tests.pictures import gradient


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
