"""Decoding: every valid kind becomes upright RGB, everything else a reason."""

import io
import struct
import threading
import time

import pytest
from PIL import Image, ImageCms

from imaging import decode as imaging
from imaging.encode import encode_jpeg
from pipeline.sources.images import (
    BadImage,
    content_key,
    copy_for_detector,
    covering,
    decode,
    decode_for_detector,
    frames,
)
from tests.corpus import small_copy_first
from tests.pictures import Tags, animated, as_phones_take_it, encoded, gradient, rotated_by_exif, sixteen_bit, tiff


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
        pytest.param(
            encoded(gradient().convert("F"), "TIFF"),
            "floating point pixels from",
            id="float TIFF",
        ),
        pytest.param(small_copy_first(), "camera's raw file", id="raw"),
        pytest.param(encoded(gradient(), "JPEG2000")[:500], "cannot be decoded", id="truncated JPEG 2000"),
        pytest.param(encoded(gradient(), "TGA"), "not an image of a known format", id="TGA"),
        pytest.param(encoded(gradient(), "ICO"), "a format that is not decoded", id="ICO"),
        pytest.param(b"8BPS\0\1" + bytes(40), "a drawing", id="PSD"),
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
    assert len(content_key(JPEG)) == 32


def sent(data: bytes, takes: tuple[int, int]) -> tuple[str, str, tuple[int, int]] | None:
    """Format, mode and size of what the detector gets; None: the file itself."""
    copy = copy_for_detector(data, decode_for_detector(data, takes), takes)
    if copy is None:
        return None
    image = Image.open(io.BytesIO(copy))
    return str(image.format), image.mode, image.size


@pytest.mark.parametrize("data", [JPEG, rotated_by_exif(gradient()), sixteen_bit(), encoded(gradient(), "WEBP")])
def test_the_detector_gets_a_small_file_as_it_is(data: bytes) -> None:
    assert sent(data, (64, 64)) is None


def test_the_detector_gets_a_file_not_much_larger_than_its_input_as_it_is() -> None:
    data = encoded(gradient(2400, 1800))
    assert sent(data, (1200, 900)) is None
    assert sent(data, (1100, 800)) == ("JPEG", "RGB", (1200, 900))


@pytest.mark.parametrize("kind", ["BMP", "HEIF"])
def test_the_detector_gets_a_jpeg_of_other_formats(kind: str) -> None:
    assert sent(encoded(gradient(320, 240), kind), (1280, 1280)) == ("JPEG", "RGB", (320, 240))
    assert sent(encoded(gradient(2000, 1000), kind), (160, 160)) == ("JPEG", "RGB", (1000, 500))
    assert sent(encoded(gradient(1600, 800), kind), (160, 160)) == ("JPEG", "RGB", (960, 480))


