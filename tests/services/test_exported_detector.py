"""The tiny detector as ONNX agrees with the same detector in torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from samples.scenes import make_scene
from tests.conftest import ROOT

MODEL = ROOT / "samples" / "models" / "tiny-detector"

# Logits lie within -10..10 and boxes within 0..1, and both programs compute in float32: 2e-5 was the largest
# difference seen. A score moves by a quarter of its logit's change at most, a box of 640 pixels by 0.06.
TOLERANCE = 1e-4

RUN_TORCH = """\
import sys
import numpy, torch
from transformers import AutoModelForObjectDetection
model = AutoModelForObjectDetection.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    found = model(pixel_values=torch.from_numpy(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], logits=found.logits.numpy(), pred_boxes=found.pred_boxes.numpy())
"""


@pytest.mark.slow
def test_the_exported_detector_agrees_with_torch(torch_python: Path, tmp_path: Path) -> None:
    scenes = [make_scene(seed).image.resize((256, 192)) for seed in range(7_700, 7_708)]
    pixels = np.stack([np.asarray(scene, np.float32).transpose(2, 0, 1) / 255 for scene in scenes])
    np.save(tmp_path / "pixels.npy", pixels)
    command: list[str | Path] = [torch_python, "-c", RUN_TORCH, MODEL, tmp_path / "pixels.npy", tmp_path / "torch.npz"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    expected = np.load(tmp_path / "torch.npz")
    session = onnxruntime.InferenceSession(str(MODEL / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (slice(0, 8), slice(3, 4)):
        logits, boxes = session.run(["logits", "pred_boxes"], {"pixel_values": pixels[batch]})
        assert np.abs(logits - expected["logits"][batch]).max() < TOLERANCE
        assert np.abs(boxes - expected["pred_boxes"][batch]).max() < TOLERANCE
    assert np.abs(expected["logits"]).max() > 1  # it has something to say
