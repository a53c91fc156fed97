"""Encoded bytes to the pixels that a model takes: the CPU's share of a detection.

Images are scaled down here, in the decode worker, so that little data travels on: 147 kB instead of 6 MB for a 1080p
photograph and an input of 256 x 192.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from imaging import decode as imaging
from services.detector.checkpoint import InputSize

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that leaves at least twice the model's input; the rest is
# resampled properly. Pixels then change by less than 1 of 255 on average. Decoding and scaling to 256 x 192 takes 8 ms
# of CPU for 1080p, not 27, and 25 ms for 12 megapixels, not 118.
DRAFT_MARGIN = 2


def decode(data: bytes, target: InputSize) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Decode an image, upright and in RGB, and scale it down for the model.

    Returns:
        `(height, width, 3)` uint8 pixels at the size that `target` asks for, and the width and height in pixels of
        the upright image before scaling.

    Raises:
        BadImage: the image cannot be used; see `imaging.decode.decode`.
    """
    side = DRAFT_MARGIN * max(target.largest)
    upright = imaging.decode(data, lambda width, height: (side, side))
    size = target.of(upright.width, upright.height)
    pixels = upright.pixels
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling(target.resample))
    return np.asarray(pixels), upright.width, upright.height
