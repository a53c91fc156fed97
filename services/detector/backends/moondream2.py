"""moondream2: a vision-language model that finds what free text names, by code that its checkpoint brings.

That code runs here without its wrapper for transformers, which gives wrong numbers in silence under transformers 5. It
takes one image and one label at a time, and gives no scores. Its real weights were never loaded here: a small random
model was, made by scripts/bench/moondream.py. Loading imports torch, this module does not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from services.detector.backends import DetectorError, one_line
from services.detector.checkpoint import Checkpoint, CheckpointError, Files, InputSize
from services.detector.messages import Failed, Found, Frame, Outcome, Refused
from services.detector.pretrained.files import MOONDREAM, model_type
from services.detector.pretrained.network import Pixels, choose_device, first_pass, import_torch, noise
from services.detector.selection import select
from services.detector.settings import AUTO, Settings

CODE = "moondream.py"
"""The module of the checkpoint with its class MoondreamModel; it imports others beside it."""

PACKAGE = "moondream2_checkpoint_code"
"""The name under which the checkpoint's modules are imported: none of theirs is visible to other imports."""

# Tensors that are what the model remembers of an image, and no weights.
KEPT = ".kv_cache."

COMMIT = re.compile(r"[0-9a-f]{40}")

# The model cuts an image into at most 12 tiles of 266 pixels, with a margin of 56 around them all: no picture has more
# pixels in one direction than 12 tiles in a row.
LONGEST = 12 * 266 + 2 * 56
# Height and width of 3 rows of 4 tiles: the most work that an image makes.
LARGEST = (3 * 266 + 2 * 56, 4 * 266 + 2 * 56)


def claims(files: Files) -> bool:
    """Whether config.json names moondream2."""
    return model_type(files) == MOONDREAM


def read(model: str, revision: str | None) -> Checkpoint:
    """See that a checkpoint is moondream2 and brings its code; it has no list of labels.

    Raises:
        CheckpointError: it is another model, lacks its code, or comes from the hub without a commit.
    """
    files = Files(model, revision)
    if not files.folder and not COMMIT.fullmatch(revision or ""):
        raise CheckpointError(
            f"DETECTOR_MODEL={model} runs code from the hub: set DETECTOR_REVISION to the commit that you have read, "
            "by its 40 digits"
        )
    kind = files.json("config.json").get("model_type")
    if kind != MOONDREAM:
        raise CheckpointError(
            f"DETECTOR_MODEL={model} has model_type {kind!r}: DETECTOR_BACKEND=moondream2 takes {MOONDREAM} only"
        )
    if not files.path(CODE).is_file():
        raise CheckpointError(
            f"DETECTOR_MODEL={model} has no {CODE}: a folder of moondream2 holds its code beside config.json, as the "
            "hub's repository does"
        )
    return Checkpoint(model, files.revision, None, InputSize(longest=LONGEST))


