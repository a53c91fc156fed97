"""Image files as the job reads them: name one by its content, decode it, encode it for the detector."""

from __future__ import annotations

import hashlib
import io
import warnings

import pillow_heif
from PIL import Image

from imaging import decode as imaging
from imaging.decode import Upright
from pipeline.errors import RowError

__all__ = ["BadImage", "Upright", "content_key", "decode", "for_detector", "frames"]

# HEIC, the format of phones. Its decoder applies the rotation in the file, and removes it from the EXIF.
pillow_heif.register_heif_opener(thumbnails=False)

FORMATS = (*imaging.FORMATS, "HEIF")
MANY_FRAMES = ("GIF", "TIFF", "PNG", "WEBP", "AVIF", "HEIF")

# A file of these formats and at most this size goes to the detector unchanged: the detector decodes a JPEG directly to
# the size of its model's input, 8 ms for 1080p against 27 for all pixels. A larger file, or another format, is sent as
# a JPEG of at most 1280 pixels a side: detectors scale to about 640 themselves.
PASSED_ON = ("JPEG", "PNG", "WEBP")
PASSED_ON_BYTES = 8 * 1024**2
DETECTOR_MAX_SIDE = 1280


class BadImage(RowError):
    """A file is not a usable image; the message says why."""


def content_key(data: bytes) -> str:
    """The name of an image by its content: 64 bits of SHA-256, enough for 10 million images at odds of 1 to 300,000."""
    return hashlib.sha256(data).hexdigest()[:16]


def decode(data: bytes, enough: int | None = None) -> Upright:
    """Decode an encoded image; a JPEG may be decoded smaller where `enough` pixels of its longest side are left.

    Raises:
        BadImage: the image cannot be used; see `imaging.decode.decode`.
    """

    def least(width: int, height: int) -> tuple[int, int]:
        longest = max(width, height)
        return max(width * (enough or 0) // longest, 1), max(height * (enough or 0) // longest, 1)

    try:
        return imaging.decode(data, least if enough else None, FORMATS)
    except imaging.BadImage as error:
        raise BadImage(str(error)) from error


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


def for_detector(data: bytes, upright: Upright) -> bytes:
    """The encoded image that goes to the detector: the file itself where that will do, or else a smaller JPEG."""
    if upright.format in PASSED_ON and len(data) <= PASSED_ON_BYTES:
        return data
    small = upright.pixels.copy()
    small.thumbnail((DETECTOR_MAX_SIDE, DETECTOR_MAX_SIDE), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=92)
    return encoded.getvalue()
