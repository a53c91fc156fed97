"""Image files as the job reads them: name one by its content, decode it, encode it for the detector."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from typing import cast

import pillow_heif
from PIL import Image

from imaging import decode as imaging
from imaging.decode import Least, Upright
from imaging.encode import encode_jpeg
from pipeline.errors import RowError

__all__ = [
    "BadImage",
    "Upright",
    "content_key",
    "copy_for_detector",
    "decode",
    "decode_for_detector",
    "encode_jpeg",
    "frames",
]

# HEIC, the format of phones. Its decoder applies the rotation in the file, and removes it from the EXIF.
pillow_heif.register_heif_opener(thumbnails=False)

FORMATS = (*imaging.FORMATS, "HEIF")
MANY_FRAMES = ("GIF", "TIFF", "PNG", "WEBP", "AVIF", "HEIF")

# A file of these formats goes to the detector unchanged where that costs little: so many pixels, or not much more than
# the detector's model takes. Otherwise a copy in the size of the model's input is sent, since a file would be copied,
# queued and decoded there once more: 60 ms for 12 megapixels, against 8 for a copy.
PASSED_ON = ("JPEG", "PNG", "WEBP")
PASSED_ON_PIXELS = 1_000_000
PASSED_ON_SCALE = 0.5
COPY_QUALITY = 92
COPY_EXCESS = 1.4
# The copy of a photograph takes less: 0.1 MB for 640 pixels, 0.4 MB for 1,333.
COPY_BYTES = 512 * 1024
# The report draws boxes and answers on a copy of so many pixels a side: large enough to read a caption on, small enough
# that 200 of them make a page.
COPY_SIDE = 960
# Crops of 512 pixels from boxes of a third of an image's longer side need about so many pixels of it.
CROP_SIDE = 1700

# What a copy covers when the detector does not say what its model takes: most take about 640.
UNKNOWN_INPUT = (1280, 1280)
# For a detector that is asked about all of an image's pixels.
ALL_PIXELS = (1_000_000, 1_000_000)


class BadImage(RowError):
    """A file is not a usable image; the message says why."""


def content_key(data: bytes, inputs: str | None = None) -> str:
    """The name of an image by its content: the first 128 bits of SHA-256, as 32 hex digits.

    It covers the job's inputs (JSON), so that one picture with two questions is no duplicate.
    """
    digest = hashlib.sha256(data)
    if inputs is not None:
        digest.update(b"\0" + inputs.encode())
    return digest.hexdigest()[:32]


def covering(size: tuple[int, int], least: tuple[int, int]) -> float:
    """The scale, at most 1, at which an image of `size` still has `least` pixels across and down."""
    return min(max(least[0] / size[0], least[1] / size[1]), 1.0)


def decode(data: bytes, enough: int | Least | None = None) -> Upright:
    """Decode an encoded image; a JPEG may be decoded smaller where so many pixels of its longest side are left.

    Every fault that a full decode finds is found at any size, since all of the data is read. `enough` may also be what
    `imaging.decode.decode` takes.

    Raises:
        BadImage: the image cannot be used; see there.
    """

    def longest(width: int, height: int) -> tuple[int, int]:
        side, pixels = max(width, height), cast("int", enough)
        return max(width * pixels // side, 1), max(height * pixels // side, 1)

    try:
        return imaging.decode(data, longest if isinstance(enough, int) else enough, FORMATS)
    except imaging.BadImage as error:
        raise BadImage(str(error)) from error


def copy_scale(size: tuple[int, int], takes: tuple[int, int]) -> float:
    """The scale of a copy that is large enough for the detector and for the report."""
    return min(max(covering(size, takes), COPY_SIDE / max(size)), 1.0)


def decode_for_detector(data: bytes, takes: tuple[int, int], least_side: int = 1) -> Upright:
    """Decode an image, not larger than a detector whose model takes so many pixels across and down has use for.

    Its longer side keeps `least_side` pixels.
    """

    def least(width: int, height: int) -> tuple[int, int]:
        # The orientation is not known yet.
        scale = max(copy_scale((width, height), takes), copy_scale((height, width), takes))
        scale = min(max(scale, least_side / max(width, height)), 1.0)
        return math.ceil(width * scale), math.ceil(height * scale)

    return decode(data, least)


def frames(data: bytes, format: str) -> int:
    """The number of frames or pages in an encoded image that was decoded; 1 for formats of one picture.

    A JPEG of a phone often holds a small copy or a depth map as a second picture (MPO), which is no loss. Frames are
    counted without decoding them: 1 ms each for a GIF or TIFF of 0.3 MB a frame, nothing for other formats.
    """
    if format not in MANY_FRAMES:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(getattr(Image.open(io.BytesIO(data), formats=[format]), "n_frames", 1))
    except Exception:  # a later frame is damaged; the first one is not
        return 1


def copy_for_detector(data: bytes, upright: Upright, takes: tuple[int, int]) -> bytes | None:
    """A JPEG of the image for a detector whose model takes so many pixels; None where the file itself costs no more."""
    size = upright.width, upright.height
    small = upright.width * upright.height <= PASSED_ON_PIXELS or covering(size, takes) >= PASSED_ON_SCALE
    if upright.format in PASSED_ON and small:
        return None
    return reduced_jpeg(upright, copy_scale(size, takes))


def reduced_jpeg(upright: Upright, scale: float) -> bytes:
    """A JPEG of an image at this share of its size or little more, at most of the pixels that are decoded.

    Pixels are averaged by whole factors. Resampling what is left costs four times as much, so a copy may be up to
    COPY_EXCESS times as wide.
    """
    copy, scale = upright.pixels, min(scale, 1.0)
    width, height = math.ceil(upright.width * scale), math.ceil(upright.height * scale)
    if (factor := min(copy.width // width, copy.height // height)) > 1:
        copy = copy.reduce(factor)
    if copy.width > COPY_EXCESS * width:
        copy = copy.resize((width, height), Image.Resampling.BILINEAR)
    return encode_jpeg(copy, COPY_QUALITY)
