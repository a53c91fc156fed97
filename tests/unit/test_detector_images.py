"""The detector's decode stage: any valid file becomes upright RGB at the model's size, the rest a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from imaging.decode import MAX_PIXELS, BadImage
from services.detector.checkpoint import InputSize
from services.detector.images import decode
from tests.pictures import animated, encoded, gradient, rotated_by_exif, sixteen_bit

SAME = InputSize()  # nothing here is large enough to be scaled down
SMALL = InputSize(exact=(64, 48))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def difference(data: bytes, expected: Image.Image, size: InputSize = SAME) -> float:
    """Mean difference of the decoded pixels from a picture, in steps of 0..255."""
    pixels, _, _ = decode(data, size)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (expected.height, expected.width, 3)
    return float(np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_formats(kind: str) -> None:
    assert difference(encoded(gradient(), kind), gradient()) < 4


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
def test_modes_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = gradient().convert(mode)
    assert difference(encoded(image, kind), image.convert("RGB")) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what lays an upright picture as this orientation expects it
    stored = gradient()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(encoded(stored, kind, exif=exif), gradient()) < 4


def test_size_is_of_the_upright_image_before_scaling() -> None:
    pixels, width, height = decode(rotated_by_exif(gradient()), SMALL)
    assert (width, height) == (320, 240)
    assert pixels.shape == (48, 64, 3)


def test_scaling_is_that_of_the_models_own_processor() -> None:
    expected = gradient().resize((64, 48), Image.Resampling.BILINEAR)
    assert difference(encoded(gradient(), "PNG"), expected, SMALL) == 0


def test_a_large_jpeg_decoded_small_looks_the_same() -> None:
    large = gradient(2000, 1500)
    assert difference(encoded(large), large.resize((64, 48), Image.Resampling.BILINEAR), SMALL) < 2


def test_without_a_fixed_size_large_images_are_scaled_in_proportion() -> None:
    pixels, width, height = decode(encoded(gradient(900, 300)), InputSize(longest=90))
    assert (width, height) == (900, 300)
    assert pixels.shape == (30, 90, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    pixels, _, _ = decode(sixteen_bit(), SAME)
    assert abs(int(pixels[100, 10, 0]) - 85) <= 1
    assert abs(int(pixels[100, 310, 0]) - 170) <= 1


def test_transparency_lies_on_white() -> None:
    pixels, _, _ = decode(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"), SAME)
    assert pixels.min() == 255


def test_the_first_frame_of_an_animation_counts() -> None:
    pixels, _, _ = decode(animated(), SAME)
    assert pixels[45, 60].tolist() == pytest.approx([255, 0, 0], abs=10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (half(encoded(gradient())), "truncated"),
        (half(encoded(gradient(), "PNG")), "truncated"),
        (half(encoded(gradient(), "WEBP")), "cannot be decoded|not an image"),
        (encoded(gradient().convert("F"), "TIFF"), "floating point"),
    ],
    ids=["empty", "text", "PostScript", "truncated JPEG", "truncated PNG", "truncated WebP", "float TIFF"],
)
def test_bad_bytes_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data, SAME)


@pytest.mark.parametrize("side", [9500, 14000], ids=["over the limit", "over twice the limit"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    assert side * side > MAX_PIXELS
    with pytest.raises(BadImage, match="megapixels"):
        decode(bomb.getvalue(), SAME)
