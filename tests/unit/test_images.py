"""Decoding: every valid kind becomes upright RGB, everything else a reason."""

import io

import pytest
from PIL import Image

from imaging import decode as imaging
from pipeline.sources import images
from pipeline.sources.images import BadImage, content_key, decode, for_detector
from tests.pictures import animated, as_phones_take_it, encoded, gradient, rotated_by_exif, sixteen_bit


def close(pixel: object, expected: tuple[int, int, int], tolerance: int = 12) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000"])
def test_formats(kind: str) -> None:
    upright = decode(encoded(gradient(), kind))
    assert (upright.format, upright.pixels.mode, upright.pixels.size) == (kind, "RGB", (320, 240))


@pytest.mark.parametrize(
    "data",
    [rotated_by_exif(gradient()), rotated_by_exif(gradient(), "AVIF"), as_phones_take_it(gradient())],
    ids=["JPEG", "AVIF", "HEIC"],
)
def test_orientation_is_applied_once(data: bytes) -> None:
    straight, turned = gradient(), decode(data)
    assert turned.pixels.size == (320, 240)
    for place in ((10, 10), (310, 10), (10, 230), (310, 230)):
        assert close(turned.pixels.getpixel(place), straight.getpixel(place))  # type: ignore[arg-type]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    pixels = decode(sixteen_bit()).pixels
    assert close(pixels.getpixel((10, 100)), (85, 85, 85), 2)
    assert close(pixels.getpixel((310, 100)), (170, 170, 170), 2)


def test_cmyk_keeps_its_colours() -> None:
    assert close(decode(encoded(Image.new("CMYK", (50, 50), (0, 255, 255, 0)))).pixels.getpixel((25, 25)), (254, 0, 0))


def test_transparency_lies_on_white() -> None:
    assert decode(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG")).pixels.getpixel((5, 5)) == (255, 255, 255)


def test_first_frame_of_an_animation() -> None:
    assert close(decode(animated()).pixels.getpixel((60, 45)), (255, 0, 0))


JPEG = encoded(gradient())
HEIC = encoded(gradient(), "HEIF")
AVIF = encoded(gradient(), "AVIF")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello", "not an image", id="text"),
        pytest.param(JPEG[:200], "not an image|cannot be decoded", id="header only"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated", id="truncated JPEG"),
        pytest.param(encoded(gradient(), "PNG")[:500], "truncated", id="truncated PNG"),
        pytest.param(HEIC[: len(HEIC) * 9 // 10], "cannot be decoded|not an image", id="truncated HEIC"),
        pytest.param(AVIF[: len(AVIF) * 9 // 10], "cannot be decoded|not an image", id="truncated AVIF"),
        pytest.param(encoded(Image.new("F", (10, 10)), "TIFF"), "floating point", id="float TIFF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="PostScript is not run"),
    ],
)
def test_bad_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_a_bomb_is_refused_before_its_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "MAX_PIXELS", 320 * 240 - 1)
    with pytest.raises(BadImage, match="megapixels"):
        decode(JPEG)


def test_key_names_content() -> None:
    assert content_key(JPEG) == content_key(bytes(JPEG)) != content_key(JPEG + b"\0")
    assert len(content_key(JPEG)) == 16


@pytest.mark.parametrize("data", [JPEG, rotated_by_exif(gradient()), sixteen_bit(), encoded(gradient(), "WEBP")])
def test_detector_gets_the_file_where_that_will_do(data: bytes) -> None:
    assert for_detector(data, decode(data)) is data


@pytest.mark.parametrize("kind", ["BMP", "HEIF"])
def test_detector_gets_a_small_jpeg_of_other_formats(kind: str) -> None:
    data = encoded(gradient(2560, 640), kind)
    sent = Image.open(io.BytesIO(for_detector(data, decode(data))))
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "RGB", (1280, 320))


def test_detector_gets_a_small_jpeg_of_a_huge_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PASSED_ON_BYTES", 1000)
    data = rotated_by_exif(gradient(1600, 1200))
    sent = Image.open(io.BytesIO(for_detector(data, decode(data))))
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "RGB", (1280, 960))
