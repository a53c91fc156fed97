"""ONNX Runtime on a CPU: detectors that other programs exported, from one file and without torch.

The families are those of `services.detector.exported.families`. Loading a model imports onnxruntime, this module does
not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.detector.backends import DetectorError, one_line
from services.detector.checkpoint import Checkpoint, CheckpointError, Files, InputSize
from services.detector.exported.description import MASK_INPUT, SIZES_INPUT, Exported, read_exported
from services.detector.exported.families import Candidates, Meaning, Misfit
from services.detector.exported.graph import array_type
from services.detector.messages import Failed, Frame, Outcome
from services.detector.selection import select
from services.detector.settings import Settings

WARM_UP_SEED = 0

# The grey beside a letterboxed image: that of Ultralytics' and YOLOX's training.
PADDING = 114


def find(files: Files) -> Path | None:
    """The .onnx file that DETECTOR_MODEL names: itself, or the only one of its folder; None: it has none.

    Raises:
        CheckpointError: there are several.
    """
    found = files.names("*.onnx") or files.names("onnx/model.onnx")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"DETECTOR_MODEL={files.model} holds several .onnx files: name one of them: {names}")
    return found[0] if found else None


def claims(files: Files) -> bool:
    """Whether the model is an .onnx file, or a folder with one and without weights for transformers."""
    return bool(files.names("*.onnx") or files.names("onnx/*.onnx")) and not files.names("*.safetensors")


def _exported(files: Files) -> Exported:
    path = find(files)
    if path is None:
        raise CheckpointError(f"DETECTOR_MODEL={files.model} is no .onnx file and no folder with one: name the file")
    return read_exported(path)


def read(model: str, revision: str | None) -> Checkpoint:
    """Read an exported model's labels and input size.

    Raises:
        CheckpointError: it cannot be read, or does not say what its use needs.
    """
    exported = _exported(Files(model, revision))
    size, resample = exported.size, exported.resample
    stretched, padded = InputSize(exact=size, resample=resample), InputSize(within=size, resample=resample)
    labels = frozenset(exported.labels.values())
    return Checkpoint(model, None, labels, stretched if exported.resize == "stretch" else padded)


class OnnxDetector:
    """An exported object detection model.

    The tiny model takes 7 ms of CPU for one image and 42 for eight.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        """Load the model and run it once at the largest batch, so that the first request finds everything allocated.

        Raises:
            DetectorError: a setting that does not apply, a graph that cannot be loaded or run, outputs that are not the
                family's or not finite.
        """
        self._model = _exported(Files(checkpoint.model, checkpoint.revision))
        self._path = self._model.graph.path
        _refuse_foreign_settings(settings)
        # Read at the import: without it ONNX Runtime sends its use to its makers, also under OFFLINE=1.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime
        except ImportError as error:
            raise DetectorError(
                f"the model {self._path} needs ONNX Runtime ({error}): take the environment detector-cpu"
            ) from error

        self._max_iou = settings.nms_iou
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads sleep: the machine's cores serve vLLM and the decoders too.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise DetectorError(f"cannot load the model {self._path}: {one_line(error)}") from error
        size = self._model.size
        self._meaning = Meaning(
            *size, self._model.boxes, self._model.scores, len(self._model.labels), self._model.anchors
        )
        # For each class of the model its label, or -1.
        self._names = sorted(set(self._model.labels.values()))
        self._label_of = np.full(max(self._model.labels) + 1, -1)
        for number, name in self._model.labels.items():
            self._label_of[number] = self._names.index(name)
        self._warm_up(settings.max_batch)

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """See `Detector.detect`; a graph with a fixed batch gets the frames in batches of that size."""
        step = self._model.batch or len(frames)
        outcomes: list[Outcome] = []
        for start in range(0, len(frames), step):
            part = frames[start : start + step]
            found = self._run([frame.pixels for frame in part])
            outcomes += [self._outcome(frame, each) for frame, each in zip(part, found, strict=True)]
        return outcomes

    def _run(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Candidates]:
        """What the model finds in images of the input's size, or that fit within it."""
        feed = self._inputs(images)
        roles = self._model.outputs
        values = dict(zip(roles, self._session.run(list(roles.values()), feed), strict=True))
        count = len(feed[self._model.image.name])
        each = [
            {role: _of_image(value, index, count) for role, value in values.items()} for index in range(len(images))
        ]
        with np.errstate(all="ignore"):  # what is not finite is found afterwards
            return [self._model.family.read(outputs, self._meaning) for outputs in each]

    def _inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> dict[str, Any]:
        model, (width, height) = self._model, self._model.size
        count = model.batch or len(images)  # what lacks to a fixed batch stays empty
        axes = (height, width, 3) if model.channels_last else (3, height, width)
        batch = np.zeros((count, *axes), dtype=array_type(model.image))
        scale = np.float32(model.scale) / np.array(model.std, dtype=np.float32)
        shift = np.array(model.mean, dtype=np.float32) / np.array(model.std, dtype=np.float32)
        for target, image in zip(batch, images, strict=False):
            left, top = self._offset(image.shape[1], image.shape[0])
            canvas = np.full((height, width, 3), PADDING, dtype=np.uint8)
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
            canvas = canvas[..., ::-1] if model.channels == "bgr" else canvas
            pixels = target if model.channels_last else target.transpose(1, 2, 0)
            if batch.dtype.kind != "f":
                pixels[:] = canvas
                continue
            np.multiply(canvas, scale, out=pixels, casting="unsafe")
            if shift.any():
                pixels -= shift.astype(pixels.dtype)
        feed = {model.image.name: batch}
        for value in model.graph.inputs:
            if value.name == SIZES_INPUT:
                feed[SIZES_INPUT] = np.array([[width, height]] * count, dtype=array_type(value))
            elif value.name == MASK_INPUT:
                rows, columns = (value.shape or ())[1:] or (None, None)
                feed[MASK_INPUT] = np.ones((count, rows or height, columns or width), dtype=array_type(value))
        return feed

    def _offset(self, width: int, height: int) -> tuple[int, int]:
        """Where an image's left upper corner lies in the input."""
        if self._model.resize != "letterbox":
            return 0, 0
        # Ultralytics' rounding: of an odd rest, the smaller part comes first.
        return (self._model.size[0] - width) // 2, (self._model.size[1] - height) // 2

    def _outcome(self, frame: Frame, found: Candidates) -> Outcome:
        """Keep the boxes of the frame's labels, in the image's own pixels."""
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            return Failed("the model's output is not finite")
        least = map(frame.least, self._names)
        lowest = np.array([np.inf if score is None else score for score in least])
        if found.classes is None:
            places, classes = np.nonzero(found.scores > lowest.min())
            scores = found.scores[places, classes]
        else:
            places = np.nonzero(found.scores > lowest.min())[0]
            classes, scores = found.classes[places], found.scores[places]
        known = (classes >= 0) & (classes < len(self._label_of))
        if self._model.complete and not known.all():
            return Failed(f"the model found class {classes[~known][0]}, but it has {len(self._label_of)} labels")
        labels = np.where(known, self._label_of[np.where(known, classes, 0)], -1)
        kept = (labels >= 0) & (scores > lowest[labels])
        names = [self._names[label] for label in labels[kept]]
        return select(frame, self._in_image(frame, found.boxes[places[kept]]), scores[kept], names, self._max_iou)

    def _in_image(self, frame: Frame, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Boxes in pixels of the input to pixels of the upright image."""
        height, width = frame.pixels.shape[:2]
        left, top = self._offset(width, height)
        whole = np.array([frame.width, frame.height] * 2, dtype=np.float32)
        moved = (boxes - np.array([left, top] * 2, dtype=np.float32)) / np.array([width, height] * 2, dtype=np.float32)
        return np.multiply(moved, whole, dtype=np.float32)

    def _warm_up(self, batch: int) -> None:
        width, height = self._model.size
        noise = np.random.default_rng(WARM_UP_SEED).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        step = self._model.batch or batch
        try:
            found = self._run(list(noise[:step]))
        except Misfit as error:
            raise DetectorError(f"{self._path} is not of the family {self._model.family.name}: {error}") from error
        except Exception as error:  # a graph may fail in any way
            raise DetectorError(
                f"the model {self._path} fails at a batch of {min(step, batch)}, DETECTOR_MAX_BATCH={batch}: "
                f"{one_line(error)}"
            ) from error
        if not all(np.isfinite(each.boxes).all() and np.isfinite(each.scores).all() for each in found):
            raise DetectorError(f"the model {self._path} gives values that are not finite: its weights are damaged")
        self._check_labels(found[0])

    def _check_labels(self, found: Candidates) -> None:
        """See that the labels are as many as the model's classes."""
        if found.classes is not None:
            return
        columns, count = found.scores.shape[1], len(self._label_of)
        if columns < count or (self._model.complete and columns != count):
            raise DetectorError(f"the model {self._path} has {columns} classes, but {count} labels: correct the labels")


def _of_image(value: Any, index: int, count: int) -> Any:
    """One image's part of an output; a graph for one image may leave out the axis of the batch."""
    if value.shape[:1] == (count,):
        return value[index]
    if count == 1:
        return value
    raise Misfit(f"an output of the shape {value.shape} for {count} images: set `batch: 1` if the graph takes one")


def _refuse_foreign_settings(settings: Settings) -> None:
    if settings.device == "cuda":
        raise DetectorError("DETECTOR_DEVICE=cuda: ONNX models run on the CPU here: set DETECTOR_DEVICE=cpu")
    if settings.memory_share is not None:
        raise DetectorError(
            f"DETECTOR_MEMORY_SHARE={settings.memory_share} limits a GPU's memory; ONNX models run on the CPU: unset it"
        )
    if settings.dtype != "auto":
        raise DetectorError(
            f"DETECTOR_DTYPE={settings.dtype} has no meaning for an ONNX model, whose file fixes it: unset it"
        )


load = OnnxDetector
