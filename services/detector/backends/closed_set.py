"""Every transformers checkpoint of `AutoModelForObjectDetection` with a fixed set of labels.

RT-DETR v1 and v2, D-FINE, DETR and its relatives. Loading a model imports torch and transformers, this module does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from services.detector.backends import DetectorError, one_line
from services.detector.checkpoint import BILINEAR, LONGEST_SIDE, Checkpoint, CheckpointError, Files, InputSize
from services.detector.messages import Failed, Found, Frame, Outcome
from services.detector.selection import select
from services.detector.settings import Settings

# The model's first input is noise from this seed: a flat image leaves much of a network at zero and hides overflows.
WARM_UP_SEED = 0


def claims(files: Files) -> bool:
    """Whether the files are a checkpoint of transformers."""
    return files.path("config.json").is_file()


def read(model: str, revision: str | None) -> Checkpoint:
    """Read a checkpoint's labels and input size.

    Raises:
        CheckpointError: it cannot be read, or has no labels.
    """
    files = Files(model, revision)
    labels = _labels(files.json("config.json"), model)
    return Checkpoint(model, files.revision, labels, _input_size(files.json("preprocessor_config.json")))


class ClosedSetDetector:
    """A transformers object detection model with a fixed set of labels.

    The tiny model takes 17 ms of CPU for one image, 38 for four and 85 for eight; its process takes 410 MB, nearly all
    for torch and transformers.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        """Load the model and run it once at the largest batch, so that the first request finds everything allocated.

        Raises:
            DetectorError: no such device, a setting that does not apply to the device, weights that cannot be loaded,
                or a warm-up whose result is not finite.
        """
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModelForObjectDetection
            from transformers.utils import logging
        except ImportError as error:
            raise DetectorError(
                f"DETECTOR_MODEL={checkpoint.model} needs torch and transformers ({error}): take the environment "
                "detector-torch-cpu or detector-cuda, or an .onnx file"
            ) from error

        logging.disable_progress_bar()
        torch.set_num_threads(settings.threads)
        self._torch = torch
        self._max_iou = settings.nms_iou
        self._checkpoint = checkpoint
        self._device = self._choose_device(settings)
        self._dtype = self._choose_dtype(settings)
        source = {"revision": checkpoint.revision} if checkpoint.revision else {}
        try:
            # The same processor on every machine: without torchvision.
            self._processor = AutoImageProcessor.from_pretrained(checkpoint.model, backend="pil", **source)
            model = AutoModelForObjectDetection.from_pretrained(
                checkpoint.model, dtype=self._dtype, use_safetensors=True, **source
            )
            self._model = model.to(self._device).eval()
        except Exception as error:  # transformers, safetensors, torch and the hub share no base class
            raise DetectorError(f"cannot load the model {checkpoint.model}: {one_line(error)}") from error
        self._names: dict[int, str] = {int(index): str(name) for index, name in model.config.id2label.items()}
        self._warm_up(settings.max_batch)

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """See `Detector.detect`; one batch, in which each frame has the same result as alone."""
        logits, boxes = self._forward([frame.pixels for frame in frames])
        finite = (logits.isfinite().flatten(1).all(1) & boxes.isfinite().flatten(1).all(1)).tolist()
        found = self._processor.post_process_object_detection(
            SimpleNamespace(logits=logits, pred_boxes=boxes),
            threshold=min(frame.lowest for frame in frames),
            target_sizes=[(frame.height, frame.width) for frame in frames],
        )
        return [
            self._outcome(frame, each) if sound else Failed(f"the model's output is not finite in {self._dtype}")
            for frame, each, sound in zip(frames, found, finite, strict=True)
        ]

    def _choose_device(self, settings: Settings) -> str:
        cuda = self._torch.cuda
        device = settings.device if settings.device != "auto" else "cuda" if cuda.is_available() else "cpu"
        if device == "cuda" and not cuda.is_available():
            raise DetectorError(
                "DETECTOR_DEVICE=cuda, but torch finds no GPU: check the driver and the container's access to the "
                "GPU, or set DETECTOR_DEVICE=cpu"
            )
        if settings.memory_share is not None:
            if device == "cpu":
                raise DetectorError(
                    f"DETECTOR_MEMORY_SHARE={settings.memory_share} limits a GPU's memory, but the device is the "
                    "CPU: unset it"
                )
            cuda.set_per_process_memory_fraction(settings.memory_share)
        return device

    def _choose_dtype(self, settings: Settings) -> Any:
        if settings.dtype != "auto":
            return getattr(self._torch, settings.dtype)
        return self._torch.float16 if self._device == "cuda" else self._torch.float32

    def _forward(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Any, Any]:
        """Logits `(n, queries, labels)` and boxes `(n, queries, 4)` as float32 on the CPU."""
        inputs = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        tensors = {"pixel_values": inputs["pixel_values"].to(self._device, self._dtype)}
        if "pixel_mask" in inputs:
            tensors["pixel_mask"] = inputs["pixel_mask"].to(self._device)
        with self._torch.inference_mode():
            output = self._model(**tensors)
        # float32 before any arithmetic: half precision would round scores and boxes again.
        return output.logits.float().cpu(), output.pred_boxes.float().cpu()

    def _outcome(self, frame: Frame, found: dict[str, Any]) -> Found:
        labels = [self._names[index] for index in found["labels"].tolist()]
        return select(frame, found["boxes"].numpy(), found["scores"].numpy(), labels, self._max_iou)

    def _warm_up(self, batch: int) -> None:
        width, height = self._checkpoint.input_size.largest
        noise = np.random.default_rng(WARM_UP_SEED).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        try:
            logits, boxes = self._forward(list(noise))
        except Exception as error:  # torch's out-of-memory errors among them
            raise DetectorError(
                f"the model {self._checkpoint.model} fails at DETECTOR_MAX_BATCH={batch} on {self._device}: "
                f"{one_line(error)}"
            ) from error
        if not (logits.isfinite().all() and boxes.isfinite().all()):
            raise DetectorError(
                f"the model {self._checkpoint.model} gives values that are not finite in {self._dtype} on "
                f"{self._device}: set DETECTOR_DTYPE=float32; with float32, the weights are damaged"
            )


def _labels(config: dict[str, Any], model: str) -> frozenset[str]:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"config.json of {model} has no labels (id2label): it is not an object detector")
    return frozenset(str(name) for name in names.values())


def _input_size(processor: dict[str, Any]) -> InputSize:
    size = processor.get("size")
    if not processor.get("do_resize", True) or not isinstance(size, dict):
        return InputSize()
    resample = int(processor.get("resample") or BILINEAR)
    if "height" in size and "width" in size:
        return InputSize(exact=(int(size["width"]), int(size["height"])), resample=resample)
    return InputSize(longest=int(size.get("longest_edge") or LONGEST_SIDE), resample=resample)


load = ClosedSetDetector
