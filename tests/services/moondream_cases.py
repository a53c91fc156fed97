"""The moondream2 backend with small stand-ins of its checkpoints, one after the other; prints facts as JSON.

    .spotter/envs/<torch environment>/bin/python -m tests.services.moondream_cases FOLDER

It runs in the detector's environment with torch: the one of the tests has no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from services.detector.backends import DetectorError, backend
from services.detector.backends import moondream2 as moondream
from services.detector.messages import Frame
from services.detector.settings import Settings
from tests.services.moondream_standin import write

WEIGHTS = {"vision.shift": torch.tensor([0.5, 0.25]), "text.scale": torch.tensor([1.0])}

Weights = dict[str, torch.Tensor]


def frame(*labels: str, width: int = 200, height: int = 100, shade: int = 0) -> Frame:
    pixels = np.full((height // 2, width // 2, 3), shade, dtype=np.uint8)
    return Frame(pixels, width, height, dict.fromkeys(labels, 1.0), 1.0)


def told(outcome: Any) -> Any:
    boxes = getattr(outcome, "detections", None)
    if boxes is None:
        return [type(outcome).__name__, outcome.reason]
    return [[each.label, [round(value, 3) for value in each.box], each.score] for each in boxes]


def load(folder: Path, **settings: Any) -> Any:
    for name in [name for name in sys.modules if name.partition(".")[0] == moondream.PACKAGE]:
        del sys.modules[name]  # a service loads one model, this program several
    chosen = Settings(model=str(folder), device="cpu", **settings)
    module = backend(chosen)
    return module.load(chosen, module.read(chosen.model, chosen.revision))


def ended(folder: Path, **settings: Any) -> str:
    try:
        load(folder, **settings)
    except DetectorError as error:
        return str(error)
    return "loaded"


def main(home: Path) -> dict[str, Any]:
    """Load and ask each stand-in."""

    def checkpoint(name: str, weights: Weights, **change: Callable[[str], str]) -> Path:
        folder = home / name
        write(folder, **change)
        if weights:
            save_file({f"model.{key}": tensor for key, tensor in weights.items()}, folder / "model.safetensors")
        return folder

    facts: dict[str, Any] = {}
    detector = load(checkpoint("whole", WEIGHTS))
    outcomes = detector.detect([frame("dog", "red ball"), frame(" "), frame("dog", width=100, shade=255)])
    facts["outcomes"] = [told(outcome) for outcome in outcomes]
    facts["encoded"] = detector._model.encoded
    facts["path"] = [entry for entry in sys.path if entry.startswith(str(home))]
    facts["modules"] = sorted(name for name in sys.modules if name in ("config", "moondream", "text"))

    split = checkpoint("split", {"vision.shift": WEIGHTS["vision.shift"]})
    save_file({"text.scale": WEIGHTS["text.scale"]}, split / "more.safetensors")
    facts["split"] = told(load(split).detect([frame("dog")])[0])

    said = io.StringIO()
    kept = {"text.blocks.0.kv_cache.k_cache": torch.zeros(1, 2)}
    with contextlib.redirect_stderr(said):
        load(checkpoint("more", WEIGHTS | {"text.bias": torch.zeros(1)} | kept))
    facts["note"] = said.getvalue()

    nan = torch.tensor([float("nan")])
    facts["ended"] = {
        "missing": ended(checkpoint("missing", {"vision.shift": WEIGHTS["vision.shift"]})),
        "none": ended(checkpoint("none", {})),
        "shape": ended(checkpoint("shape", WEIGHTS | {"text.scale": torch.ones(3)})),
        "not finite": ended(checkpoint("nan", WEIGHTS | {"text.scale": nan})),
        "dtype": ended(home / "whole", dtype="float32"),
        "tokenizer": ended(checkpoint("token", WEIGHTS, moondream=lambda code: code.replace("starmie-v1", "other"))),
        "module": ended(checkpoint("module", WEIGHTS, moondream=lambda code: "from .vision import x\n" + code)),
        "code": ended(checkpoint("code", WEIGHTS, config=lambda code: code.replace("from_dict", "of"))),
    }
    detector._model.text["scale"].data.copy_(nan)
    facts["late"] = told(detector.detect([frame("dog")])[0])
    return facts


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
