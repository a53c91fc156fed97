"""Export the tiny detector as an ONNX graph, which the detector service runs without torch.

The graph takes `pixel_values`, batch x 3 x 192 x 256 float32 in 0..1, and gives `logits` (batch x 30 x 3) and
`pred_boxes` (batch x 30 x 4: centre x, centre y, width, height in parts of the picture). Labels and preprocessing stay
in config.json and preprocessor_config.json beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

MODEL = Path(__file__).parent / "models" / "tiny-detector"

OPSET = 17


class Outputs(torch.nn.Module):  # type: ignore[misc]  # no torch where types are checked
    """A detection model reduced to what detection needs: logits and boxes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[Any, Any]:
        """Logits and boxes of a batch."""
        found = self.model(pixel_values=pixel_values)
        return found.logits, found.pred_boxes


def export(folder: Path) -> Path:
    """Write `model.onnx` from the weights of a checkpoint's folder, beside them."""
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    size = AutoImageProcessor.from_pretrained(folder, backend="pil").size
    # A batch of two: what is traced with one image may hold for one only.
    example = torch.rand(2, 3, size["height"], size["width"], generator=torch.Generator().manual_seed(0))
    target = folder / "model.onnx"
    torch.onnx.export(
        Outputs(model),
        (example,),
        target,
        dynamo=False,  # the newer exporter needs onnxscript
        opset_version=OPSET,
        input_names=["pixel_values"],
        output_names=["logits", "pred_boxes"],
        dynamic_axes={name: {0: "batch"} for name in ("pixel_values", "logits", "pred_boxes")},
    )
    return target


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the checkpoint (default: the bundled one)")
    print(export(parser.parse_args().model))


if __name__ == "__main__":
    main()