class Moondream2:
    """The model of a checkpoint's own code.

    A frame's lowest scores have no meaning. A box that overlaps an earlier one of its label is dropped.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        """Load the model, and look for a dog in the largest picture.

        Raises:
            DetectorError: no such device, a setting that does not apply, code or weights that are missing or do not fit
                each other, no tokenizer, or a warm-up whose result is not finite.
        """
        self._torch = import_torch(checkpoint.model)
        device = choose_device(settings)
        if settings.dtype != AUTO:
            raise DetectorError(
                f"DETECTOR_DTYPE={settings.dtype} has no effect on moondream2, whose code chooses bfloat16: unset it"
            )
        try:
            files = Files(checkpoint.model, checkpoint.revision)
            folder = files.all("*.py", "*.json", "*.safetensors")
            self._model = self._build(folder, files.json("config.json").get("config") or {}, device)
        except CheckpointError as error:
            raise DetectorError(str(error)) from error
        load_weights(self._model, folder)
        self._max_iou = settings.nms_iou
        if not first_pass(checkpoint.model, 1, device, self._warm_up):
            raise DetectorError(
                f"the model {checkpoint.model} gives values that are not finite on {device}: its weights are damaged"
            )

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """See `Detector.detect`; one image after the other."""
        return [self._outcome(frame) for frame in frames]

    def _build(self, folder: Path, config: dict[str, Any], device: str) -> Any:
        try:
            code = import_code(folder)
            with self._torch.device(device):  # its buffers are computed, not loaded: no weights on `meta`
                return code.MoondreamModel(code.MoondreamConfig.from_dict(config)).eval()
        except OSError as error:  # the hub client's error for a file that it does not get is one
            raise DetectorError(
                f"the code in {folder} cannot load its tokenizer: {one_line(error)} - offline, the hub's cache must "
                "hold it: `hf download moondream/starmie-v1 tokenizer.json`"
            ) from error
        except Exception as error:  # code of others may raise anything
            raise DetectorError(f"the code in {folder} makes no model: {one_line(error)}") from error

    def _warm_up(self) -> Iterable[Any]:
        encoded, _ = self._look(noise(1, *LARGEST)[0], ["dog"])
        return tensors(encoded)

    def _look(self, pixels: Pixels, labels: Iterable[str]) -> tuple[Any, list[tuple[str, dict[str, float]]]]:
        """The encoded image, and each object with its label; an object has shares of width and height."""
        with self._torch.inference_mode():
            encoded = self._model.encode_image(Image.fromarray(pixels))
            found = [(label, each) for label in labels for each in self._model.detect(encoded, label)["objects"]]
        return encoded, found

    def _outcome(self, frame: Frame) -> Outcome:
        labels = list(frame.labels or ())
        for label in labels:
            if not label.strip():
                return Refused(f"{label!r} has no words: expected what the model is to find")
        encoded, objects = self._look(frame.pixels, labels)
        # The boxes are places of greatest values, which are finite whatever these are.
        if not all(tensor.isfinite().all() for tensor in tensors(encoded)):
            return Failed("the model's output is not finite")
        return found(frame, objects, self._max_iou)


def import_code(folder: Path) -> ModuleType:
    """A checkpoint's module `CODE`, imported with those beside it as a package of its own.

    Raises:
        Exception: whatever the code raises.
    """
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    return import_module(f"{PACKAGE}.{Path(CODE).stem}")


def load_weights(model: Any, folder: Path) -> None:
    """Give the model the tensors of the folder's .safetensors files; says on stderr which it has no use for.

    Raises:
        DetectorError: they cannot be read, lack a tensor, or one has another shape.
    """
    from safetensors.torch import load_file

    expected = {name for name in model.state_dict() if KEPT not in name}
    try:
        # The hub's files have the names of the wrapper, whose only part is `model`.
        files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        given = {name.removeprefix("model."): tensor for each in files for name, tensor in each.items()}
        # Names are compared here: the code's own loader takes what is there, and leaves the rest as it is in memory.
        missing = sorted(expected - given.keys())
        if not missing:
            model.load_state_dict({name: given[name] for name in expected}, strict=False)
    except Exception as error:  # safetensors and torch share no base class
        raise DetectorError(f"cannot load the weights in {folder}: {one_line(error)}") from error
    if missing:
        raise DetectorError(
            f"the .safetensors files in {folder} lack {len(missing)} of {len(expected)} tensors that its code takes, "
            f"{missing[0]} first: fetch all files of one commit"
        )
    if unused := sorted(name for name in given.keys() - expected if KEPT not in name):
        print(f"note: moondream2 has no use for {len(unused)} tensors, {unused[0]} first", file=sys.stderr, flush=True)


def tensors(encoded: Any) -> list[Any]:
    """The keys and values of an encoded image, of every layer."""
    return [tensor for pair in encoded.caches for tensor in pair]


def found(frame: Frame, objects: Sequence[tuple[str, dict[str, float]]], max_iou: float) -> Found:
    """Objects as an answer, in the model's order: boxes in pixels, clipped to the image, and no scores."""
    shares = [[each[name] for name in ("x_min", "y_min", "x_max", "y_max")] for _, each in objects]
    boxes = np.array(shares, dtype=np.float32).reshape(-1, 4) * ([frame.width, frame.height] * 2)
    # All equally good, and better than any lowest score.
    scores = np.full(len(boxes), np.inf, dtype=np.float32)
    kept = select(frame, boxes.astype(np.float32), scores, [label for label, _ in objects], max_iou)
    return replace(kept, detections=tuple(replace(each, score=None) for each in kept.detections))


load = Moondream2
