"""Decode an image file into upright RGB pixels, or say why it cannot be used."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from imaging.kinds import HEAD_BYTES, image_format, other_kind
from imaging.tones import UnknownRange, tag, to_rgb

# Pillow's other formats run external programs (EPS) or hold no photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")

# The largest image that is decoded, in pixels: the limit at which Pillow warns, 256 MiB of RGB.
MAX_PIXELS = 89_478_485

SIDEWAYS = frozenset({5, 6, 7, 8})  # values of EXIF's orientation that swap width and height

REDUCED = 1  # the bit of a TIFF's NewSubfileType that says: of another image in this file

Least = Callable[[int, int], tuple[int, int]]
"""From an image's width and height as stored to the least width and height that its decoded pixels must keep."""


class BadImage(Exception):
    """The bytes are not a usable image; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded image: RGB, EXIF orientation applied, first frame of an animation."""

    pixels: Image.Image
    """It may be smaller than the image in the file, see `decode`."""
    format: str
    """Pillow's name of the file's format."""
    width: int
    """Of the upright image in the file, in pixels."""
    height: int


def decode(data: bytes, least: Least | None = None, formats: tuple[str, ...] = FORMATS) -> Upright:
    """Decode an encoded image completely, so that truncation is found.

    With `least`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that keeps so many pixels on each side. This
    saves most of the CPU time: 8 ms instead of 22 to 27 for 1080p.

    Raises:
        BadImage: the data is empty, of another format than `formats`, truncated, damaged or above MAX_PIXELS.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Odd metadata does not matter, and the size is checked here.
            image = Image.open(io.BytesIO(data), formats=formats)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels: more than {MAX_PIXELS // 1_000_000} megapixels")
            if least:
                image.draft(None, least(width, height))
            if image.format == "TIFF" and (tag(image, "NewSubfileType") or 0) & REDUCED:
                raise BadImage(
                    "it holds a small copy first, as a camera's raw file does: develop it into a JPEG or TIFF"
                )
            smaller = image.size != (width, height)
            raw_mode = str(image.tile[0].args) if image.tile else ""
            if image.format in ("JPEG", "MPO"):
                # In one call, which waits for the interpreter's lock once and not after each 64 KiB: beside a thread
                # that computes in Python a photograph of 3 MB takes 57 ms instead of 285.
                image.decodermaxblock = len(data)
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
                width, height = height, width
            # In place, and RGB is not converted: each copy of 81 megapixels takes 243 MB.
            ImageOps.exif_transpose(image, in_place=True)
            if not smaller:  # Pillow's TIFF reader applies the orientation itself, as it loads
                width, height = image.size
            return Upright(to_rgb(image, raw_mode), str(image.format), width, height)
    except BadImage:
        raise
    except Image.DecompressionBombError:  # Pillow's own check, at twice its limit, comes before ours
        raise BadImage(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except UnidentifiedImageError:
        raise BadImage(unknown(data, formats)) from None
    except UnknownRange as error:
        raise BadImage(str(error)) from None
    except Exception as error:  # Decoders raise anything on hostile input (struct.error, ValueError, ...).
        raise BadImage(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def unknown(data: bytes, formats: tuple[str, ...]) -> str:
    """Why bytes that Pillow does not know are no image."""
    head = data[:HEAD_BYTES]
    if name := image_format(head):
        return f"cannot be decoded: a {name} file that is damaged, or of a kind that is not supported"
    if other := other_kind(head):
        return f"not an image but {other[0]}"
    return f"not an image of a known format ({', '.join(formats)})"