def test_the_copy_is_upright_and_covers_the_models_input_and_the_reports() -> None:
    assert sent(rotated_by_exif(gradient(4000, 3000)), (640, 640)) == ("JPEG", "RGB", (1000, 750))
    assert sent(rotated_by_exif(gradient(4000, 3000)), (256, 192)) == ("JPEG", "RGB", (1000, 750))
    assert sent(rotated_by_exif(gradient(4000, 3000)), (1333, 800)) == ("JPEG", "RGB", (1333, 1000))


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (5000, 400), (1, 3000), (33, 35)])
@pytest.mark.parametrize("takes", [(640, 640), (256, 192), (1333, 1333)])
def test_a_smaller_decode_keeps_the_pixels_that_the_model_takes(size: tuple[int, int], takes: tuple[int, int]) -> None:
    for data in (encoded(gradient(*size)), rotated_by_exif(gradient(*size))):
        upright = decode_for_detector(data, takes)
        assert (upright.width, upright.height) == size
        scale = covering(size, takes)
        assert upright.pixels.width >= size[0] * scale
        assert upright.pixels.height >= size[1] * scale
        assert abs(upright.pixels.width / size[0] - upright.pixels.height / size[1]) < 1 / min(upright.pixels.size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_smaller_decode_finds_a_file_that_is_cut_short(kind: str) -> None:
    data = encoded(gradient(4000, 3000), kind)
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode_for_detector(data[:-1000], (64, 64))


# --- what a picture shows ------------------------------------------------------------------------------------------

FLOAT: Tags = {339: ("H", (3,))}
SIGNED: Tags = {339: ("H", (2,))}
INVERTED: Tags = {262: ("H", (0,))}
LAB: Tags = {262: ("H", (8,))}
CMYK: Tags = {262: ("H", (5,))}
NAN = float("nan")


def grey(kind: str, *values: float, order: str = "<", tags: Tags | None = None) -> bytes:
    """A TIFF of one row of grey pixels, of struct's format `kind`."""
    bits = (8 * struct.calcsize(kind),)
    return tiff((len(values), 1), struct.pack(f"{order}{len(values)}{kind}", *values), bits, order, tags)


def colours(kind: str, *values: int, samples: int = 3, tags: Tags | None = None) -> bytes:
    """A TIFF of one pixel."""
    pixels = struct.pack(f"<{len(values)}{kind}", *values)
    return tiff((len(values) // samples, 1), pixels, (8 * struct.calcsize(kind),) * samples, tags=tags)


def told(low: float, high: float) -> Tags:
    """The tags SMinSampleValue and SMaxSampleValue."""
    return {340: ("f", (low,)), 341: ("f", (high,))}


def extra(meaning: int) -> Tags:
    """The tag ExtraSamples: 0 no meaning, 1 alpha that the colours are multiplied with, 2 alpha."""
    return {338: ("H", (meaning,))}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(grey("f", 0, 0.25, 0.5, 1, tags=FLOAT), (0, 64, 128, 255), id="float of 0 to 1"),
        pytest.param(grey("f", 0, 0.25, 0.5, 1, order=">", tags=FLOAT), (0, 64, 128, 255), id="float, big-endian"),
        pytest.param(grey("f", -0.0005, 0.5, 1.0005, tags=FLOAT), (0, 128, 255), id="float, a little over"),
        pytest.param(grey("f", 0, 1, tags=FLOAT | INVERTED), (255, 0), id="float, white is zero"),
        pytest.param(grey("f", -5, 0, 5, tags=FLOAT | told(-5, 5)), (0, 128, 255), id="float, range told"),
        pytest.param(grey("H", 0, 32768, 65535), (0, 128, 255), id="16 bits"),
        pytest.param(grey("H", 0, 32768, 65535, order=">"), (0, 128, 255), id="16 bits, big-endian"),
        pytest.param(grey("H", 0, 16383), (0, 64), id="a dark picture of 16 bits stays dark"),
        pytest.param(grey("H", 0, 1024, 4095), (0, 64, 255), id="12 bits in 16"),
        pytest.param(grey("H", 0, 256, 1023), (0, 64, 255), id="10 bits in 16"),
        pytest.param(grey("H", 0, 64, 255), (0, 64, 255), id="8 bits in 16"),
        pytest.param(grey("H", 0, 1000, tags={281: ("H", (4095,))}), (0, 62), id="12 bits by MaxSampleValue"),
        pytest.param(grey("H", 0, 65535, tags=INVERTED), (255, 0), id="16 bits, white is zero"),
        pytest.param(grey("H", 0, 4095, tags=INVERTED), (255, 0), id="12 bits in 16, white is zero"),
        pytest.param(
            tiff((2, 1), bytes([0x00, 0x04, 0x00]), (12,)), (0, 64), id="12 bits packed: their number is known"
        ),
        pytest.param(grey("B", 0, 100, 255, tags=INVERTED), (255, 155, 0), id="8 bits, white is zero"),
        pytest.param(grey("b", 0, 64, 127, tags=SIGNED), (0, 129, 255), id="signed bytes"),
        pytest.param(grey("h", 0, 1024, 4095, tags=SIGNED), (0, 64, 255), id="12 bits in signed 16"),
        pytest.param(grey("h", 0, 16384, 32767, tags=SIGNED), (0, 128, 255), id="signed 16 bits"),
        pytest.param(
            grey("h", -1000, 0, 1000, tags=SIGNED | told(-1000, 1000)), (0, 128, 255), id="signed, range told"
        ),
        pytest.param(grey("i", 0, 32768, 65535, tags=SIGNED), (0, 128, 255), id="16 bits in 32"),
        pytest.param(colours("B", 100, 128, samples=2, tags=extra(1)), (227,), id="grey times its alpha"),
        pytest.param(colours("B", 100, 128, samples=2, tags=extra(2)), (177,), id="grey with alpha"),
    ],
)
def test_grey_of_any_depth(data: bytes, expected: tuple[int, ...]) -> None:
    pixels = decode(data).pixels
    assert [pixels.getpixel((x, 0)) for x in range(pixels.width)] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(colours("H", 65535, 32768, 256), (255, 128, 1), id="16 bits"),
        pytest.param(colours("B", 100, 50, 0, 128, samples=4, tags=extra(1)), (227, 177, 127), id="premultiplied"),
        pytest.param(colours("B", 100, 50, 0, 128, samples=4, tags=extra(2)), (177, 152, 127), id="alpha"),
        pytest.param(colours("B", 100, 50, 0, 128, samples=4, tags=extra(0)), (100, 50, 0), id="a fourth band"),
        pytest.param(colours("B", 100, 50, 0, 0, samples=4), (100, 50, 0), id="a fourth band that hides all"),
        pytest.param(colours("B", 0, 255, 255, 0, samples=4, tags=CMYK), (255, 0, 0), id="CMYK"),
        pytest.param(colours("H", 0, 65535, 65535, 0, samples=4, tags=CMYK), (255, 0, 0), id="CMYK of 16 bits"),
        pytest.param(colours("B", 136, 80, 67, tags=LAB), (255, 0, 0), id="Lab"),
    ],
)
def test_colours_of_any_kind(data: bytes, expected: tuple[int, int, int]) -> None:
    assert close(decode(data).pixels.getpixel((0, 0)), expected)


