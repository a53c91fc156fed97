"""Every transformers checkpoint of `AutoModelForObjectDetection` with a fixed set of labels.

RT-DETR v1 and v2, D-FINE, DEIMv2, RF-DETR, DETR and its relatives. Loading a model imports torch and transformers, this
module does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from services.detector.backends import DetectorError
from services.detector.checkpoint import Checkpoint, CheckpointError, Files
from services.detector.messages import Failed, Found, Frame, Outcome
from services.detector.pretrained.files import (
    MOONDREAM,
    OPEN_VOCABULARY,
    image_processor,
    input_size,
    model_type,
    refuse_missing_packages,
)
from services.detector.pretrained.network import Network, Pixels, alike
from services.detector.selection import select
from services.detector.settings import Settings


def claims(files: Files) -> bool:
    """Whether the files are a checkpoint of transformers with labels of its own."""
    kind = model_type(files)
    return kind is not None and kind not in {*OPEN_VOCABULARY, MOONDREAM}


def read(model: str, revision: str | None) -> Checkpoint:
    """Read a checkpoint's labels and input size.

    Raises:
        CheckpointError: it cannot be read, has no labels, takes free text, or needs packages that are missing here.
    """
    files = Files(model, revision)
    config = files.json("config.json")
    if config.get("model_type") in OPEN_VOCABULARY:
        raise CheckpointError(
            f"DETECTOR_MODEL={model} takes free text for labels: set DETECTOR_BACKEND=open_vocabulary"
        )
    labels = _labels(config, model)
    processor = image_processor(files)
    refuse_missing_packages(model, config, processor)
    return Checkpoint(model, files.revision, labels, input_size(processor))


class ClosedSetDetector:
    """A transformers object detection model with a fixed set of labels.

    The tiny model takes 17 ms of CPU for one image, 38 for four and 85 for eight; its process takes 410 MB, nearly all
    for torch and transformers.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        """Load the model and run it once at the largest batch, so that the first request finds everything allocated.

        Raises:
            DetectorError: no such device, a setting that does not apply to the device, weights that cannot be loaded,
                an image processor that cannot read boxes, or a warm-up whose result is not finite.
        """
        self._network = Network(settings, checkpoint, "AutoModelForObjectDetection")
        if not hasattr(self._network.processor, "post_process_object_detection"):
            raise DetectorError(
                f"the image processor of {checkpoint.model}, {type(self._network.processor).__name__}, does not turn "
                "the model's output into boxes (post_process_object_detection): choose a model of another family"
            )
        self._max_iou = settings.nms_iou
        self._names = {int(index): str(name) for index, name in self._network.model.config.id2label.items()}
        self._network.warm_up(settings.max_batch, self._forward)

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """See `Detector.detect`; images of one processed size share a pass, so each has the same result as alone."""
        images = self._network.images(frame.pixels for frame in frames)
        outcomes: dict[int, Outcome] = {}
        for group in alike(images):
            logits, boxes = self._network.run([images[index] for index in group])
            outcomes |= zip(group, self._outcomes([frames[index] for index in group], logits, boxes), strict=True)
        return [outcomes[index] for index in range(len(frames))]

    def _forward(self, pixels: Sequence[Pixels]) -> Iterable[Any]:
        return self._network.run(self._network.images(pixels))

    def _outcomes(self, frames: Sequence[Frame], logits: Any, boxes: Any) -> list[Outcome]:
        finite = (logits.isfinite().flatten(1).all(1) & boxes.isfinite().flatten(1).all(1)).tolist()
        found = self._network.processor.post_process_object_detection(
            SimpleNamespace(logits=logits, pred_boxes=boxes),
            threshold=min(frame.lowest for frame in frames),
            target_sizes=[(frame.height, frame.width) for frame in frames],
        )
        return [
            self._outcome(frame, each)
            if sound
            else Failed(f"the model's output is not finite in {self._network.dtype}")
            for frame, each, sound in zip(frames, found, finite, strict=True)
        ]

    def _outcome(self, frame: Frame, found: dict[str, Any]) -> Found:
        labels = [self._names[index] for index in found["labels"].tolist()]
        return select(frame, found["boxes"].numpy(), found["scores"].numpy(), labels, self._max_iou)


def _labels(config: dict[str, Any], model: str) -> frozenset[str]:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"config.json of {model} has no labels (id2label): it is not an object detector")
    return frozenset(str(name) for name in names.values())


load = ClosedSetDetector
