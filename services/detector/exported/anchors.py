"""The anchors of an SSD, to which its raw box outputs are relative.

One grid for each feature map, as in TensorFlow's object detection API and in MediaPipe. Check: an input of 300 with six
maps has 19 * 19 * 3 + (10 * 10 + 5 * 5 + 3 * 3 + 2 * 2 + 1) * 6 = 1917 anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DEFAULTS: Mapping[str, float] = {"layers": 6, "stride": 16, "min_scale": 0.2, "max_scale": 0.95}
"""Of MobileNet SSDs: the number of maps, the first map's stride, the side of the smallest and largest anchors in parts
of the input. Each further map has twice the stride of the one before."""

RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
"""Width to height."""

# The first map's three anchors: its square one has this side.
FIRST_SIDE = 0.1

# Box outputs are multiples of these parts of an anchor: of its sides for the centre, in logarithms for the sides.
CENTRE_SCALE, SIDE_SCALE = 10.0, 5.0


def anchors(size: tuple[int, int], options: Mapping[str, float]) -> Floats:
    """`(n, 4)`: centre y, centre x, height, width in parts of an input of `size` (width, height) pixels."""
    chosen = {**DEFAULTS, **options}
    layers = int(chosen["layers"])
    step = (chosen["max_scale"] - chosen["min_scale"]) / max(1, layers - 1)
    scales = [chosen["min_scale"] + step * layer for layer in range(layers)] + [1.0]
    parts = []
    for layer, (scale, next_scale) in enumerate(pairwise(scales)):
        stride = int(chosen["stride"]) * 2**layer
        across, down = ceil(size[0] / stride), ceil(size[1] / stride)
        shapes = [(scale, ratio) for ratio in RATIOS] + [(sqrt(scale * next_scale), 1.0)]
        if layer == 0:
            shapes = [(FIRST_SIDE, 1.0), (scale, 2.0), (scale, 0.5)]
        sides = np.array([(side / sqrt(ratio), side * sqrt(ratio)) for side, ratio in shapes])
        y, x = np.divmod(np.arange(across * down), across)
        centres = np.stack([(y + 0.5) / down, (x + 0.5) / across], axis=1)
        parts.append(np.concatenate([np.repeat(centres, len(sides), 0), np.tile(sides, (len(centres), 1))], axis=1))
    return np.concatenate(parts).astype(np.float32)


def decode_anchors(boxes: Floats, size: tuple[int, int], options: Mapping[str, float]) -> Floats:
    """Raw outputs `(n, 4)` to `y1x1y2x2` in parts of the input.

    Raises:
        ValueError: there is not one output for each anchor.
    """
    base = anchors(size, options)
    if len(base) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, but {len(base)} anchors: set `anchors` as in the model's training")
    centres = boxes[:, :2] / CENTRE_SCALE * base[:, 2:] + base[:, :2]
    sides = np.exp(boxes[:, 2:] / SIDE_SCALE) * base[:, 2:]
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