def test_a_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image, "PNG", transparency=0)).pixels
    assert [pixels.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        pixels = decode(encoded(image, kind)).pixels
        assert [pixels.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


def test_a_colour_profile_is_not_applied() -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(encoded(image, "PNG", icc_profile=profile)).pixels.getpixel((0, 0)) == (200, 30, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            grey("f", 0, 255, tags=FLOAT),
            "floating point pixels from 0 to 255: their range is not known: scale",
        ),
        (grey("f", -1, 1, tags=FLOAT), "from -1 to 1: their range is not known"),
        (grey("f", 0, NAN, 1, tags=FLOAT), "NaN"),
        (grey("f", 0, 1, float("inf"), tags=FLOAT), "NaN or infinite"),
        (grey("h", -1000, 3000, tags=SIGNED), "signed pixels from -1000 to 3000: their range is not known"),
        (grey("b", -128, 127, tags=SIGNED), "signed pixels from -128 to 127"),
        (grey("i", 0, 70000, tags=SIGNED), "pixels of 32 bits from 0 to 70000: their range is not known"),
        (colours("H", 4095, 100, 0), "colours of 16 bits below 1/16 of their range"),
        (grey("d", 0, 1, tags=FLOAT), "a TIFF file that is damaged, or of a kind that is not supported"),
        (b"PK\x03\x04" + bytes(100), "not an image but a ZIP archive"),
        (b"<!doctype html><html>404</html>", "not an image but an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS: run 'git lfs pull'"),
    ],
)
def test_pixels_of_no_known_range_and_other_files_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_frames_and_pages_are_counted(kind: str) -> None:
    pictures = [gradient().rotate(30 * number) for number in range(3)]
    assert frames(encoded(pictures[0], kind, save_all=True, append_images=pictures[1:]), kind) == 3
    assert frames(encoded(pictures[0], kind), kind) == 1


def test_the_second_picture_of_a_phones_jpeg_is_no_frame() -> None:
    data = encoded(gradient(), "MPO", save_all=True, append_images=[gradient(160, 120)])
    assert frames(data, decode(data).format) == 1


def test_a_jpeg_is_encoded_as_in_memory_and_other_threads_go_on() -> None:
    """The lock of the interpreter is free meanwhile: another thread runs many times, and not once or twice."""
    pixels, memory = Image.effect_noise((6000, 4000), 90).convert("RGB"), io.BytesIO()
    pixels.save(memory, "JPEG", quality=90)
    running, turns, encoded_jpegs = threading.Event(), 0, []

    def encode() -> None:
        running.set()
        encoded_jpegs.append(encode_jpeg(pixels, 90))
        running.clear()

    for _ in range(5):  # on a busy machine this thread may not run in time
        thread = threading.Thread(target=encode)
        thread.start()
        running.wait(10)
        turns = 0
        while running.is_set():
            time.sleep(0)
            turns += 1
        thread.join()
        if turns > 100:
            break
    assert turns > 100
    assert set(encoded_jpegs) == {memory.getvalue()}
