#!/usr/bin/env python3
"""Measure the detector's own code on this device, without its server; prints one line of JSON.

Runs in the detector's environment. Images a second of the large model for each batch; for the bundled model, how far
its boxes in half precision are from those in single precision.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.detector.backends import closed_set
from services.detector.images import decode
from services.detector.messages import Found, Frame
from services.detector.settings import Settings

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
TINY = str(SAMPLES / "models" / "tiny-detector")
# Boxes below this score are noise.
THRESHOLD = 0.45


def random_model(folder: Path) -> str:
    """D-FINE of transformers' default size with random weights and its input of 640 x 640, for speed alone."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.DFineForObjectDetection(transformers.DFineConfig()).save_pretrained(folder)
    size = {"height": 640, "width": 640}
    transformers.RTDetrImageProcessorPil(size=size, do_normalize=False).save_pretrained(folder)
    return str(folder)


class Measured:
    """A model on a device, and the bundled images as its decode workers hand them over."""

    def __init__(self, model: str, device: Any, dtype: str, batch: int) -> None:
        checkpoint = closed_set.read(model, None)
        settings = Settings(model=model, device=device, dtype=dtype, max_batch=batch)
        self.detector = closed_set.load(settings, checkpoint)
        self.frames = []
        for path in sorted((SAMPLES / "images").iterdir()):
            pixels, width, height = decode(path.read_bytes(), checkpoint.input_size)
            self.frames.append(Frame(pixels, width, height, None, THRESHOLD))

    def speed(self, batch: int, seconds: float) -> dict[str, float]:
        """Images a second in passes of `batch` images, with the detector's own pre- and post-processing."""
        frames = [self.frames[number % len(self.frames)] for number in range(batch)]
        self.detector.detect(frames)
        begin, passes = time.monotonic(), 0
        while passes < 2 or time.monotonic() - begin < seconds:
            self.detector.detect(frames)
            passes += 1
        return {"batch": batch, "images_per_s": batch * passes / (time.monotonic() - begin), "peak_mib": peak_mib()}

    def boxes(self) -> list[list[tuple[str, tuple[float, ...]]] | None]:
        """The boxes of each bundled image, with their labels; None where the model fails."""
        outcomes = [self.detector.detect([frame])[0] for frame in self.frames]
        return [
            sorted((box.label, tuple(box.box)) for box in each.detections) if isinstance(each, Found) else None
            for each in outcomes
        ]


def peak_mib() -> float:
    """The most memory of the GPU that torch has held, MiB; 0 on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def moved(single: Sequence[Any], half: Sequence[Any]) -> dict[str, float]:
    """How far boxes in half precision are from those in single precision, in pixels; boxes of one label in order."""
    both = [(one, other) for one, other in zip(single, half, strict=True) if one is not None and other is not None]
    same = [(one, other) for one, other in both if [label for label, _ in one] == [label for label, _ in other]]
    moves = [
        abs(a - b)
        for one, other in same
        for (_, before), (_, after) in zip(one, other, strict=True)
        for a, b in zip(before, after, strict=True)
    ]
    return {
        "images": len(single),
        "failed": len(single) - len(both),
        "other_boxes": len(both) - len(same),
        "mean_px": sum(moves) / max(len(moves), 1),
        "most_px": max(moves, default=0.0),
    }


def main() -> int:
    """Measure; the last line of the output is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of each measurement")
    parser.add_argument("--large", action="store_true", help="measure D-FINE too, not the bundled model alone")
    arguments = parser.parse_args()
    # On a CPU, torch 2.13 gives values that are not finite in 1 of 30 passes in half precision (deformable attention):
    # the rehearsal takes single precision for both.
    half = "float16" if arguments.device == "cuda" else "float32"
    single, other = (Measured(TINY, arguments.device, dtype, 1).boxes() for dtype in ("float32", half))
    dtypes = dict.fromkeys((half, "float32"))
    with tempfile.TemporaryDirectory() as folder:
        models = {"tiny-detector": TINY} | ({"D-FINE": random_model(Path(folder))} if arguments.large else {})
        rows = []
        for name, model in models.items():
            for dtype in dtypes:
                measured = Measured(model, arguments.device, dtype, max(arguments.batches))
                for batch in arguments.batches:
                    rows.append({"model": name, "dtype": dtype, **measured.speed(batch, arguments.seconds)})
                del measured
    print(json.dumps({"boxes": moved(single, other), "speed": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
