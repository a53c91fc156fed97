"""Transformers models that take free text for labels: Grounding DINO, MM-Grounding-DINO (LLMDet among them), OWLv2.

The labels of a request are the model's prompt. Images with different prompts share a pass. Loading a model imports
torch and transformers, this module does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.detector.backends import DetectorError
from services.detector.checkpoint import Checkpoint, CheckpointError, Files, InputSize
from services.detector.messages import Failed, Frame, Outcome, Refused
from services.detector.pretrained.files import (
    OPEN_VOCABULARY,
    image_processor,
    input_size,
    model_type,
    refuse_missing_packages,
)
from services.detector.pretrained.network import Network, Pixels, alike
from services.detector.pretrained.prompts import PROMPTS, BadLabel, Prompt, Prompts
from services.detector.selection import select
from services.detector.settings import Settings

UNSERVED = {
    "omdet-turbo": "its processor needs torchvision and its backbone timm, which the detector's environment lacks",
    "owlvit": "it is the predecessor of OWLv2",
}
"""Models of this kind that are refused, with the reason."""


def claims(files: Files) -> bool:
    """Whether config.json names a model that takes free text, also one that is refused."""
    return model_type(files) in OPEN_VOCABULARY


def read(model: str, revision: str | None) -> Checkpoint:
    """Read a checkpoint's input size; it has no list of labels.

    Raises:
        CheckpointError: it cannot be read, is of another kind, or needs packages that are missing here.
    """
    files = Files(model, revision)
    config = files.json("config.json")
    kind = str(config.get("model_type"))
    if kind not in PROMPTS:
        known = ", ".join(PROMPTS)
        reason = UNSERVED.get(kind, "this backend takes models of free text only")
        raise CheckpointError(f"DETECTOR_MODEL={model} has model_type {kind!r}: {reason}; known are {known}")
    processor = image_processor(files)
    refuse_missing_packages(model, config, processor)
    size = input_size(processor)
    if kind == "owlv2" and size.exact:
        # It pads to a square before it scales: keep the proportions.
        size = InputSize(longest=max(size.exact), resample=size.resample)
    return Checkpoint(model, files.revision, None, size)


class Pass(NamedTuple):
    """One image of a batch with one portion of its labels."""

    frame: int
    prompt: Prompt


class Part(NamedTuple):
    """What one pass found: boxes `(n, 4)` in pixels of the upright image, scores `(n,)`, and a label for each."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: list[str]


class OpenVocabularyDetector:
    """A transformers model for zero-shot object detection.

    A box counts for each label whose lowest score it exceeds, so that one object may carry two labels.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        """Load the model and run it once at the largest batch with the longest prompt.

        Raises:
            DetectorError: no such device, a setting that does not apply to the device, weights that cannot be loaded,
                a tokenizer that reads no English, or a warm-up whose result is not finite.
        """
        self._network = Network(settings, checkpoint, "AutoModelForZeroShotObjectDetection", takes_text=True)
        self._prompts: Prompts = PROMPTS[self._network.model.config.model_type](self._network)
        try:
            self._prompts.tokens("dog")
        except BadLabel as error:  # transformers makes an empty tokenizer where the files are missing
            raise DetectorError(
                f"the tokenizer of {checkpoint.model} cannot read 'dog': its files are missing or damaged ({error})"
            ) from error
        self._max_batch = settings.max_batch
        self._max_iou = settings.nms_iou
        self._network.warm_up(settings.max_batch, self._largest)

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """See `Detector.detect`; more labels than the model reads at once take several passes."""
        images = self._network.images(frame.pixels for frame in frames)
        refused: dict[int, Outcome] = {}
        passes: list[Pass] = []
        for index, frame in enumerate(frames):
            try:
                labels = {label: self._prompts.tokens(label) for label in frame.labels or ()}
            except BadLabel as error:
                refused[index] = Refused(str(error))
            else:
                passes += (Pass(index, prompt) for prompt in self._prompts.passes(labels))
        parts: dict[int, list[Part | None]] = {index: [] for index in range(len(frames))}
        for group in alike([images[each.frame] for each in passes]):
            for start in range(0, len(group), self._max_batch):
                batch = [passes[index] for index in group[start : start + self._max_batch]]
                for each, part in zip(batch, self._run(frames, images, batch), strict=True):
                    parts[each.frame].append(part)
        return [refused.get(index) or self._outcome(frame, parts[index]) for index, frame in enumerate(frames)]

    def _largest(self, pixels: Sequence[Pixels]) -> Iterable[Any]:
        text = self._prompts.inputs([self._prompts.longest()] * len(pixels))
        logits, boxes = self._network.run(self._network.images(pixels), **text)
        return logits.sigmoid(), boxes  # padding has logits of -inf

    def _run(
        self, frames: Sequence[Frame], images: Sequence[dict[str, Any]], batch: Sequence[Pass]
    ) -> list[Part | None]:
        """What each pass found; None for one whose result is not finite."""
        prompts = [each.prompt for each in batch]
        logits, boxes = self._network.run([images[each.frame] for each in batch], **self._prompts.inputs(prompts))
        scores = self._prompts.scores(logits, prompts)
        return [
            self._part(frames[each.frame], each.prompt, its_scores, its_boxes)
            for each, its_scores, its_boxes in zip(batch, scores, boxes.numpy(), strict=True)
        ]

    def _part(
        self, frame: Frame, prompt: Prompt, scores: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]
    ) -> Part | None:
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            return None
        names = list(prompt)
        queries, columns = np.nonzero(scores > np.array([frame.least(name) for name in names]))
        scale = np.array(self._prompts.scale(frame) * 2, dtype=np.float32)
        centre, half = boxes[queries, :2], boxes[queries, 2:] / 2
        corners = np.concatenate([centre - half, centre + half], 1) * scale
        return Part(corners, scores[queries, columns], [names[column] for column in columns])

    def _outcome(self, frame: Frame, parts: Sequence[Part | None]) -> Outcome:
        sound = [part for part in parts if part is not None]
        if len(sound) < len(parts):
            return Failed(f"the model's output is not finite in {self._network.dtype}")
        boxes = np.concatenate([part.boxes for part in sound])
        scores = np.concatenate([part.scores for part in sound])
        return select(frame, boxes, scores, [label for part in sound for label in part.labels], self._max_iou)


load = OpenVocabularyDetector
