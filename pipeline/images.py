"""Image files: find what is wrong with one, and turn a right one into upright RGB pixels."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

# What is decoded. Pillow's other formats run external programs (EPS) or are not pictures that people batch-process.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM")

# A picture with more pixels is refused before any is decoded: 200 megapixels are 600 MB as RGB.
MAX_PIXELS = 200_000_000

# Detectors scale to about 640 pixels themselves: a longer side only costs the way there. 1280 leaves them a choice.
DETECTOR_MAX_SIDE = 1280

# Formats that a detector takes as they are.
PASSED_ON = ("JPEG", "PNG", "WEBP")


class BadImage(Exception):
    """A file that is no usable image; the message says why."""


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded image: RGB, EXIF orientation applied, first frame of an animation."""

    pixels: Image.Image
    format: str
    as_stored: bool
    """Whether the file's own pixels are these: no rotation, no change of mode, no further frame."""


def content_key(data: bytes) -> str:
    """The name of an image by its content: 64 bits of SHA-256, enough for 10 million images at odds of 1 to 300,000."""
    return hashlib.sha256(data).hexdigest()[:16]


def decode(data: bytes) -> Upright:
    """Decode an encoded image completely, so that a truncated one is found.

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
            image.load()
            turned = ImageOps.exif_transpose(image)
            rgb = to_rgb(turned)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder may raise anything on hostile input (struct.error, ValueError, ...)
        raise BadImage(f"cannot be decoded: {str(error) or type(error).__name__}") from error
    as_stored = image.mode == "RGB" and turned.size == image.size and image.getexif().get(0x0112, 1) == 1
    return Upright(rgb, str(image.format), as_stored and not getattr(image, "is_animated", False))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB: 16-bit greys are scaled, not clipped; transparency lies on white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return image.convert("RGB")


def for_detector(data: bytes, upright: Upright) -> bytes:
    """The encoded image that goes to the detector: the file itself where that will do, or else a smaller JPEG."""
    fits = max(upright.pixels.size) <= DETECTOR_MAX_SIDE
    if fits and upright.as_stored and upright.format in PASSED_ON:
        return data
    small = upright.pixels.copy()
    small.thumbnail((DETECTOR_MAX_SIDE, DETECTOR_MAX_SIDE), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=92)
    return encoded.getvalue()
