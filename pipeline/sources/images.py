"""Image files: find what is wrong with one, and turn a right one into upright RGB pixels."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

# HEIC, what phones take. Its decoder applies the rotation that such a file has, and leaves none in the EXIF.
pillow_heif.register_heif_opener(thumbnails=False)

# What is decoded. Pillow's other formats run external programs (EPS) or are not pictures that people batch-process.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM")

# A picture with more pixels is refused before any is decoded: the limit at which Pillow warns, 256 MiB of RGB. The
# detector service has the same one.
MAX_PIXELS = 89_478_485

# A file of these formats and at most this size goes to the detector as it is: it decodes a JPEG straight to the size
# that its model takes, 8 ms for 1080p against 27 for all pixels. A larger file, or another format, is sent as a JPEG of
# at most 1280 pixels a side: detectors scale to about 640 themselves.
PASSED_ON = ("JPEG", "PNG", "WEBP")
PASSED_ON_BYTES = 8 * 1024**2
DETECTOR_MAX_SIDE = 1280


class BadImage(Exception):
    """A file that is no usable image; the message says why."""


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded image: RGB, EXIF orientation applied, first frame of an animation."""

    pixels: Image.Image
    format: str
    scale: float = 1.0
    """Pixels here for one of the file; below 1 where fewer were decoded."""


def content_key(data: bytes) -> str:
    """The name of an image by its content: 64 bits of SHA-256, enough for 10 million images at odds of 1 to 300,000."""
    return hashlib.sha256(data).hexdigest()[:16]


def decode(data: bytes, enough: int | None = None) -> Upright:
    """Decode an encoded image completely, so that a truncated one is found.

    Where its longest side needs no more than `enough` pixels, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that
    leaves so many: a 1080p picture's annotated copy of 960 pixels then takes 8 ms of CPU time, not 22.

    Raises:
        BadImage: not an image, of a format that is not decoded, cut short, broken or too large.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow finds odd; the size is checked here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels: more than {MAX_PIXELS // 1_000_000} megapixels")
            longest = max(width, height)
            if enough and longest > enough:
                # Both sides have to be given: Pillow takes the scale that leaves enough of each.
                image.draft(None, (max(width * enough // longest, 1), max(height * enough // longest, 1)))
            scale = max(image.size) / longest
            image.load()
            # In place, and no conversion of what is RGB: each copy of 81 megapixels is 243 MB.
            ImageOps.exif_transpose(image, in_place=True)
            upright = to_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder may raise anything on hostile input (struct.error, ValueError, ...)
        raise BadImage(f"cannot be decoded: {str(error) or type(error).__name__}") from error
    return Upright(upright, str(image.format), scale)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB: 16-bit greys are scaled, not clipped; transparency lies on white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def for_detector(data: bytes, upright: Upright) -> bytes:
    """The encoded image that goes to the detector: the file itself where that will do, or else a smaller JPEG."""
    if upright.format in PASSED_ON and len(data) <= PASSED_ON_BYTES:
        return data
    small = upright.pixels.copy()
    small.thumbnail((DETECTOR_MAX_SIDE, DETECTOR_MAX_SIDE), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=92)
    return encoded.getvalue()
