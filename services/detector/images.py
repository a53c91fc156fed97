"""Encoded bytes to the pixels that a model takes: the CPU's share of a detection.

Images are scaled down here, in the decode worker, so that little travels on: 147 kB instead of 6 MB for a 1080p
photograph and an input of 256 x 192.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from services.detector.checkpoint import InputSize

# What a client may send. Pillow knows many more formats; some run an external program (EPS) or are no photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

# Above this many pixels an image is refused before it is decoded. It is Pillow's own limit, 256 MiB of RGB, where
# Pillow itself only warns up to twice as many.
MAX_PIXELS = 89_478_485

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that leaves at least twice the size that is needed; the rest
# is resampled properly. Decoding and scaling to 256 x 192 takes 27 -> 8 ms of CPU for 1080p and 118 -> 25 ms for 12
# megapixels; pixels change by less than 1 of 255 on average, and images under four times the input not at all.
DRAFT_MARGIN = 2

ORIENTATION = 0x0112  # EXIF tag

# What its values ask for; 1, or none, is upright already.
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})  # those that swap width and height


class BadImage(Exception):
    """The bytes are not an image that can be used; the message says why, in one line."""


def decode(data: bytes, target: InputSize) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Decode an image, upright and in RGB, and scale it down for the model.

    EXIF orientation is applied; of an animation the first frame counts; transparency lies on white; 16-bit grey is
    scaled to 8 bits.

    Returns:
        `(height, width, 3)` uint8 pixels at the size that `target` asks for, and the width and height in pixels of
        the upright image before scaling.

    Raises:
        BadImage: not an image of `FORMATS`, truncated, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd metadata of an image that decodes all the same
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _scaled(image, target)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"more than {MAX_PIXELS / 1e6:.0f} megapixels: send it scaled down") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image: expected the bytes of one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files (struct.error, TypeError ...)
        raise BadImage(f"damaged or truncated: {str(error) or type(error).__name__}") from error


def _scaled(image: Image.Image, target: InputSize) -> tuple[npt.NDArray[np.uint8], int, int]:
    width, height = image.size
    draft = DRAFT_MARGIN * max(target.of(width, height))
    image.draft("RGB", (draft, draft))  # a square: which side is up is known for sure only after `load`
    image.load()
    orientation = image.getexif().get(ORIENTATION)  # after `load`: Pillow's TIFF reader has then applied its own
    if orientation in SIDEWAYS:
        width, height = height, width
    size = target.of(width, height)
    pixels = _rgb(image)
    stored_size = size[::-1] if orientation in SIDEWAYS else size
    if pixels.size != stored_size:
        pixels = pixels.resize(stored_size, Image.Resampling(target.resample))
    if orientation in TRANSPOSE:
        pixels = pixels.transpose(TRANSPOSE[orientation])
    return np.asarray(pixels), width, height


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; Pillow's own conversion would clip 16-bit grey and show what transparency hides."""
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey.clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating point pixels have no agreed range: send 8 or 16 bits a channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return image.convert("RGB")
