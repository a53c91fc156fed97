"""Does each family of detectors find in a batch of mixed pictures what it finds in each picture alone?

    .spotter/envs/<torch environment>/bin/python -m tests.services.family_batches FOLDER

writes the small checkpoints to FOLDER, and prints what it measures as JSON: for each family the backend that `auto`
takes, the counts, and the largest difference of a score, and of a box in pixels.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from services.detector.backends import BACKENDS, backend
from services.detector.checkpoint import Files
from services.detector.images import decode
from services.detector.messages import Detection, Failed, Found, Frame
from services.detector.settings import Settings

# Wide, high, square, narrow; two pairs of one size. One is smaller than the models' input.
SIZES = [(200, 100), (100, 200), (128, 128), (300, 90), (200, 100), (640, 480), (40, 30), (100, 200)]

# For the models of free text: a prompt of its own for each picture.
PROMPTS: list[dict[str, float]] = [
    {"Dog": 0.0, "hot dog": 0.0},
    {"cat": 0.0},
    {"hot-dog": 0.0, "dog": 0.0, "ball!": 0.0},
    {"dog": 0.0},
    {"St. Dog": 0.0},
    {chr(97 + one) + chr(97 + two): 0.0 for one in range(10) for two in range(10)},  # more than one pass reads
    {"red dog": 0.0, "dog": 0.0},
    {"small cat": 0.0, "cat": 0.0, "big cat": 0.0, "red cat": 0.0},
]


def picture(width: int, height: int, seed: int) -> bytes:
    """A PNG of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(target, "PNG")
    return target.getvalue()


def difference(some: Sequence[Detection], others: Sequence[Detection]) -> tuple[float, float]:
    """The largest difference of a score and of a box, between each detection and the one of its label most like it."""
    worst = (0.0, 0.0)
    for one in some:
        pairs = [
            (abs((one.score or 0.0) - (other.score or 0.0)), float(np.abs(np.subtract(one.box, other.box)).max()))
            for other in others
            if other.label == one.label
        ]
        nearest = min(pairs, key=max, default=(math.inf, math.inf))
        worst = (max(worst[0], nearest[0]), max(worst[1], nearest[1]))
    return worst


def measure(folder: Path) -> dict[str, Any]:
    """What one family finds in a batch, against each picture alone; nothing is suppressed."""
    settings = Settings(model=str(folder), nms_iou=1.0, device="cpu")
    chosen = backend(settings)
    checkpoint = chosen.read(str(folder), None)
    detector = chosen.load(settings, checkpoint)
    frames = []
    for seed, ((width, height), prompt) in enumerate(zip(SIZES, PROMPTS, strict=True)):
        pixels = decode(picture(width, height, seed), checkpoint.input_size)
        frames.append(Frame(*pixels, None if checkpoint.labels else prompt, 0.0))
    together = [found(outcome) for outcome in detector.detect(frames)]
    alone = [found(detector.detect([frame])[0]) for frame in frames]
    differences = [difference(*pair) for pair in zip(together, alone, strict=True)]
    differences += [difference(*pair) for pair in zip(alone, together, strict=True)]
    return {
        "backend": str(chosen.__name__).rsplit(".", 1)[-1],  # type: ignore[attr-defined]
        "claimed": [name for name, module in modules().items() if module.claims(Files(str(folder), None))],
        "counts": [len(each) for each in together],
        "labels": [sorted({detection.label for detection in each}) for each in together],
        "score": max(score for score, _ in differences),
        "box": max(box for _, box in differences),
        "spread": max(each.score or 0.0 for each in together[0]) - min(each.score or 0.0 for each in together[0]),
        "padded": padded_difference(detector, frames) if checkpoint.labels else None,
    }


def found(outcome: Any) -> tuple[Detection, ...]:
    """The detections of an outcome, which must be one."""
    assert isinstance(outcome, Found), outcome
    return outcome.detections


def padded_difference(detector: Any, frames: Sequence[Frame]) -> float:
    """How much a score moves where the processor pads all pictures to one size, as the service must not do."""
    network = detector._network
    images = [frame.pixels for frame in frames]
    padded = network.processor(images=images, return_tensors="pt", input_data_format="channels_last")
    logits, _ = network.run([dict(padded)])
    alone = [network.run([image])[0][0] for image in network.images(images)]
    return max(float((a.sigmoid() - b.sigmoid()).abs().max()) for a, b in zip(logits, alone, strict=True))


def modules() -> dict[str, Any]:
    """Each backend's name and module."""
    return {name: backend(Settings(backend=name)) for name in BACKENDS}


def damage(folder: Path) -> str:
    """What a model of free text answers once its weights give no finite scores."""
    settings = Settings(model=str(folder), device="cpu")
    chosen = backend(settings)
    checkpoint = chosen.read(str(folder), None)
    detector: Any = chosen.load(settings, checkpoint)
    for parameter in detector._network.model.parameters():
        parameter.data.fill_(float("nan"))
    outcome = detector.detect([Frame(*decode(picture(64, 48, 0), checkpoint.input_size), {"dog": 0.1}, 0.1)])[0]
    assert isinstance(outcome, Failed), outcome
    return outcome.reason


def main() -> None:
    """Measure all families."""
    from tests.services.small_checkpoints import FAMILIES, write  # wants torch, which the tests' environment lacks

    root = Path(sys.argv[1])
    for name in FAMILIES:
        write(name, root / name)
    measured = {name: measure(root / name) for name in FAMILIES}
    print(json.dumps({"families": measured, "damaged": damage(root / "mm_grounding_dino")}))


if __name__ == "__main__":
    main()
