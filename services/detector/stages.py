"""The three stages of the service, each in a process of its own, as Mosec workers.

decode (CPU, `DETECTOR_DECODE_WORKERS` processes, one request at a time) -> detect (the model, one process, batches)
-> answer (one process, one request at a time).

Mosec gives all requests of a batch one status. So `Decode` finds every fault of a request before there is a batch,
`Detect` never raises, and `Answer` turns the failure of one image into a status of its own.

Mosec starts workers in new processes, without arguments: their settings travel in environment variables of these
processes.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mosec import ClientError, ServerError, ValidationError, Worker
from mosec.mixin import MsgpackMixin

from imaging.decode import BadImage
from services.detector.backends import DetectorError, backend, detect_apart
from services.detector.checkpoint import CHECKPOINT, Checkpoint
from services.detector.images import decode
from services.detector.messages import (
    Failed,
    Frame,
    MalformedRequest,
    Outcome,
    Refused,
    UnknownLabel,
    answer,
    check_labels,
    parse_request,
)
from services.detector.settings import Settings

SETTINGS_VARIABLE = "SPOTTER_DETECTOR_SETTINGS"
CHECKPOINT_VARIABLE = "SPOTTER_DETECTOR_CHECKPOINT"

# The settings that decide an image's boxes: a client that resumes an earlier run must notice a change.
DECIDE_BOXES = {"threshold", "nms_iou", "dtype"}


# Mosec's answer is an error's `msg`, a colon and its text.
class BadImageError(ClientError):  # type: ignore[misc]  # no Mosec where types are checked
    """400: the bytes are not a usable image."""

    msg = "bad image"


class UnknownLabelError(ValidationError):  # type: ignore[misc]  # no Mosec where types are checked
    """422: the model does not know a label."""

    msg = "unknown label"


class DetectionError(ServerError):  # type: ignore[misc]  # no Mosec where types are checked
    """500: the model failed on this image."""

    msg = "detector failed"


def worker_environment(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """The environment variables of a stage's process."""
    return {
        SETTINGS_VARIABLE: settings.model_dump_json(),
        CHECKPOINT_VARIABLE: CHECKPOINT.dump_json(checkpoint).decode(),
    }


class Stage(Worker):  # type: ignore[misc]  # no Mosec where types are checked
    """The common part of all stages: settings, checkpoint, and no reaction to Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        # Ctrl-C reaches the whole process group; the main process stops the others in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Mosec warns above 1 MB between stages; a batch of pixels is larger on purpose.
        warnings.filterwarnings("ignore", message="IPC data", category=RuntimeWarning)
        self.settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
        self.checkpoint = CHECKPOINT.validate_json(os.environ[CHECKPOINT_VARIABLE])


class Decode(Stage):
    """Request bytes to a `Frame`; finds every error of the client."""

    def deserialize(self, data: bytes) -> bytes:
        """`forward` parses the body."""
        return data

    def forward(self, data: bytes) -> Frame:
        """Check one request and decode its image.

        Raises:
            ClientError: 400, not a request or not an image.
            ValidationError: 422, the model does not know a label.
        """
        try:
            request = parse_request(bytes(data))
            check_labels(request.labels, self.checkpoint.labels)
            pixels, width, height = decode(request.image, self.checkpoint.input_size)
        except MalformedRequest as error:
            raise ClientError(str(error)) from error
        except UnknownLabel as error:
            raise UnknownLabelError(str(error)) from error
        except BadImage as error:
            raise BadImageError(str(error)) from error
        threshold = self.settings.threshold if request.threshold is None else request.threshold
        labels = None
        if request.labels is not None:
            labels = {label: threshold if least is None else least for label, least in request.labels.items()}
        return Frame(pixels, width, height, labels, threshold)


class Detect(Stage):
    """Frames to outcomes, in batches; the only process that loads the model."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self.detector = backend(self.settings).load(self.settings, self.checkpoint)
        except DetectorError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from error

    def forward(self, data: Any) -> Any:
        """An outcome for each frame; with batches of one, Mosec passes a frame without a list."""
        if self.max_batch_size == 1:
            return detect_apart(self.detector, [data])[0]
        frames: Sequence[Frame] = data
        return detect_apart(self.detector, frames)


class Answer(MsgpackMixin, Stage):  # type: ignore[misc]  # no Mosec where types are checked
    """An outcome to the response's body."""

    def forward(self, data: Outcome) -> dict[str, Any]:
        """The answer for one image.

        Raises:
            ServerError: 500, the model failed on it.
            ValidationError: 422, the model cannot look for a label.
        """
        if isinstance(data, Failed):
            raise DetectionError(data.reason)
        if isinstance(data, Refused):
            raise UnknownLabelError(data.reason)
        chosen = self.settings.model_dump(include=DECIDE_BOXES)
        return answer(data, self.checkpoint, chosen)
